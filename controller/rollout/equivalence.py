"""Does the new variant answer as the running one does, token for token?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trt_mtp.controller.client import Prompt, TimedAnswer
from trt_mtp.serve.verify import NUM_TOKENS, PROMPTS

SHOWN = 8  # tokens of each continuation


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where an answer left the reference, and how both went on (token ids).

    `margin` is the difference of the reference's two best logits there, which tells a near-tie from
    an error; None where the engine gives no logits, as TensorRT-LLM does while it drafts.
    """

    prompt: str
    position: int
    expected: tuple[int, ...]
    got: tuple[int, ...]
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Equivalence:
    """The outcome over a set of prompts."""

    num_prompts: int
    num_tokens: int
    divergences: tuple[Divergence, ...]

    @property
    def num_diverged(self) -> int:
        """Answers that differ."""
        return len(self.divergences)

    def sentence(self) -> str:
        """For people."""
        if not self.divergences:
            return f"{self.num_prompts} answers of {self.num_tokens} tokens are equal"
        first = self.divergences[0]
        margin = "not known" if first.margin is None else f"{first.margin:.4g}"
        return (
            f"{self.num_diverged} of {self.num_prompts} greedy answers differ, the first at token "
            f"{first.position} of {first.prompt!r}: expected {list(first.expected)}, got "
            f"{list(first.got)} (margin of the reference's two best logits there: {margin})"
        )

    def to_json(self) -> dict[str, Any]:
        """For the history."""
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
) -> Equivalence:
    """Every answer against its reference, whose `margin` after some tokens can be asked for."""
    divergences = []
    for prompt, one, other in zip(prompts, expected, got, strict=True):
        if one.token_ids != other.token_ids:
            at = first_difference(one.token_ids, other.token_ids)
            divergences.append(
                Divergence(
                    str(prompt.messages[0]["content"]),
                    at,
                    one.token_ids[at : at + SHOWN],
                    other.token_ids[at : at + SHOWN],
                    margin(prompt, one.token_ids[:at]),
                )
            )
    num_tokens = sum(len(answer.token_ids) for answer in expected)
    return Equivalence(len(prompts), num_tokens, tuple(divergences))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two sequences differ; the shorter length when one goes on."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
