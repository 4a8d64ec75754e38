"""The TensorRT-LLM engine: `tensorrt_llm.LLM`'s asynchronous streaming behind the one interface.

Batching, scheduling and drafting happen inside TensorRT-LLM; here requests are handed over.
"""

from pathlib import Path
from typing import Any

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import read_json
from trt_mtp.serve.engine.base import (
    FinishReason,
    Request,
    SamplingParams,
    SpeculationCounters,
)
from trt_mtp.serve.engine.streamed import StreamedEngine, StreamedGeneration
from trt_mtp.serve.engine.trtllm_start import load_llm

# without any result while requests run. NVIDIA's own detector of hangs ends its executor after
# 300 s (tensorrt_llm/_torch/pyexecutor/hang_detector.py, recalled and not read again)
HANG_S = 330.0
FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "cancelled": "cancelled",
}


def sampling_params(sampling: SamplingParams, num_emitted: int = 0) -> dict[str, Any]:
    """The arguments of `tensorrt_llm.SamplingParams` for `sampling`, `num_emitted` tokens being
    part of the prompt.

    Greedy decoding is asked for by top_k = 1, which every version takes as that. Stop texts stay
    here, so that an answer is cut at the same character by every engine. Where no end token counts,
    min_tokens is not asked for, because drafting variants would refuse it.
    """
    wanted: dict[str, Any] = {
        "max_tokens": sampling.max_tokens - num_emitted,
        "ignore_eos": sampling.ignore_eos,
        "detokenize": False,
        "return_perf_metrics": True,
    }
    if sampling.min_tokens > num_emitted and not sampling.ignore_eos:
        wanted["min_tokens"] = sampling.min_tokens - num_emitted
    if sampling.temperature == 0:
        return {**wanted, "top_k": 1}
    wanted |= {"temperature": sampling.temperature, "seed": sampling.seed}
    if sampling.top_k:
        wanted["top_k"] = sampling.top_k
    if sampling.top_p < 1:
        wanted["top_p"] = sampling.top_p
    return wanted


def counters_of(
    generation: StreamedGeneration, has_schedule: bool, reason: FinishReason | None = None
) -> SpeculationCounters:
    """What the drafts of a request did, from what its version reports and what was counted here.

    Per-request counters read 0 in versions before pull request 17082. `decoding_iter` is right in
    all of them: it counts the prompt once, on its last chunk (SpecSampler._request_common_handling,
    tensorrt_llm/_torch/speculative/spec_sampler_base.py); every later iteration is a step that
    yields its accepted drafts and one token more.

    Under a schedule a step may draft less. Then drafts are known only if they are reported, and
    positions only if every step is seen to have drafted as much as it may.
    """
    output, draft_length = generation.output, generation.draft_length
    steps = max(iterations_of(output) - 1, 0)
    if draft_length == 0 or steps == 0:
        return SpeculationCounters(num_steps=steps)
    drafted, accepted = reported_totals(output)
    most = steps * draft_length
    if not drafted and has_schedule:
        return SpeculationCounters(num_steps=steps)
    positions = tuple(generation.accepted_per_position or ())
    if has_schedule and drafted != most:
        positions = ()
    if not drafted:
        drafted, accepted = most, min(max(generation.num_tokens - 1 - steps, 0), most)
    return SpeculationCounters(
        steps, drafted, accepted, positions, generation.cut(reason) if reason and positions else -1
    )


def count(generation: StreamedGeneration, num_iterations: int, num_new: int) -> None:
    """Count the drafts that a result's tokens show to be accepted, position by position.

    No version reports positions, but each iteration has a result of its own: its tokens are
    the accepted drafts and one more. Results that bring several (stream_interval) don't tell.
    """
    num_new_steps = num_iterations - 1 - generation.num_steps  # the first one is the prompt's
    if num_new_steps == 1:
        generation.count_step(num_new)
    elif num_new_steps > 1 or (num_iterations > 1 and num_new):
        generation.accepted_per_position = None
        generation.num_steps = num_iterations - 1


