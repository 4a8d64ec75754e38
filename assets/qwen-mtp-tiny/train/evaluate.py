"""Measure a checkpoint on its held-out prompts: ``python evaluate.py`` -> evaluation.json.

Every draft length runs on the CPU engine of trt_mtp, so that acceptance is that of real steps: a
draft (always greedy) is kept when it equals the token sampled at its place.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.pack import pack_weights
from trt_mtp.serve.engine.base import Chunk, Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine

DRAFT_LENGTHS = (1, 2, 3, 4)
SEEDS = (0, 1, 2)
TEMPERATURE = 0.7
RESAMPLES = 2000
NGRAM = 8
SLOTS = 8
MAX_SEQ_LEN = 512
COPIED = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")


@dataclass(frozen=True)
class Answer:
    """One answer and what its drafts did."""

    prompt: int  # line of prompts.jsonl
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    num_steps: int
    accepted_per_position: tuple[int, ...]

    @property
    def num_stepped_tokens(self) -> int:
        """Tokens emitted by verify steps; the first token comes from the prefill."""
        return len(self.token_ids) - 1


@dataclass(frozen=True)
class Setting:
    """How a run draws its answers."""

    draft_length: int
    temperature: float
    seed: int


def pack(model: Path, folder: Path) -> None:
    """Write the checkpoint as the CPU engine reads it."""
    pack_weights(read_checkpoint(model), folder, lambda *_: None)
    for name in COPIED:
        shutil.copy(model / name, folder / name)


def run(packed: Path, prompts: list[dict[str, Any]], setting: Setting) -> list[Answer]:
    """Answers to all prompts in one setting."""
    engine = CpuEngine(
        packed,
        draft_length=setting.draft_length,
        max_batch_size=SLOTS,
        max_seq_len=MAX_SEQ_LEN,
    )
    answers = [_ask(engine, index, prompt, setting) for index, prompt in enumerate(prompts)]
    found = [_collect(index, chunks) for index, chunks in enumerate(answers)]
    engine.close()
    return found


def _ask(
    engine: CpuEngine, index: int, prompt: dict[str, Any], setting: Setting
) -> queue.SimpleQueue[Chunk]:
    sampling = SamplingParams(
        max_tokens=prompt["max_tokens"],
        temperature=setting.temperature,
        seed=setting.seed * 100_000 + index,
    )
    chunks: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    ids = engine.encode_chat(prompt["messages"], prompt.get("tools"))
    engine.submit(Request(ids, sampling), chunks.put)
    return chunks


def _collect(index: int, chunks: queue.SimpleQueue[Chunk]) -> Answer:
    text = ""
    ids: list[int] = []
    while True:
        chunk = chunks.get()
        text += chunk.text
        ids += chunk.token_ids
        if chunk.finish_reason:
            counters = chunk.counters
            return Answer(
                index, text, tuple(ids), chunk.finish_reason,
                counters.num_steps, counters.accepted_per_position,
            )  # fmt: skip


def acceptance_length(answers: Iterable[Answer]) -> float:
    """Mean tokens a verify step emitted, bonus token included."""
    tokens = steps = 0
    for answer in answers:
        tokens += answer.num_stepped_tokens
        steps += answer.num_steps
    return tokens / max(steps, 1)


def interval(answers: list[Answer], rng: Random) -> tuple[float, float]:
    """Bootstrap interval (95 %) of the acceptance length, resampling prompts with all seeds."""
    by_prompt: dict[int, list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    groups = [
        (sum(a.num_stepped_tokens for a in group), sum(a.num_steps for a in group))
        for group in by_prompt.values()
    ]
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.choices(groups, k=len(groups))
        means.append(sum(t for t, _ in drawn) / max(sum(s for _, s in drawn), 1))
    means.sort()
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def repeated_ngrams(answers: Iterable[Answer], size: int = NGRAM) -> float:
    """Share of token n-grams that occurred earlier in the same answer."""
    repeated = total = 0
    for answer in answers:
        seen = set()
        for start in range(len(answer.token_ids) - size + 1):
            gram = answer.token_ids[start : start + size]
            repeated += gram in seen
            total += 1
            seen.add(gram)
    return repeated / max(total, 1)


def json_quality(answers: list[Answer], prompts: list[dict[str, Any]]) -> dict[str, float]:
    """Share of answers that parse as JSON, and of the prompts' values found in them."""
    parsed = right = wanted = 0
    for answer in answers:
        expected = prompts[answer.prompt]["expected"]
        wanted += len(expected)
        try:
            value = json.loads(answer.text)
        except ValueError:
            continue
        parsed += 1
        if isinstance(value, dict):
            right += sum(key in value and value[key] == expected[key] for key in expected)
    return {"parses": parsed / len(answers), "values_right": right / wanted}


