"""Does the new variant answer as the running one does, token for token?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trt_mtp.controller.client import Prompt, TimedAnswer
from trt_mtp.serve.divergence import NUM_SHOWN, first_difference
from trt_mtp.serve.verify import NUM_TOKENS, PROMPTS, is_near_tie


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where an answer left the reference, and how both went on (token ids).

    `margin` is the difference of the reference's two best logits there, which tells a near-tie from
    an error; None if the engine gives no logits, as TensorRT-LLM does while it drafts.
    """

    prompt: str
    position: int
    expected: tuple[int, ...]
    got: tuple[int, ...]
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class EquivalenceResult:
    """How many of a set of prompts got equal answers, and where the others differ."""

    num_prompts: int
    num_tokens: int
    divergences: tuple[Divergence, ...]
    num_near_ties: int = 0  # of them, those that rounding explains, on an engine that isn't exact

    @property
    def num_diverged(self) -> int:
        """Answers that differ where they must not."""
        return len(self.divergences) - self.num_near_ties

    def sentence(self) -> str:
        """The result for people."""
        if not self.divergences:
            return f"{self.num_prompts} answers of {self.num_tokens} tokens are equal"
        first = self.divergences[0]
        margin = "not known" if first.margin is None else f"{first.margin:.4g}"
        ties = f", {self.num_near_ties} more at near ties" if self.num_near_ties else ""
        return (
            f"{self.num_diverged} of {self.num_prompts} greedy answers differ{ties}, the first at "
            f"token {first.position} of {first.prompt!r}: expected {list(first.expected)}, got "
            f"{list(first.got)} (margin of the reference's two best logits there: {margin})"
        )

    def to_json(self) -> dict[str, Any]:
        """The result for the history."""
        return asdict(self)


def greedy_prompts() -> list[Prompt]:
    """The prompts that `trt-mtp verify` asks, as chats."""
    return [
        Prompt([{"role": "user", "content": text}], max_tokens=NUM_TOKENS, temperature=0.0)
        for text in PROMPTS
    ]


def compare_answers(
    prompts: Sequence[Prompt],
    expected: Sequence[TimedAnswer],
    got: Sequence[TimedAnswer],
    margin: Callable[[Prompt, tuple[int, ...]], float | None],
    is_exact: bool = True,
) -> EquivalenceResult:
    """Every answer against its reference, whose `margin` after some tokens can be asked for.

    An engine that isn't exact may leave it at a near tie (trt_mtp.serve.verify).
    """
    divergences = []
    for prompt, one, other in zip(prompts, expected, got, strict=True):
        if one.token_ids != other.token_ids:
            at = first_difference(one.token_ids, other.token_ids)
            divergences.append(
                Divergence(
                    str(prompt.messages[0]["content"]),
                    at,
                    one.token_ids[at : at + NUM_SHOWN],
                    other.token_ids[at : at + NUM_SHOWN],
                    margin(prompt, one.token_ids[:at]),
                )
            )
    num_tokens = sum(len(answer.token_ids) for answer in expected)
    if is_exact:
        return EquivalenceResult(len(prompts), num_tokens, tuple(divergences))
    divergences.sort(key=lambda found: is_near_tie(found.margin))  # faults first
    num_near_ties = sum(is_near_tie(found.margin) for found in divergences)
    return EquivalenceResult(len(prompts), num_tokens, tuple(divergences), num_near_ties)
