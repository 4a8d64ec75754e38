"""The vLLM engine: `AsyncLLM`'s streaming behind the one interface, on GPUs and on CPUs.

Batching, scheduling and drafting happen in vLLM's own process (EngineCore). With drafts it samples
by rejection, so that a seed gives another text at another draft length, of the same distribution.
"""

import asyncio
import itertools
import locale
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from trt_mtp.errors import TrtMtpError
from trt_mtp.files import read_json
from trt_mtp.serve.engine.base import FinishReason, SamplingParams, SpeculationCounters
from trt_mtp.serve.engine.streamed import StreamedEngine, StreamedGeneration

# without any result while requests run. vLLM ends its own process when a step takes 300 s
# (VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS, vllm/envs.py in 0.32.0)
HANG_S = 330.0
SEEDS = 2**63  # vLLM's are signed
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "cancelled"}


def sampling_params(
    sampling: SamplingParams, num_emitted: int, end_ids: frozenset[int], wants_margin: bool
) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams` for `sampling`, `num_emitted` tokens being part of the
    prompt.

    vLLM gets no tokenizer, so that the ids that end an answer are named. Stop texts stay here, so
    that an answer is cut at the same character by every engine.
    """
    wanted: dict[str, Any] = {
        "max_tokens": sampling.max_tokens - num_emitted,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": [] if sampling.ignore_eos else sorted(end_ids),
        "detokenize": False,
        "temperature": sampling.temperature,
    }
    if sampling.min_tokens > num_emitted and not sampling.ignore_eos:
        wanted["min_tokens"] = sampling.min_tokens - num_emitted
    if wants_margin:
        wanted["logprobs"] = 2
    if sampling.temperature > 0:
        wanted |= {"top_k": sampling.top_k, "top_p": sampling.top_p}
        wanted["seed"] = sampling.seed % SEEDS
    return wanted


def margin_of(completion: Any) -> float | None:
    """How far the best logit of a result's first token is above the second; None without logits."""
    if not completion.logprobs:
        return None
    best, second = sorted(entry.logprob for entry in completion.logprobs[0].values())[:-3:-1]
    return float(best - second)


class VllmEngine(StreamedEngine):
    """One variant on vLLM. See trt_mtp.serve.engine.base.Engine."""

    library = "vLLM"
    hang_s = HANG_S

    def __init__(self, folder: Path) -> None:
        """Start the variant in `folder`; returns when it is ready.

        Raises InputError when its checkpoint is gone, TrtMtpError when vLLM refuses it.
        """
        record = read_json(folder / "variant.json")
        super().__init__(folder, record)
        self._names = itertools.count()
        prepare_process(record["details"])
        shared = record["shared"]
        model = (folder / shared).resolve() if shared else record["checkpoint"]["path"]
        try:
            starting = start({"model": str(model), **record["details"]["engine_args"]})
            self._llm = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        except Exception as error:  # of whatever kind vLLM has for it
            self._end_loop()
            raise TrtMtpError(f"vLLM can't start {folder.name}: {error}") from error

    async def _generate(self, generation: StreamedGeneration) -> None:
        from vllm import SamplingParams as VllmSampling
        from vllm.sampling_params import RequestOutputKind

        request, name = generation.request, f"r{next(self._names)}"
        generation.stop = lambda: self._loop.create_task(self._llm.abort(name))
        wanted = sampling_params(
            request.sampling, len(request.emitted_ids), self.codec.eos_ids, request.wants_margin
        )
        outputs = self._llm.generate(
            {"prompt_token_ids": list(request.context_ids)},
            VllmSampling(**wanted, output_kind=RequestOutputKind.DELTA),
            name,
        )
        async for output in outputs:
            if self._pass_on(generation, output.outputs[0]):
                return
        self._finish(generation, "", (), "cancelled")  # aborted without a last result

    def _pass_on(self, generation: StreamedGeneration, completion: Any) -> bool:
        """Send what a step brought; whether it was the last one."""
        self._heard()
        is_first = generation.num_tokens == 0
        if is_first and generation.request.wants_margin:
            generation.margin = margin_of(completion)
        text, token_ids, is_stopped = generation.take(list(completion.token_ids))
        if token_ids and not is_first:  # the first token is the prompt's
            generation.count_step(len(token_ids))
        generation.output = completion.spec_decode_metrics or generation.output
        reason = "abort" if generation.is_cancelled else completion.finish_reason
        if is_stopped and reason != "abort":
            generation.abort(False)
            reason = "stop"
        if reason is None:
            generation.send(text, token_ids, self._counters(generation))
            return False
        if reason not in FINISH_REASONS:
            raise TrtMtpError(f"vLLM ended the answer with {reason!r}")
        self._finish(generation, text, token_ids, FINISH_REASONS[reason])
        return True

    def _counters(
        self, generation: StreamedGeneration, reason: FinishReason | None = None
    ) -> SpeculationCounters:
        return counters_of(generation, self.has_schedule, reason)

    def _is_alive(self) -> bool:
        return not self._llm.errored

    @property
    def failure(self) -> str:
        """Why it can't answer any more; empty while it can."""
        if not self._is_closed and self._llm.errored:
            return "vLLM's process has ended"
        return super().failure

    def _end_loop(self) -> None:
        if hasattr(self, "_llm"):  # its tasks are the loop's
            self._loop.call_soon_threadsafe(self._llm.shutdown)
        super()._end_loop()

    def _shut_down(self) -> None:
        """Nothing is left to free: vLLM ends with its loop."""


def counters_of(
    generation: StreamedGeneration, has_schedule: bool, reason: FinishReason | None = None
) -> SpeculationCounters:
    """What the drafts of a request did: from what each step brought, at the end from vLLM itself.

    Steps that come faster than they are read arrive together, so that only vLLM's own count at the
    end is certain (`RequestSpecDecodeMetrics`, vllm/v1/metrics/stats.py in 0.32.0). It counts what
    the last step accepted beyond the answer's end, which is left out here, as in every engine.
    Under a schedule a step may draft less; then positions are told only if every step drafted all
    it may.
    """
    draft_length, reported = generation.draft_length, generation.output
    if draft_length == 0:
        return SpeculationCounters(num_steps=max(generation.num_tokens - 1, 0))
    if reported is None:
        if has_schedule:
            return SpeculationCounters(num_steps=generation.num_steps)
        steps, positions = generation.num_steps, tuple(generation.accepted_per_position or ())
        return SpeculationCounters(steps, steps * draft_length, sum(positions), positions)
    accepted = list(reported.per_step_accepted)
    steps, drafted = len(accepted), reported.num_draft_tokens
    if accepted:
        generation.num_last = generation.num_tokens - 1 - sum(n + 1 for n in accepted[:-1])
        accepted[-1] = min(accepted[-1], max(generation.num_last - 1, 0))
    if drafted != steps * draft_length:
        return SpeculationCounters(steps, drafted, sum(accepted))
    positions = tuple(sum(n > j for n in accepted) for j in range(draft_length))
    cut = generation.cut(reason) if reason else -1
    return SpeculationCounters(steps, drafted, sum(accepted), positions, cut)


def prepare_process(details: dict[str, Any]) -> None:
    """Make this process one that vLLM can start others from; before vLLM is imported.

    Triton's Python is embedded: it takes text for ASCII, and its own program for Python.
    """
    os.environ.update(details["environment"])
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    sys.executable = details["python"]
    multiprocessing.set_executable(details["python"])


async def start(arguments: dict[str, Any]) -> Any:
    """`AsyncLLM` with these arguments; it belongs to the loop that this runs in."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
