"""One variant in a process of its own: its answers to the probe requests, and what it costs.

A process each, because TensorRT-LLM reads its environment once, at import, and because memory is
then the variant's alone.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trt_mtp.errors import TrtMtpError
from trt_mtp.files import read_json
from trt_mtp.serve.apart import call_apart
from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine.base import Chunk, Engine, Request, SamplingParams
from trt_mtp.serve.engine.collect import Answer, collect
from trt_mtp.serve.processes import descendants, pss_bytes
from trt_mtp.serve.sampled import Answers
from trt_mtp.serve.verify import (
    PROMPTS,
    drift_requests,
    is_exact,
    probe_requests,
    sampled_requests,
)

Result = TypeVar("Result")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
STEP_TOKENS = 32
PROBE_TIMEOUT_S = 2 * 3600.0  # a large model is read from a slow disk, and compiled
# TensorRT-LLM's workers end after their parent: MPIPoolExecutor.shutdown returns when they are
# disconnected (tensorrt_llm/llmapi/mpi_session.py @00a1352a in NVIDIA/TensorRT-LLM)
RELEASE_S = 120.0
RELEASE_SLACK = 1 << 30  # more than before by less than this counts as released


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step with `batch_size` requests running, the median over them."""

    batch_size: int
    step_ms: float
    tokens_per_s: float  # of all requests together, prompts included
    acceptance_length: float  # tokens per step


@dataclass(frozen=True, slots=True)
class Probe:
    """What one variant answered and what it took."""

    requests: tuple[Request, ...]  # compared token for token
    answers: tuple[Answer, ...]
    sampled: tuple[Answers, ...]  # by prompt, compared by distribution; empty if all is exact
    load_s: float
    host_bytes: int  # of all its processes, shared pages by their share
    gpu_bytes: int | None  # more in use on all GPUs than before; None without nvidia-smi
    steps: tuple[StepTime, ...]

    def measured(self) -> dict[str, Any]:
        """The measurements, as the variant's record holds them."""
        return {
            "load_s": round(self.load_s, 3),
            "host_bytes": self.host_bytes,
            "gpu_bytes": self.gpu_bytes,
            "steps": [
                {
                    "batch_size": step.batch_size,
                    "step_ms": round(step.step_ms, 3),
                    "tokens_per_s": round(step.tokens_per_s, 1),
                    "acceptance_length": round(step.acceptance_length, 4),
                }
                for step in self.steps
            ],
        }


@dataclass(slots=True)
class _Timed:
    """When a request's first and last chunks came, and what they said."""

    first: Chunk | None = None
    last: Chunk | None = None
    first_at: float = 0.0
    last_at: float = 0.0
    is_done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, chunk: Chunk) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first, self.first_at = chunk, now
        self.last, self.last_at = chunk, now
        if chunk.finish_reason is not None:
            self.is_done.set()

    def finished(self) -> Chunk:
        """The last chunk, waited for; raises TrtMtpError if the engine failed."""
        self.is_done.wait()  # `probe_variant` ends the process of an engine that never answers
        assert self.last is not None
        if self.last.finish_reason == "error":
            raise TrtMtpError(self.last.error)
        return self.last

    @property
    def step_s(self) -> float:
        """Seconds of a step, without the wait for the prompt."""
        assert self.first is not None
        assert self.last is not None
        steps = self.last.counters.num_steps - self.first.counters.num_steps
        return (self.last_at - self.first_at) / max(steps, 1)


def probe_variant(folder: Path) -> Probe:
    """Probe the variant in `folder`, in a new process.

    Raises InputError and TrtMtpError as opening and running it does, and TrtMtpError after
    PROBE_TIMEOUT_S.
    """
    return _apart(folder, run_probe, folder)


def margins_of(folder: Path, requests: Sequence[Request]) -> list[float | None]:
    """How far the best logit of each request's next token is above the second, in a new process.

    None where the engine gives no logits. Raises as `probe_variant` does.
    """
    return _apart(folder, run_margins, folder, requests)


