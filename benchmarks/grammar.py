"""What a grammar does to acceptance and speed at each draft length of the CPU engine.

`python -m benchmarks.grammar [--json] [--short]`

The trained checkpoint's own prompts, with and without a schema, one at a time and interleaved, at a
temperature: those for JSON with the schema of what they ask for, which it was trained on, and those
of other tasks with one that it never saw. Time is the processor time of the engine's thread, as in
`benchmarks.engine`; ratios are of the same prompt, as median and quartiles. The answers are checked
to be equal at every draft length.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks._report import arguments, print_report
from benchmarks.engine import Ratio, Timeline
from tests.engine_fixtures import ASSET, pack
from trt_mtp.serve.engine.base import Chunk, Guided, Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine

DRAFT_LENGTHS = (0, 1, 2, 3, 5)
TEMPERATURE = 0.7
MAX_TOKENS = 256
MAX_SEQ_LEN = 1024
NUM_PROMPTS, NUM_SHORT = 60, 12
FOREIGN = {
    "type": "object",
    "properties": {
        "category": {"enum": ["code", "prose", "data", "question"]},
        "needs_review": {"type": "boolean"},
        "short_summary": {"type": "string", "maxLength": 60},
        "confidence_percent": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["category", "needs_review", "short_summary", "confidence_percent"],
    "additionalProperties": False,
}
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}


@dataclass(frozen=True, slots=True)
class Row:
    """One draft length, without and with a grammar."""

    draft_length: int
    tokens_per_step: float
    guided_tokens_per_step: float
    speedup: Ratio  # of decoding, over draft length 0
    guided_speedup: Ratio  # the same of guided answers among themselves
    price: Ratio  # of a step with a grammar, in steps without


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for JSON and the schema of what it asks for."""

    ids: tuple[int, ...]
    schema: Mapping[str, Any]


class Answer(Timeline):
    """An answer, when its tokens came, and in how many steps."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.num_steps = 0

    def on_chunk(self, chunk: Chunk) -> None:
        """Called by the engine."""
        self.text += chunk.text
        self.num_steps = chunk.counters.num_steps
        super().on_chunk(chunk)

    @property
    def step_s(self) -> float:
        """Processor time of a step."""
        return (self.times[-1] - self.times[0]) / self.num_steps

    @property
    def token_s(self) -> float:
        """Processor time of a token after the first."""
        return (self.times[-1] - self.times[0]) / (len(self.tokens) - 1)


def read_prompts(engine: CpuEngine, most: int) -> dict[str, list[Prompt]]:
    """The checkpoint's held-out prompts: for JSON, with schemas of what is expected, and others."""
    lines = (ASSET / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts: dict[str, list[Prompt]] = {"JSON": [], "other tasks": []}
    for value in map(json.loads, lines):
        is_json = value["task"] == "structured_output"
        if not is_json or isinstance(value["expected"], dict):
            schema = schema_of(value["expected"]) if is_json else FOREIGN
            ids = engine.encode_chat(value["messages"])
            prompts["JSON" if is_json else "other tasks"].append(Prompt(ids, schema))
    return {name: found[:: max(len(found) // most, 1)][:most] for name, found in prompts.items()}


def schema_of(expected: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with these keys, and values of these kinds."""
    kinds = {key: {"type": TYPES[type(value)]} for key, value in expected.items()}
    return {
        "type": "object",
        "properties": kinds,
        "required": list(kinds),
        "additionalProperties": False,
    }


def ask(engine: CpuEngine, prompt: Prompt, seed: int, *, is_guided: bool) -> Answer:
    """One answer, alone."""
    guided = Guided("json_schema", prompt.schema) if is_guided else None
    answer = Answer()
    sampling = SamplingParams(MAX_TOKENS, TEMPERATURE, seed=seed)
    engine.submit(Request(prompt.ids, sampling, guided=guided), answer.on_chunk)
    answer.wait()
    return answer


def fits(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text is JSON as the schema says."""
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def row_of(
    k: int, plain: Mapping[int, Sequence[Answer]], guided: Mapping[int, Sequence[Answer]]
) -> Row:
    """What the answers of draft length `k` say beside those of 0."""

    def per_step(answers: Sequence[Answer]) -> float:
        tokens = sum(len(answer.tokens) - 1 for answer in answers)
        return round(tokens / sum(answer.num_steps for answer in answers), 2)

    def speedup(answers: Mapping[int, Sequence[Answer]]) -> Ratio:
        pairs = zip(answers[0], answers[k], strict=True)
        return Ratio.of([base.token_s / own.token_s for base, own in pairs])

    pairs = zip(plain[k], guided[k], strict=True)
    return Row(
        k,
        per_step(plain[k]),
        per_step(guided[k]),
        speedup(plain),
        speedup(guided),
        Ratio.of([held.step_s / free.step_s for free, held in pairs]),
    )


def measure(engines: Mapping[int, CpuEngine], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """All rows, and how many answers were as the schema says."""
    plain: dict[int, list[Answer]] = {k: [] for k in engines}
    guided: dict[int, list[Answer]] = {k: [] for k in engines}
    for seed, prompt in enumerate(prompts):
        for k, engine in engines.items():
            plain[k].append(ask(engine, prompt, seed, is_guided=False))
            guided[k].append(ask(engine, prompt, seed, is_guided=True))
    for answers in (plain, guided):
        assert all(
            [a.tokens for a in answers[k]] == [a.tokens for a in answers[0]] for k in answers
        )
    share = [
        statistics.mean(fits(a.text, p.schema) for a, p in zip(answers, prompts, strict=True))
        for answers in (plain[0], guided[0])
    ]
    return {
        "num_prompts": len(prompts),
        "fit": share[0],
        "guided_fit": share[1],
        "rows": [asdict(row_of(k, plain, guided)) for k in engines],
    }


def measure_all(most: int) -> dict[str, Any]:
    """Each set of prompts by its name."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        packed, engines = pack(ASSET, Path(folder)), {}
        for k in DRAFT_LENGTHS:
            engines[k] = CpuEngine(
                packed, draft_length=k, max_batch_size=1, max_seq_len=MAX_SEQ_LEN
            )
            stack.callback(engines[k].close)
        prompts = read_prompts(engines[0], most)
        for engine in engines.values():  # what is compiled or built once
            ask(engine, prompts["JSON"][0], 0, is_guided=True)
        return {name: measure(engines, found) for name, found in prompts.items()}


def lines_of(found: Mapping[str, Any]) -> Iterator[str]:
    """For people."""
    for name, measured in found.items():
        yield f"{measured['num_prompts']} prompts, {name}. Answers as their schema says:"
        yield f"without a grammar {measured['fit']:.0%}, with it {measured['guided_fit']:.0%}"
        yield " K  tokens per step      speedup over K = 0                        a step with it,"
        yield "    without    with      without              with                 in steps without"
        for row in measured["rows"]:
            speedup, guided, price = (
                Ratio(**row[name]) for name in ("speedup", "guided_speedup", "price")
            )
            yield (
                f"{row['draft_length']:2}  {row['tokens_per_step']:7.2f} "
                f"{row['guided_tokens_per_step']:7.2f}      {speedup}  {guided}  {price}"
            )


def main() -> None:
    """Measure and print."""
    args = arguments(__doc__ or "", f"{NUM_SHORT} prompts of a kind instead of {NUM_PROMPTS}")
    found = measure_all(NUM_SHORT if args.short else NUM_PROMPTS)
    print_report(args.json, found, lines_of(found))


if __name__ == "__main__":
    main()
