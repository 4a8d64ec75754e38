"""Does a variant answer as the model without speculation does?

The CPU engine must: token for token, greedily and with seeded sampling. TensorRT-LLM and vLLM need
not: their kernels add in another order at another draft length, so that greedy answers part
where two tokens are as good as equal, and their random numbers depend on the draft length. There,
a greedy answer must be the same up to EXACT_TOKENS, unless it leaves where two tokens were equal
(NEAR_TIE), and sampled answers must have the same distribution.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trt_mtp.serve.divergence import NUM_SHOWN, first_difference
from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine.base import Engine, Request, SamplingParams
from trt_mtp.serve.engine.collect import Answer, collect
from trt_mtp.serve.sampled import SampledComparison

# Short texts of several kinds, so that drafts are accepted in some and refused in others.
PROMPTS = (
    "Return JSON with the keys name, city and year: Ada Lovelace, London, 1843.",
    "Write a Python dataclass Point with the fields x (float) and y (float).",
    "Continue the story: It was a dark evening, and the carriage had not yet come.",
    "Summarise in one sentence: The meeting moved to Tuesday because the room was taken.",
    "List the numbers from one to ten.",
    "What is the capital of France?",
    "Translate to German: good morning.",
    "def add(a, b):",
)
NUM_TOKENS = 48
# NVIDIA's own test of a drafter that pauses compares 50 tokens with those of a fixed draft length,
# because paths drift after a few hundred:
# test_keep_warm_preserves_acceptance_across_zero_draft_phase in NVIDIA/TensorRT-LLM
EXACT_TOKENS = 50
# logits have 8 bits of precision in bfloat16, and those of a likely token are between 8 and 16,
# where neighbors are 1/16 apart: two steps. On vLLM's CPU kernels 27 of 448 greedy answers part at
# K = 3, none where more than 1/16 is between the two best (benchmarks/near_ties.py)
NEAR_TIE = 0.125
DRIFT_TOKENS = 512  # long enough to see where answers drift
SAMPLED_TOKENS = 16
SAMPLED_PER_PROMPT = 64
TEMPERATURE = 0.8


def is_exact(kind: str) -> bool:
    """Whether an engine of this kind gives the same tokens at every draft length."""
    return kind == "cpu"


def is_near_tie(margin: float | None) -> bool:
    """Whether rounding alone can have decided between two tokens whose logits are so far apart."""
    return margin is not None and margin <= NEAR_TIE


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where an answer left the reference, and how both went on from there (token ids)."""

    prompt: int
    temperature: float
    position: int
    expected: tuple[int, ...]
    got: tuple[int, ...]
    margin: float | None = None  # of the reference's two best logits there; None: not known

    def is_early(self, exact_tokens: int | None) -> bool:
        """Whether it is where answers must not differ."""
        if exact_tokens is None:
            return True
        return self.position < exact_tokens and not is_near_tie(self.margin)


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome for one variant."""

    num_prompts: int  # compared token for token
    num_tokens: int
    exact_tokens: int | None  # that must be the same in each answer; None: all
    is_identical: bool
    num_early: int  # answers that differ where they must not
    acceptance_length: float  # mean tokens per verify step
    divergences: tuple[Divergence, ...]
    sampled: SampledComparison | None = None  # None: not compared by distribution

    @property
    def is_passed(self) -> bool:
        """Whether the variant answers as it must."""
        return self.num_early == 0 and (self.sampled is None or self.sampled.is_same)

    def to_json(self) -> dict[str, Any]:
        """As the variant's record holds it."""
        return {"is_passed": self.is_passed, **asdict(self)}


def probe_requests(engine: Engine) -> list[Request]:
    """The requests of the CPU engine: each prompt greedily and at temperature 0.8, seeded."""
    prompts = [engine.encode(text) for text in PROMPTS]
    return [
        Request(ids, SamplingParams(NUM_TOKENS, temperature, seed=index, ignore_eos=True))
        for temperature in (0.0, TEMPERATURE)
        for index, ids in enumerate(prompts)
    ]