def reported_totals(output: Any) -> tuple[int, int]:
    """Drafts and accepted drafts of a request, as its version reports them; 0 where it doesn't."""
    metrics = getattr(output.outputs[0], "request_perf_metrics", None)
    reported = getattr(metrics, "speculative_decoding", None)
    drafted = int(getattr(reported, "total_draft_tokens", 0) or 0)
    return drafted, int(getattr(reported, "total_accepted_draft_tokens", 0) or 0)


def iterations_of(output: Any) -> int:
    """The iterations of a request so far, its prompt's among them."""
    return int(getattr(output, "decoding_iter", 0) or 0)


def is_alive(llm: Any) -> bool:
    """Whether TensorRT-LLM still takes requests.

    PyExecutor._handle_errors has a budget of errors, after which it fails all requests and shuts
    the executor down for good. `_check_health` is what trtllm-serve's /health asks (recalled and
    not read again); a version without it counts as alive.
    """
    check = getattr(llm, "_check_health", None)
    return check is None or bool(check())


class TrtllmEngine(StreamedEngine):
    """One variant on NVIDIA GPUs. See trt_mtp.serve.engine.base.Engine."""

    library = "TensorRT-LLM"
    hang_s = HANG_S

    def __init__(self, folder: Path) -> None:
        """Start the variant in `folder`; returns when it is ready.

        Raises InputError when its checkpoint is gone, TrtMtpError when TensorRT-LLM refuses it.
        """
        record = read_json(folder / "variant.json")
        super().__init__(folder, record)
        try:
            self._llm = load_llm(folder, record)
        except BaseException:
            self._end_loop()
            raise

    def _check(self, request: Request) -> None:
        super()._check(request)
        wanted = sampling_params(request.sampling, len(request.emitted_ids))
        if self.draft_length and "min_tokens" in wanted:
            # pull request 17955: dropped without a word before, refused since then
            raise InputError(
                "TensorRT-LLM can't hold an end token back while it drafts; send min_tokens with "
                "ignore_eos, or to a variant of draft length 0"
            )

    def _counters(
        self, generation: StreamedGeneration, reason: FinishReason | None = None
    ) -> SpeculationCounters:
        return counters_of(generation, self.has_schedule, reason)

    def _is_alive(self) -> bool:
        return is_alive(self._llm)

    def _shut_down(self) -> None:
        self._llm.shutdown()

    async def _generate(self, generation: StreamedGeneration) -> None:
        from tensorrt_llm import SamplingParams as TrtllmSampling

        request = generation.request
        # inside the loop, where alone its result can be awaited
        results = self._llm.generate_async(
            list(request.context_ids),
            TrtllmSampling(**sampling_params(request.sampling, len(request.emitted_ids))),
            streaming=True,
        )
        generation.stop, generation.output = results.abort, results
        async for output in results:
            if self._pass_on(generation, output):
                return
        self._finish(generation, "", (), "cancelled")  # aborted without a last result

    def _pass_on(self, generation: StreamedGeneration, output: Any) -> bool:
        """Send what is new in `output`; whether it was the last of it."""
        self._heard()
        if getattr(output, "error", None):
            raise TrtMtpError(str(output.error))
        completion = output.outputs[0]
        new = completion.token_ids[generation.num_tokens :]
        text, token_ids, is_stopped = generation.take(new)
        count(generation, iterations_of(output), len(token_ids))
        reason = completion.finish_reason
        if generation.is_cancelled:
            reason = "cancelled"
        elif is_stopped:
            generation.abort(False)
            reason = "stop"
        elif not (output.finished or reason):
            generation.send(text, token_ids, self._counters(generation))
            return False
        if reason not in FINISH_REASONS:
            raise TrtMtpError(f"TensorRT-LLM ended the answer with {reason!r}")
        self._finish(generation, text, token_ids, FINISH_REASONS[reason])
        return True
