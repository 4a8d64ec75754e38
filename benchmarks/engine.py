"""What a draft-and-verify cycle of the CPU engine costs, and how fast it is beside its peers.

`python -m benchmarks.engine [--json] [--short] [--checkpoint FOLDER]`

All that is compared runs interleaved in one process on the checkpoint's own held-out prompts, one
thread each. Results are ratios of neighboring runs, as median and quartiles; tokens a second are
context only. Time is the processor time of the one thread that computes, which other programs on
the machine disturb less than the time on the clock and which equals it on an idle core; only
llama.cpp, which reports the time on the clock, is compared by that.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks._llama_cpp import LlamaCpp, write_gguf
from tests.engine_fixtures import ASSET, TIMEOUT_S, pack
from trt_mtp.serve.engine.base import Chunk, Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine

DRAFT_LENGTHS = (0, 1, 2, 3, 5)
BATCH_SIZES = (1, 2, 4, 8)
MAX_COST = {1: 1.30, 2: 1.60, 3: 1.85}  # plain steps a cycle at batch 1
LEAST_SPEEDUP = 3.0  # plain decoding against transformers
MAX_TOKENS = 64
TEMPERATURE = 0.7
MAX_SEQ_LEN = 1024


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median and quartiles of what was measured side by side several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Ratio":
        """From at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(round(median, 3), round(low, 3), round(high, 3))

    def __str__(self) -> str:
        return f"{self.median:5.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Cost:
    """One draft length at one batch size, against draft length 0 at the same batch size."""

    batch_size: int
    draft_length: int
    cost: Ratio  # of a whole cycle, in plain steps
    tokens_per_step: float  # with the drafts that were really accepted
    speedup: Ratio  # of decoding
    max_cost: float | None  # the limit, where there is one


@dataclass(frozen=True, slots=True)
class Peer:
    """Plain decoding against another program on the same weights."""

    name: str
    speedup: Ratio  # ours over theirs; below 1 theirs is faster
    tok_s: float
    our_tok_s: float
    same_tokens: float  # share of prompts with the same greedy answer
    least_speedup: float | None


class Timeline:
    """When the chunks of one answer came, and how many tokens each had."""

    def __init__(self) -> None:
        """No chunk yet."""
        self.times: list[float] = []  # processor seconds of the engine's thread
        self.clock: list[float] = []
        self.tokens: list[int] = []
        self.counts: list[int] = []
        self.is_done = threading.Event()

    def on_chunk(self, chunk: Chunk) -> None:
        """Called by the engine."""
        self.times.append(time.thread_time())
        self.clock.append(time.perf_counter())
        self.tokens += chunk.token_ids
        self.counts.append(len(chunk.token_ids))
        if chunk.finish_reason is not None:
            self.is_done.set()

    def wait(self) -> None:
        """Wait for the last chunk."""
        assert self.is_done.wait(TIMEOUT_S), "no last chunk"

    @property
    def tok_s(self) -> float:
        """Of decoding by the clock, the prompt's time left out."""
        return (len(self.tokens) - self.counts[0]) / (self.clock[-1] - self.clock[0])


def run(
    engine: CpuEngine, prompts: Sequence[tuple[int, ...]], temperature: float
) -> list[Timeline]:
    """Answers of MAX_TOKENS tokens to all prompts, submitted at once."""
    sampling = SamplingParams(MAX_TOKENS, temperature, seed=1, ignore_eos=True)
    timelines = []
    for prompt in prompts:
        timeline = Timeline()
        engine.submit(Request(prompt, sampling), timeline.on_chunk)
        timelines.append(timeline)
    for timeline in timelines:
        timeline.wait()
    return timelines


def cycle_seconds(timelines: Sequence[Timeline]) -> float | None:
    """The median time of a step in which all requests were decoding, if there was one."""
    first = max(timeline.times[0] for timeline in timelines)
    last = min(timeline.times[-1] for timeline in timelines)
    inside = [t for t in timelines[0].times if first <= t <= last]
    return statistics.median(b - a for a, b in pairwise(inside)) if len(inside) > 1 else None


