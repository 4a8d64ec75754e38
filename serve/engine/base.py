"""The one interface between a variant's Triton model and the engine that runs it.

An engine serves one variant: one checkpoint at one draft length. `serve/engine/__init__.py`
opens the kind named in the variant's record.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from trt_mtp.serve.engine.logprobs import PlaceLogprobs
from trt_mtp.serve.reasoning import ReasoningStart

FinishReason = Literal["stop", "length", "cancelled", "error"]
GuidedForm = Literal["json_schema", "regex", "choice", "tool_choice"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. The defaults are greedy decoding."""

    max_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    seed: int = 0  # the same seed gives the same text at every draft length
    stop: tuple[str, ...] = ()  # text behind the reasoning that ends the answer, no part of it
    ignore_eos: bool = False  # end tokens don't end the answer
    # so many tokens of the answer are drawn from all but the end tokens, emitted ones counted; a
    # stop text ends it all the same
    min_tokens: int = 0
    frequency_penalty: float = 0.0  # taken from a token's logit for each time the answer has it
    presence_penalty: float = 0.0  # taken once if it has it


@dataclass(frozen=True, slots=True)
class Guided:
    """What an answer has to be, once its reasoning is over.

    An end token comes only where the answer may end, and the answer ends where nothing can follow.
    """

    form: GuidedForm
    value: Any  # the schema, the pattern, the list of texts, or a tool's name ("" for any)
    # those that must be called with tool_choice, and may be in place of what json_schema asks for
    tools: tuple[Mapping[str, Any], ...] = ()
    is_single: bool = False  # one call, no more
    may_think: bool = False  # the answer may begin with reasoning, if the model knows how


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue; or an answer, after the tokens that another variant emitted.

    Emitted tokens count as output: max_tokens and num_output_tokens include them. Stop texts and
    characters that cross the seam come out as they would have in one piece; nothing that the
    emitted tokens had already made final is sent again.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    emitted_ids: tuple[int, ...] = ()
    wants_margin: bool = False
    guided: Guided | None = None
    num_logprobs: int | None = None  # most likely tokens to tell of at each place; None: nothing
    reasoning: ReasoningStart | None = None  # in which stop texts end nothing; None: not known

    @property
    def context_ids(self) -> tuple[int, ...]:
        """All tokens that the next one follows."""
        return self.prompt_ids + self.emitted_ids


@dataclass(frozen=True, slots=True)
class SpeculationCounters:
    """What the drafts of one request did so far in this engine; all zero without drafts."""

    num_steps: int = 0  # verify steps; plain steps at draft length 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()  # [K], steps whose first j+1 drafts were accepted
    # of a last step that the answer's end cut: its accepted drafts; whether the next one was
    # accepted too is not known. -1: no step was cut
    cut_after: int = -1


def cut_after(num_kept: int, draft_length: int) -> int:
    """`SpeculationCounters.cut_after` of an answer whose last step brought `num_kept` tokens.

    The token at the end may be an accepted draft or the one after it, so its position is left out,
    whichever it was: leaving out what happens to look cut would favour the other outcome.
    """
    return num_kept - 1 if num_kept <= draft_length else -1


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one step (or the end of an answer, then with a finish reason).

    `text` holds whole characters only; the texts of all chunks, joined, are the answer.
    Token ids count every sampled token, those that end or follow no visible text included.
    """

    text: str
    token_ids: tuple[int, ...]
    counters: SpeculationCounters
    num_output_tokens: int  # so far, those of Request.emitted_ids among them
    finish_reason: FinishReason | None = None  # set on the last chunk only
    error: str = ""  # one sentence, with finish_reason "error"
    margin: float | None = None  # of the two best logits of this engine's first token, if wanted
    logprobs: tuple[PlaceLogprobs, ...] = ()  # of token_ids, if wanted


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Totals since the engine was opened, and what is in flight now."""

    num_requests: int
    num_running: int
    num_waiting: int
    num_steps: int
    num_output_tokens: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int


class Generation(Protocol):
    """A request that was submitted."""

    def cancel(self) -> None:
        """Stop within one step; the last chunk then has finish_reason "cancelled"."""


class Engine(Protocol):
    """A running variant. All methods may be called from any thread."""

    max_seq_len: int  # tokens of a prompt with its answer, at most

    def submit(self, request: Request, on_chunk: Callable[[Chunk], None]) -> Generation:
        """Queue `request`; `on_chunk` is called from an engine thread, in order, and must be quick.

        Raises InputError when the request can't be run at all (empty or too long a prompt,
        a token id or sampling value out of range, an answer that its emitted tokens ended);
        everything later arrives as a chunk.
        """

    def encode(self, text: str) -> tuple[int, ...]:
        """`text` as token ids, without special tokens added.

        Raises InputError for one that is too long for any prompt.
        """

    def encode_chat(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None = None,
        enable_thinking: bool | None = None,
    ) -> tuple[int, ...]:
        """The token ids of the checkpoint's chat template over `messages`, ready for the answer.

        `enable_thinking` is the template's variable of that name; None leaves it to the template.
        Raises InputError when the template refuses the messages, or the prompt is too long.
        """

    def statistics(self) -> EngineStatistics:
        """Totals and what is in flight."""

    @property
    def failure(self) -> str:
        """Why it can't answer any more, one sentence; empty while it can."""

    def close(self) -> None:
        """Finish the step in progress, end every answer as cancelled, free all memory."""