def drift_requests(engine: Engine, max_seq_len: int) -> list[Request]:
    """The requests that show where greedy answers drift: each prompt, as long as there is room."""
    prompts = [engine.encode(text) for text in PROMPTS]
    return [
        Request(
            ids, SamplingParams(max(1, min(DRIFT_TOKENS, max_seq_len - len(ids))), ignore_eos=True)
        )
        for ids in prompts
    ]


def sampled_requests(engine: Engine, draft_length: int) -> list[list[Request]]:
    """By prompt, the requests whose distribution is compared.

    Each draft length has seeds of its own: the two sides of a comparison must be independent.
    """
    return [
        [
            Request(
                engine.encode(text),
                SamplingParams(
                    SAMPLED_TOKENS,
                    TEMPERATURE,
                    seed=(draft_length + 1 << 32) + number * SAMPLED_PER_PROMPT + index,
                    ignore_eos=True,
                ),
            )
            for index in range(SAMPLED_PER_PROMPT)
        ]
        for number, text in enumerate(PROMPTS)
    ]


def run_probe(folder: Path) -> tuple[list[Request], list[Answer]]:
    """Open the variant in `folder`, answer the probe requests together, and close it."""
    engine = open_engine(folder)
    try:
        requests = probe_requests(engine)
        return requests, collect(engine, requests)
    finally:
        engine.close()


def compare(
    requests: Sequence[Request],
    reference: Sequence[Answer],
    answers: Sequence[Answer],
    exact_tokens: int | None = None,
    sampled: SampledComparison | None = None,
) -> Verification:
    """The verification of `answers` against those without speculation."""
    triples = enumerate(zip(requests, reference, answers, strict=True))
    divergences = tuple(
        divergence(index % len(PROMPTS), request.sampling.temperature, expected, got)
        for index, (request, expected, got) in triples
        if expected.token_ids != got.token_ids
    )
    steps = sum(answer.counters.num_steps for answer in answers)
    accepted = sum(answer.counters.num_accepted_draft_tokens for answer in answers)
    return Verification(
        num_prompts=len(requests),
        num_tokens=sum(len(answer.token_ids) for answer in answers),
        exact_tokens=exact_tokens,
        is_identical=not divergences,
        num_early=sum(d.is_early(exact_tokens) for d in divergences),
        acceptance_length=round(1 + accepted / steps, 4),
        divergences=divergences,
        sampled=sampled,
    )


def margin_requests(
    verified: Verification, requests: Sequence[Request], reference: Sequence[Answer]
) -> list[Request]:
    """For each divergence of `verified`, what the reference is asked for its margin there."""
    greedy = [request for request in requests if request.sampling.temperature == 0]
    return [
        replace(
            greedy[found.prompt],
            sampling=SamplingParams(found.position + 1, ignore_eos=True),
            emitted_ids=reference[found.prompt].token_ids[: found.position],
            wants_margin=True,
        )
        for found in verified.divergences
    ]


def with_margins(verified: Verification, margins: Sequence[float | None]) -> Verification:
    """`verified`, where near ties don't count as early."""
    divergences = tuple(
        replace(found, margin=None if margin is None else round(margin, 4))
        for found, margin in zip(verified.divergences, margins, strict=True)
    )
    num_early = sum(found.is_early(verified.exact_tokens) for found in divergences)
    return replace(verified, divergences=divergences, num_early=num_early)


def divergence(prompt: int, temperature: float, expected: Answer, got: Answer) -> Divergence:
    """Where `got` leaves `expected`."""
    same = first_difference(expected.token_ids, got.token_ids)
    return Divergence(
        prompt=prompt,
        temperature=temperature,
        position=same,
        expected=expected.token_ids[same : same + NUM_SHOWN],
        got=got.token_ids[same : same + NUM_SHOWN],
    )


def verify_variants(reference: Path, folders: Sequence[Path]) -> list[Verification]:
    """Verify CPU variants in `folders` against the one without speculation in `reference`."""
    requests, expected = run_probe(reference)
    return [compare(requests, expected, run_probe(folder)[1]) for folder in folders]