def _apart(folder: Path, function: Callable[..., Result], *arguments: object) -> Result:
    before, record = gpu_bytes_used(), read_json(folder / "variant.json")
    try:
        return call_apart(
            record["details"].get("python"),
            function,
            *arguments,
            what=f"verifying {folder}",
            timeout_s=PROBE_TIMEOUT_S,
        )
    finally:
        wait_for_release(before)


def wait_for_release(before: int | None) -> None:
    """Wait until no more GPU memory is in use than `before`, for RELEASE_S at most.

    The next variant plans with what is free. Somebody else may use the GPU too, so that this goes
    on after a line on stderr.
    """
    if before is None:
        return
    deadline = time.monotonic() + RELEASE_S
    while (gpu_bytes_used() or 0) > before + RELEASE_SLACK:
        if time.monotonic() > deadline:
            print(f"GPU memory is still in use {RELEASE_S:.0f} s after a variant", file=sys.stderr)
            return
        time.sleep(1.0)


def run_margins(folder: Path, requests: Sequence[Request]) -> list[float | None]:
    """The margins of `requests`, in this process."""
    engine = open_engine(folder)
    try:
        return [answer.margin for answer in collect(engine, requests)]
    finally:
        engine.close()


def run_probe(folder: Path) -> Probe:
    """Probe the variant in `folder`, in this process."""
    record = read_json(folder / "variant.json")
    before, start = gpu_bytes_used(), time.perf_counter()
    engine = open_engine(folder)
    load_s = time.perf_counter() - start
    try:
        requests = tuple(wanted_requests(engine, record))
        collect(engine, requests[:1])  # warm up: what is compiled at first use is compiled now
        answers = tuple(collect(engine, requests))
        sampled = tuple(sampled_answers(engine, record))
        steps = tuple(step_times(engine, record["max_batch_size"]))
        after = gpu_bytes_used()
        used = None if before is None or after is None else max(after - before, 0)
        return Probe(requests, answers, sampled, load_s, memory(), used, steps)
    finally:
        engine.close()


def memory() -> int:
    """Bytes of this process and of those that its engine started."""
    ours = os.getpid()
    return sum(pss_bytes(pid) for pid in (ours, *descendants(ours)))


def wanted_requests(engine: Engine, record: Mapping[str, Any]) -> Sequence[Request]:
    """The requests whose answers are compared token for token."""
    if is_exact(record["engine"]):
        return probe_requests(engine)
    return drift_requests(engine, record["max_seq_len"])


def sampled_answers(engine: Engine, record: Mapping[str, Any]) -> Iterator[Answers]:
    """By prompt, the answers that are compared by distribution."""
    if not is_exact(record["engine"]):
        for requests in sampled_requests(engine, record["draft_length"]):
            yield [answer.token_ids for answer in collect(engine, requests)]


def step_times(engine: Engine, max_batch_size: int) -> Iterator[StepTime]:
    """A step's time at every batch size up to the variant's."""
    for batch_size in BATCH_SIZES:
        if batch_size <= max_batch_size:
            yield step_time(engine, batch_size)


def step_time(engine: Engine, batch_size: int) -> StepTime:
    """A step's time with `batch_size` requests of different prompts."""
    sampling = SamplingParams(max_tokens=STEP_TOKENS, ignore_eos=True)
    prompts = [engine.encode(PROMPTS[index % len(PROMPTS)]) for index in range(batch_size)]
    timed = [_Timed() for _ in prompts]
    start = time.perf_counter()
    for prompt, on_chunk in zip(prompts, timed, strict=True):
        engine.submit(Request(prompt, sampling), on_chunk)
    last = [one.finished() for one in timed]
    wall = time.perf_counter() - start
    tokens = sum(chunk.num_output_tokens for chunk in last)
    steps = sum(chunk.counters.num_steps for chunk in last)
    return StepTime(
        batch_size=batch_size,
        step_ms=1000 * statistics.median(one.step_s for one in timed),
        tokens_per_s=tokens / wall,
        acceptance_length=(tokens - batch_size) / max(steps, 1),
    )


def gpu_bytes_used() -> int | None:
    """Memory in use on all GPUs, None without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers: Sequence[str] = done.stdout.split()
    return sum(map(int, numbers)) << 20 if done.returncode == 0 and numbers else None
