"""One request on its way through the engine."""

from collections.abc import Callable
from dataclasses import dataclass, field

from trt_mtp.serve.engine.base import (
    Chunk,
    FinishReason,
    Request,
    SpeculationCounters,
    cut_after,
)
from trt_mtp.serve.engine.guide import Guide
from trt_mtp.serve.engine.logprobs import PlaceLogprobs
from trt_mtp.serve.engine.text import AnswerText


@dataclass(slots=True, eq=False)
class Sequence:
    """A request, where it stands, and what its drafts did."""

    request: Request
    on_chunk: Callable[[Chunk], None]
    text: AnswerText
    draft_length: int
    guide: Guide | None = None
    slot: int = -1  # -1 while waiting
    num_prefilled: int = 0
    num_output_tokens: int = field(init=False)  # emitted ones included
    num_steps: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    cut_after: int = -1
    is_cancelled: bool = False
    finish_reason: FinishReason | None = None
    margin: float | None = None

    def __post_init__(self) -> None:
        self.num_output_tokens = len(self.request.emitted_ids)
        self.accepted_per_position = [0] * self.draft_length

    def cancel(self) -> None:
        """Ask the engine to stop this request; it does within one step."""
        self.is_cancelled = True

    @property
    def num_context_tokens(self) -> int:
        return len(self.request.prompt_ids) + len(self.request.emitted_ids)

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == self.num_context_tokens

    @property
    def counters(self) -> SpeculationCounters:
        return SpeculationCounters(
            num_steps=self.num_steps,
            num_draft_tokens=self.num_steps * self.draft_length,
            num_accepted_draft_tokens=sum(self.accepted_per_position),
            accepted_per_position=tuple(self.accepted_per_position),
            cut_after=self.cut_after,
        )

    def advance(
        self,
        tokens: list[int],
        eos_ids: frozenset[int],
        is_step: bool,
        logprobs: tuple[PlaceLogprobs, ...] = (),
    ) -> None:
        """Take the tokens of a verify step (or of the prefill) up to the end of the answer.

        All tokens of a step but one were drafted; what was drafted past the end is not counted.
        """
        text, kept = "", []
        for token in tokens:
            kept.append(token)
            self.num_output_tokens += 1
            if token in eos_ids and not self.request.sampling.ignore_eos:
                self.finish_reason = "stop"
                break
            piece, is_stopped = self.text.push(token)
            text += piece
            is_complete = self.guide is not None and self.guide.push(token)
            if is_stopped or is_complete:
                self.finish_reason = "stop"
                break
            if self.num_output_tokens == self.request.sampling.max_tokens:
                self.finish_reason = "length"
                break
        if self.finish_reason is not None:
            text += self.text.flush()
        if is_step:
            self.num_steps += 1
            for j in range(len(kept) - 1):
                self.accepted_per_position[j] += 1
            if self.finish_reason is not None:
                self.cut_after = cut_after(len(kept), self.draft_length)
        self._deliver(text, tuple(kept), logprobs=logprobs[: len(kept)])

    def finish(self, reason: FinishReason, error: str = "") -> None:
        """End the answer without further tokens."""
        self.finish_reason = reason
        self._deliver(self.text.flush(), (), error)

    def _deliver(
        self,
        text: str,
        token_ids: tuple[int, ...],
        error: str = "",
        logprobs: tuple[PlaceLogprobs, ...] = (),
    ) -> None:
        chunk = Chunk(
            text,
            token_ids,
            self.counters,
            self.num_output_tokens,
            self.finish_reason,
            error,
            self.margin,
            logprobs,
        )
        try:
            self.on_chunk(chunk)
        except Exception:  # the receiver is gone or broken; the engine must not be
            self.is_cancelled = True