def decoding_tok_s(timelines: Sequence[Timeline]) -> float:
    """All tokens of a batch but the prompts' own over the time from the first chunk to the last."""
    start = max(timeline.times[0] for timeline in timelines)
    counts = [
        count
        for timeline in timelines
        for at, count in zip(timeline.times, timeline.counts, strict=True)
        if at > start
    ]
    return sum(counts) / (max(timeline.times[-1] for timeline in timelines) - start)


def measure_costs(
    engines: dict[int, CpuEngine], prompts: Sequence[tuple[int, ...]], batch_size: int, groups: int
) -> list[Cost]:
    """Groups of `batch_size` prompts, each through all engines in turn."""
    costs: dict[int, list[float]] = {k: [] for k in engines}
    speedups: dict[int, list[float]] = {k: [] for k in engines}
    sizes: dict[int, list[int]] = {k: [] for k in engines}
    for group in range(groups):
        part = [prompts[(group * batch_size + i) % len(prompts)] for i in range(batch_size)]
        results = {k: run(engine, part, TEMPERATURE) for k, engine in engines.items()}
        for k, timelines in results.items():
            step, plain = cycle_seconds(timelines), cycle_seconds(results[0])
            if step and plain:
                costs[k].append(step / plain)
            speedups[k].append(decoding_tok_s(timelines) / decoding_tok_s(results[0]))
            sizes[k] += [count for timeline in timelines for count in timeline.counts[1:]]
    return [
        Cost(
            batch_size,
            k,
            Ratio.of(costs[k]),
            round(statistics.fmean(sizes[k]), 2),
            Ratio.of(speedups[k]),
            MAX_COST.get(k) if batch_size == 1 else None,
        )
        for k in engines
        if k > 0
    ]


@contextmanager
def opened_engines(packed: Path) -> Iterator[dict[int, CpuEngine]]:
    """An engine for each draft length, warmed up."""
    with ExitStack() as stack:
        engines = {}
        for k in DRAFT_LENGTHS:
            engine = CpuEngine(
                packed, draft_length=k, max_batch_size=max(BATCH_SIZES), max_seq_len=MAX_SEQ_LEN
            )
            stack.callback(engine.close)
            run(engine, [(5, 6, 7)], TEMPERATURE)
            engines[k] = engine
        yield engines