def report(
    prompts: list[dict[str, Any]], runs: dict[Setting, list[Answer]], temperature: float
) -> dict[str, Any]:
    """Per task, the numbers of one temperature."""
    found: dict[str, Any] = {}
    for task in dict.fromkeys(prompt["task"] for prompt in prompts):
        by_length: dict[int, list[Answer]] = {}
        for setting, answers in runs.items():
            if setting.temperature == temperature:
                mine = [a for a in answers if prompts[a.prompt]["task"] == task]
                by_length.setdefault(setting.draft_length, []).extend(mine)
        found[task] = _task_report(task, by_length, prompts)
    return found


def _task_report(
    task: str, by_length: dict[int, list[Answer]], prompts: list[dict[str, Any]]
) -> dict[str, Any]:
    deepest = by_length[max(by_length)]
    steps = sum(a.num_steps for a in deepest)
    kept = zip(*(a.accepted_per_position for a in deepest), strict=True)
    numbers: dict[str, Any] = {
        "answers_per_draft_length": len(deepest),
        "acceptance_length": {
            k: {"mean": round(acceptance_length(a), 3),
                "interval": [round(x, 3) for x in interval(a, Random(0))]}
            for k, a in sorted(by_length.items())
        },
        "survival": [round(sum(position) / steps, 4) for position in kept],
        "mean_answer_tokens": round(sum(len(a.token_ids) for a in deepest) / len(deepest), 1),
        "ended_by_itself": round(sum(a.finish_reason == "stop" for a in deepest) / len(deepest), 3),
        "repeated_8_grams": round(repeated_ngrams(deepest), 4),
    }  # fmt: skip
    if task == "structured_output":
        numbers |= {k: round(v, 4) for k, v in json_quality(deepest, prompts).items()}
    elif "expected" in prompts[deepest[0].prompt]:
        same = sum(a.text == prompts[a.prompt]["expected"] for a in deepest)
        numbers["exact"] = round(same / len(deepest), 4)
    return numbers


def main() -> None:
    """Read the command line, measure, write evaluation.json."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=here.parent)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--draft-lengths", type=int, nargs="+", default=list(DRAFT_LENGTHS))
    parser.add_argument("--per-task", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--samples", type=Path, help="write all answers here, as JSON lines")
    parser.add_argument("-o", "--output", type=Path, default=here.parent / "evaluation.json")
    args = parser.parse_args()
    text = (here.parent / "prompts.jsonl").read_text(encoding="utf-8")
    prompts: list[dict[str, Any]] = []
    for prompt in map(json.loads, text.splitlines()):
        if sum(prompt["task"] == p["task"] for p in prompts) < args.per_task:
            prompts.append(prompt)
    settings = [Setting(k, TEMPERATURE, s) for k in args.draft_lengths for s in args.seeds]
    settings += [Setting(k, 0.0, 0) for k in args.draft_lengths]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.processes) as pool:
        pack(args.model, Path(folder))
        count = len(settings)
        answers = pool.map(run, [Path(folder)] * count, [prompts] * count, settings)
        runs: dict[Setting, list[Answer]] = {}
        for setting, found in zip(settings, answers, strict=True):
            runs[setting] = found
            print(f"{setting}: {acceptance_length(found):.3f} tokens a step", flush=True)
    if args.samples:
        lines = [json.dumps({**asdict(s), **asdict(a)}) for s, found in runs.items() for a in found]
        args.samples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = {
        "prompts_per_task": len(prompts) // len({p["task"] for p in prompts}),
        "seeds": args.seeds,
        "rule": "a greedy draft is accepted when it equals the sampled token",
        f"temperature_{TEMPERATURE}": report(prompts, runs, TEMPERATURE),
        "greedy": report(prompts, runs, 0.0),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
