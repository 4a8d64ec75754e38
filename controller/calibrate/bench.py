"""One prompt set against one model, a variant or the gateway: the numbers per task.

Columns are named as NVIDIA's tools name them where they have them. AIPerf (docs/reference of
ai-dynamo/aiperf): `request_count`, `time_to_first_token`, `inter_token_latency`, which is
(request_latency - time_to_first_token) / (tokens - 1), what others call TPOT,
`inter_chunk_latency`, `request_latency`, `output_token_throughput`. ModelOpt's specdec_bench
(metrics/specbench.py and acceptance_rate.py in examples/specdec_bench of NVIDIA/Model-Optimizer):
`Category_AL`, the mean over requests of each one's acceptance length, `Average_AL`,
`Conditional_Acceptance_Rate` and `Joint_Acceptance_Rate` by the number of tokens that a step
brings, of which the first is the model's own, hence 1.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from trt_mtp.controller.calibrate.confidence import percentiles_ms, rounded
from trt_mtp.controller.calibrate.load_client import Answer, Batch, LoadClient, request_bytes
from trt_mtp.controller.calibrate.openai.client import OpenAiClient
from trt_mtp.controller.calibrate.openai.server import OpenAiServer
from trt_mtp.controller.calibrate.prompt_sets import PromptSet
from trt_mtp.controller.calibration import Percentiles
from trt_mtp.controller.client import Prompt
from trt_mtp.errors import TrtMtpError
from trt_mtp.interrupts import run_async
from trt_mtp.progress import Meter

ALL = "all"
LATENCIES = (
    "time_to_first_token",
    "inter_token_latency",
    "inter_chunk_latency",
    "request_latency",
)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One line of the table; latencies in milliseconds."""

    task: str
    request_count: int
    error_request_count: int
    output_tokens: int
    output_token_throughput: float  # tokens a second of all requests at a time together
    latencies: Mapping[str, Percentiles]  # by the names in LATENCIES
    category_al: float
    acceptance_rate: float
    joint: tuple[float, ...]  # P(a step brings at least n tokens), n = 1 …
    error: str  # the first one

    @property
    def conditional(self) -> tuple[float, ...]:
        """P(a step brings at least n tokens, given that it brings n - 1)."""
        before = (1.0, *self.joint)
        return tuple(
            rounded(now / last) if last else 0.0
            for now, last in zip(self.joint, before, strict=False)
        )

    def as_json(self) -> dict[str, Any]:
        """The line in `trt-mtp bench --json`."""
        counted = {str(n): rate for n, rate in enumerate(self.joint, 1)}
        is_told = bool(self.joint)
        conditional = {str(n): rate for n, rate in enumerate(self.conditional, 1)}
        return {
            "task": self.task,
            "request_count": self.request_count,
            "error_request_count": self.error_request_count,
            "total_output_tokens": self.output_tokens,
            "output_token_throughput": self.output_token_throughput,
            **{name: value._asdict() for name, value in self.latencies.items()},
            "Category_AL": self.category_al if is_told else None,
            "acceptance_rate": self.acceptance_rate if is_told else None,
            "Conditional_Acceptance_Rate": conditional,
            "Joint_Acceptance_Rate": counted,
            "error": self.error,
        }


class TaskAnswers(NamedTuple):
    """One task's answers, in the order of its prompts."""

    task: str
    answers: tuple[Answer, ...]
    elapsed_s: float


class Asking(Protocol):
    """A connection on which requests are answered in batches."""

    async def answers(self, requests: Sequence[bytes], concurrency: int) -> Batch:
        """The answers in the order of the requests, with that many in flight throughout."""

    async def close(self) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured: how it is asked, and where."""

    url: str
    model: str
    request: Callable[[Prompt], bytes]
    connect: Callable[[], Asking]  # inside the event loop
    notes: dict[str, None] = field(default_factory=dict)  # what it doesn't tell; grows meanwhile


def triton_target(url: str, model: str) -> Target:
    """A model of a Triton server or the gateway at `url`, host:port."""
    return Target(url, model, lambda prompt: request_bytes(model, prompt), lambda: LoadClient(url))


def openai_target(server: OpenAiServer) -> Target:
    """A model behind OpenAI's API."""
    notes: dict[str, None] = {}
    return Target(
        server.base_url, server.model, server.body, lambda: OpenAiClient(server, None, notes), notes
    )