def load_prompts(checkpoint: Path, engine: CpuEngine, count: int) -> list[tuple[int, ...]]:
    """`count` of the checkpoint's held-out prompts, spread over all tasks."""
    lines = (checkpoint / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(line) for line in lines]
    picked = [values[i * len(values) // count] for i in range(count)]
    return [engine.encode_chat(value["messages"], value.get("tools")) for value in picked]


def compare_transformers(
    checkpoint: Path, engine: CpuEngine, prompts: Sequence[tuple[int, ...]]
) -> Peer:
    """Greedy answers with their prompts, against generate()."""
    import torch
    import transformers

    torch.set_num_threads(1)
    kind = transformers.Qwen3_5ForCausalLM
    model: Any = kind.from_pretrained(checkpoint, dtype=torch.float32)

    def generate(prompt: Sequence[int]) -> list[int]:
        with torch.no_grad():
            output = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                temperature=None,
                max_new_tokens=MAX_TOKENS,
                eos_token_id=-1,  # never: the other sides go past it too
                pad_token_id=0,
            )
        return [int(token) for token in output[0, len(prompt) :]]

    generate(prompts[0])
    ours, theirs, same = [], [], []
    for prompt in prompts:
        before = ended_at(engine)
        (timeline,) = run(engine, [prompt], 0.0)
        ours.append(MAX_TOKENS / (timeline.times[-1] - before))
        start = time.thread_time()
        tokens = generate(prompt)
        theirs.append(MAX_TOKENS / (time.thread_time() - start))
        same.append(tokens == timeline.tokens)
    name = f"transformers {transformers.__version__} generate()"
    return peer(name, ours, theirs, same, LEAST_SPEEDUP)


def ended_at(engine: CpuEngine) -> float:
    """The processor time of an idle engine's thread, from the last chunk of a tiny request."""
    timeline = Timeline()
    engine.submit(Request((5,), SamplingParams(max_tokens=1)), timeline.on_chunk)
    timeline.wait()
    return timeline.times[-1]


def compare_llama_cpp(
    checkpoint: Path, engine: CpuEngine, prompts: Sequence[tuple[int, ...]], quantization: str
) -> Peer:
    """Greedy decoding without the prompt, against llama.cpp on a GGUF of the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{quantization}.gguf"
        write_gguf(checkpoint, file, quantization)
        server = LlamaCpp(file, threads=1, context=MAX_SEQ_LEN)
        server.tok_s(prompts[0], MAX_TOKENS)
        ours, theirs, same = [], [], []
        for prompt in prompts:
            (timeline,) = run(engine, [prompt], 0.0)
            ours.append(timeline.tok_s)
            theirs.append(server.tok_s(prompt, MAX_TOKENS))
            until = first_end(timeline.tokens, engine)
            same.append(server.tokens(prompt, MAX_TOKENS)[:until] == timeline.tokens[:until])
        del server
    return peer(f"llama.cpp (xllamacpp) {quantization}", ours, theirs, same, None)


def first_end(tokens: Sequence[int], engine: CpuEngine) -> int:
    """How many tokens come before the first end token, which llama.cpp bans and we run past."""
    ends = [tokens.index(token) for token in engine.codec.eos_ids if token in tokens]
    return min(ends, default=len(tokens))


def peer(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    same: Sequence[bool],
    least: float | None,
) -> Peer:
    """The comparison of neighboring runs."""
    return Peer(
        name,
        Ratio.of([a / b for a, b in zip(ours, theirs, strict=True)]),
        round(statistics.median(theirs), 1),
        round(statistics.median(ours), 1),
        round(statistics.fmean(same), 3),
        least,
    )


def measure(checkpoint: Path, is_short: bool, log: Callable[[str], None]) -> dict[str, Any]:
    """All measurements, as the JSON output has them."""
    groups = 6 if is_short else 24
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        engines = stack.enter_context(opened_engines(pack(checkpoint, Path(folder) / "packed")))
        prompts = load_prompts(checkpoint, engines[0], groups)
        costs = []
        for batch_size in BATCH_SIZES:
            log(f"cycles at batch {batch_size}")
            count = max(4, groups // batch_size)
            costs += measure_costs(engines, prompts, batch_size, count)
        log("transformers")
        peers = [compare_transformers(checkpoint, engines[0], prompts[: groups // 2])]
        for quantization in ("f32", "q8_0"):
            log(f"llama.cpp {quantization}")
            peers.append(compare_llama_cpp(checkpoint, engines[0], prompts, quantization))
    return {
        "schema_version": 1,
        "machine": {"cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)},
        "costs": [asdict(cost) for cost in costs],
        "plain_decoding": [asdict(one) for one in peers],
    }


def show(result: dict[str, Any]) -> None:
    """The results as two tables."""
    machine = result["machine"]
    print(f"{machine['cores']} cores, load average {machine['load_average']}, one thread each")
    print("\nA whole cycle in plain steps (median, quartiles), and what it gains at T = 0.7")
    print("batch  K  cost                  limit  tokens/step  speed-up of decoding")
    for cost in result["costs"]:
        limit = f"{cost['max_cost']:.2f}" if cost["max_cost"] else "   -"
        print(
            f"{cost['batch_size']:5}  {cost['draft_length']}  {Ratio(**cost['cost'])!s:20}  "
            f"{limit:>5}  {cost['tokens_per_step']:11.2f}  {Ratio(**cost['speedup'])}"
        )
    print("\nPlain decoding (K = 0), ours over theirs; below 1 theirs is faster")
    for one in result["plain_decoding"]:
        least = one["least_speedup"]
        print(
            f"{one['name']:34} {Ratio(**one['speedup'])}"
            f"{f', at least {least:.1f} wanted' if least else ''}"
            f"  [{one['our_tok_s']:.0f} and {one['tok_s']:.0f} tok/s,"
            f" same greedy answer {one['same_tokens']:.0%}]"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help="a quarter of the prompts")
    parser.add_argument("--checkpoint", type=Path, default=ASSET)
    options = parser.parse_args()
    result = measure(options.checkpoint, options.short, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
