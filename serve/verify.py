"""Does a variant answer as the model without speculation does, token for token?

Speculation must not change an answer. Every variant is compared, greedily and with seeded
sampling, with draft length 0 of the same checkpoint; a divergence is reported with both
continuations.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine.base import Engine, Request, SamplingParams
from trt_mtp.serve.engine.collect import Answer, collect

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


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where an answer left the reference, and how both went on from there (token ids)."""

    prompt: int
    temperature: float
    position: int
    expected: tuple[int, ...]
    got: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome for one variant."""

    num_prompts: int
    num_tokens: int
    is_identical: bool
    acceptance_length: float  # mean tokens per verify step
    divergences: tuple[Divergence, ...]

    def to_json(self) -> dict[str, Any]:
        """As the variant's record holds it."""
        return asdict(self)


def probe_requests(engine: Engine) -> list[Request]:
    """The requests of a verification: each prompt greedily and at temperature 0.8."""
    prompts = [engine.encode(text) for text in PROMPTS]
    return [
        Request(ids, SamplingParams(NUM_TOKENS, temperature, seed=index, ignore_eos=True))
        for temperature in (0.0, 0.8)
        for index, ids in enumerate(prompts)
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
    requests: Sequence[Request], reference: Sequence[Answer], answers: Sequence[Answer]
) -> Verification:
    """The verification of `answers` against those without speculation."""
    divergences = []
    for index, (request, expected, got) in enumerate(
        zip(requests, reference, answers, strict=True)
    ):
        if expected.token_ids != got.token_ids:
            pairs = zip(expected.token_ids, got.token_ids, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(got.token_ids))
            divergences.append(
                Divergence(
                    prompt=index % len(PROMPTS),
                    temperature=request.sampling.temperature,
                    position=same,
                    expected=expected.token_ids[same : same + 8],
                    got=got.token_ids[same : same + 8],
                )
            )
    steps = sum(answer.counters.num_steps for answer in answers)
    accepted = sum(answer.counters.num_accepted_draft_tokens for answer in answers)
    return Verification(
        num_prompts=len(requests),
        num_tokens=sum(len(answer.token_ids) for answer in answers),
        is_identical=not divergences,
        acceptance_length=round(1 + accepted / steps, 4),
        divergences=tuple(divergences),
    )


def verify_variants(reference: Path, folders: Sequence[Path]) -> list[Verification]:
    """Verify the variants in `folders` against the variant without speculation in `reference`."""
    requests, expected = run_probe(reference)
    return [compare(requests, expected, run_probe(folder)[1]) for folder in folders]