def bench(
    target: Target, prompts: PromptSet, concurrency: int, seed: int, meter: Meter
) -> Iterator[TaskAnswers]:
    """The answers of one task after the other, in an order that the seed fixes.

    Each task has the whole load. Raises TrtMtpError if the server is lost or nothing was
    answered.
    """
    tasks = random.Random(seed).sample(sorted(prompts.prompts), len(prompts.prompts))
    done, total, errors = 0, sum(map(len, prompts.prompts.values())), list[str]()
    for task in tasks:
        meter.update(f"{task} at {concurrency}", done, total)
        requests = [target.request(prompt) for prompt in prompts.prompts[task]]
        batch = run_async(_ask(target, requests, concurrency, is_first=not done))
        done += len(batch.answers)
        errors += [answer.error for answer in batch.answers if answer.error]
        yield TaskAnswers(task, batch.answers, batch.elapsed_s)
    if len(errors) == total:
        raise TrtMtpError(f"{target.model} answered nothing: {errors[0]}")


def table(prompts: PromptSet, measured: Sequence[TaskAnswers]) -> list[TaskResult]:
    """A line for each task, in the order of the tasks, and one for all of them together."""
    by_task = {one.task: result_of(*one) for one in measured}
    every = [answer for one in measured for answer in one.answers]
    together = result_of(ALL, every, sum(one.elapsed_s for one in measured))
    return [*(by_task[task] for task in prompts.prompts), together]


async def _ask(
    target: Target, requests: Sequence[bytes], concurrency: int, is_first: bool
) -> Batch:
    client = target.connect()
    try:
        if is_first:  # warm-up, thrown away
            _require_server(target.url, await client.answers(requests[:2], concurrency))
        batch = await client.answers(requests, concurrency)
        _require_server(target.url, batch)
        return batch
    finally:
        await client.close()


def _require_server(url: str, batch: Batch) -> None:
    if batch.lost:
        raise TrtMtpError(f"the server at {url} was lost: {batch.lost}")


def result_of(task: str, answers: Sequence[Answer], elapsed_s: float) -> TaskResult:
    """The line of one task's answers, which took `elapsed_s` together."""
    good = [answer for answer in answers if not answer.error]
    tokens = sum(answer.num_output_tokens for answer in good)
    latencies = (
        [a.ttft_s for a in good],
        [a.tpot_s for a in good if a.tpot_s > 0],
        [gap for a in good for gap in a.itl_s],
        [a.ttft_s + a.decode_s for a in good],
    )
    steps = sum(answer.num_steps for answer in good)
    depth = max((len(a.accepted_per_position) for a in good), default=0)
    accepted = [
        sum(a.accepted_per_position[j] for a in good if j < len(a.accepted_per_position))
        for j in range(depth)
    ]
    drafted = sum(a.num_steps * len(a.accepted_per_position) for a in good)
    lengths = [1 + sum(a.accepted_per_position) / a.num_steps for a in good if a.num_steps]
    return TaskResult(
        task=task,
        request_count=len(good),
        error_request_count=len(answers) - len(good),
        output_tokens=tokens,
        output_token_throughput=rounded(tokens / elapsed_s) if elapsed_s > 0 else 0.0,
        latencies={
            name: percentiles_ms(values) for name, values in zip(LATENCIES, latencies, strict=True)
        },
        category_al=rounded(sum(lengths) / len(lengths)) if lengths else 1.0,
        acceptance_rate=rounded(sum(accepted) / drafted) if drafted else 0.0,
        joint=(1.0, *(rounded(count / steps) for count in accepted)) if steps else (),
        error=next((answer.error for answer in answers if answer.error), ""),
    )
