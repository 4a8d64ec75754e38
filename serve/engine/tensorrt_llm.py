"""The TensorRT-LLM engine: `tensorrt_llm.LLM`'s asynchronous streaming behind the one interface.

Batching, scheduling and drafting happen inside TensorRT-LLM; here requests are handed over and
answers cut into chunks, in one thread with an event loop.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import yaml

from trt_mtp.errors import TrtMtpError
from trt_mtp.files import read_json
from trt_mtp.serve.engine.base import (
    Chunk,
    EngineStatistics,
    FinishReason,
    Request,
    SamplingParams,
    SpeculationCounters,
)
from trt_mtp.serve.engine.checks import check_request
from trt_mtp.serve.engine.text import AnswerText, TextCodec, begin_answer

log = logging.getLogger(__name__)

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "cancelled": "cancelled",
}


def load_llm(folder: Path, record: Mapping[str, Any]) -> Any:
    """`tensorrt_llm.LLM` for the variant in `folder`.

    Its environment, the GPUs it may see among it, is set before tensorrt_llm is imported, because
    that is when it is read. Raises TrtMtpError when the variant can't be started.
    """
    details = record["details"]
    os.environ.update(details["environment"])
    text = (folder / details["llm_args"]).read_text(encoding="utf-8")
    try:
        from tensorrt_llm import LLM
        from tensorrt_llm.llmapi.llm_args import update_llm_args_with_extra_dict

        # as TensorRT-LLM's own Triton model does it: triton_backend/all_models/llmapi
        return LLM(**update_llm_args_with_extra_dict({}, yaml.safe_load(text)))
    except ImportError as error:
        raise TrtMtpError(
            f"{folder} needs tensorrt_llm, which can't be imported: {error}"
        ) from None
    except Exception as error:
        raise TrtMtpError(f"TensorRT-LLM can't start {folder.name}: {error}") from error


def sampling_params(sampling: SamplingParams, num_emitted: int = 0) -> dict[str, Any]:
    """The arguments of `tensorrt_llm.SamplingParams` for `sampling`, `num_emitted` tokens being
    part of the prompt.

    Greedy decoding is asked for by top_k = 1, which every version takes as that. Stop texts stay
    here, so that an answer is cut at the same character by every engine.
    """
    wanted: dict[str, Any] = {
        "max_tokens": sampling.max_tokens - num_emitted,
        "ignore_eos": sampling.ignore_eos,
        "detokenize": False,
        "return_perf_metrics": True,
    }
    if sampling.temperature == 0:
        return {**wanted, "top_k": 1}
    wanted |= {"temperature": sampling.temperature, "seed": sampling.seed}
    if sampling.top_k:
        wanted["top_k"] = sampling.top_k
    if sampling.top_p < 1:
        wanted["top_p"] = sampling.top_p
    return wanted


class TrtllmGeneration:
    """One request on its way through TensorRT-LLM; only the loop's thread changes it."""

    def __init__(
        self,
        request: Request,
        on_chunk: Callable[[Chunk], None],
        text: AnswerText,
        loop: asyncio.AbstractEventLoop,
        draft_length: int,
    ) -> None:
        self.request = request
        self.text = text
        self.num_tokens = 0  # of this engine
        self.num_iterations = 0  # its `decoding_iter` as of the last result
        self.accepted_per_position: list[int] | None = [0] * draft_length  # None: not known
        self.is_cancelled = False
        self.output: Any = None
        self._on_chunk = on_chunk
        self._loop = loop

    def cancel(self) -> None:
        """Stop within one step; the last chunk then has finish_reason "cancelled"."""
        self._loop.call_soon_threadsafe(self.abort, True)

    def abort(self, is_cancelled: bool) -> None:
        """End the request in TensorRT-LLM; on the loop's thread."""
        self.is_cancelled = self.is_cancelled or is_cancelled
        if self.output is not None:
            self.output.abort()

    def take(self, token_ids: list[int]) -> tuple[str, tuple[int, ...], bool]:
        """The text of new tokens, those of them up to a stop text, and whether there was one."""
        text = ""
        for count, token in enumerate(token_ids, start=1):
            self.num_tokens += 1
            piece, is_stopped = self.text.push(token)
            text += piece
            if is_stopped:
                return text, tuple(token_ids[:count]), True
        return text, tuple(token_ids), False

    def count(self, num_iterations: int, num_new: int) -> None:
        """Count the drafts that a result's tokens show to be accepted, position by position.

        No version reports positions, but each iteration has a result of its own: its tokens are
        the accepted drafts and one more. Results that bring several (stream_interval) don't tell.
        """
        num_steps, self.num_iterations = num_iterations - self.num_iterations, num_iterations
        if num_steps > 1 or (num_steps < 1 and num_new):
            self.accepted_per_position = None
        elif num_iterations > 1 and self.accepted_per_position is not None:  # 1 is the prompt's
            for j in range(min(num_new - 1, len(self.accepted_per_position))):
                self.accepted_per_position[j] += 1

    def send(
        self,
        text: str,
        token_ids: tuple[int, ...],
        counters: SpeculationCounters,
        finish_reason: FinishReason | None = None,
        error: str = "",
    ) -> None:
        """Hand a chunk on; a receiver that is gone ends the request."""
        num_output_tokens = len(self.request.emitted_ids) + self.num_tokens
        chunk = Chunk(text, token_ids, counters, num_output_tokens, finish_reason, error)
        try:
            self._on_chunk(chunk)
        except Exception:
            log.exception("a chunk was not taken")
            self.abort(True)


def counters_of(generation: TrtllmGeneration, draft_length: int) -> SpeculationCounters:
    """What the drafts of a request did, from what its version reports and what was counted here.

    Per-request counters read 0 in versions before pull request 17082. `decoding_iter` is right in
    all of them: the iterations of the request, the first of which is the prompt's and yields one
    token (py_decoding_iter in tensorrt_llm/_torch/pyexecutor/sampler.py); every later one is a
    step that yields its accepted drafts and one token more.
    """
    output = generation.output
    steps = max(iterations_of(output) - 1, 0)
    if draft_length == 0 or steps == 0:
        return SpeculationCounters(num_steps=steps)
    metrics = getattr(output.outputs[0], "request_perf_metrics", None)
    reported = getattr(metrics, "speculative_decoding", None)
    drafted = int(getattr(reported, "total_draft_tokens", 0) or 0)
    accepted = int(getattr(reported, "total_accepted_draft_tokens", 0) or 0)
    if not drafted:
        drafted = steps * draft_length
        accepted = min(max(generation.num_tokens - 1 - steps, 0), drafted)
    return SpeculationCounters(
        steps, drafted, accepted, tuple(generation.accepted_per_position or ())
    )


def iterations_of(output: Any) -> int:
    """The iterations of a request so far, its prompt's among them."""
    return int(getattr(output, "decoding_iter", 0) or 0)


class TrtllmEngine:
    """One variant on NVIDIA GPUs. See trt_mtp.serve.engine.base.Engine."""

    def __init__(self, folder: Path) -> None:
        """Start the variant in `folder`; returns when it is ready.

        Raises InputError when its checkpoint is gone, TrtMtpError when TensorRT-LLM refuses it.
        """
        record = read_json(folder / "variant.json")
        checkpoint = Path(record["checkpoint"]["path"])
        config = read_json(checkpoint / "config.json")
        self.draft_length = int(record["draft_length"])
        self.max_seq_len = int(record["max_seq_len"])
        self.codec = TextCodec(checkpoint)
        self._vocab_size = int(config.get("text_config", config)["vocab_size"])
        self._llm = load_llm(folder, record)
        self._totals = dict.fromkeys(("requests", "steps", "output", "drafts", "accepted"), 0)
        self._running: set[TrtllmGeneration] = set()
        self._tasks: set[Future[None]] = set()
        self._is_closed = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="tensorrt-llm-engine", daemon=True
        )
        self._thread.start()

    def encode(self, text: str) -> tuple[int, ...]:
        """`text` as token ids, without special tokens added."""
        return self.codec.encode(text)

    def encode_chat(
        self, messages: list[dict[str, object]], tools: list[dict[str, object]] | None = None
    ) -> tuple[int, ...]:
        """The token ids of the checkpoint's chat template over `messages`."""
        return self.codec.encode_chat(messages, tools)

    def submit(self, request: Request, on_chunk: Callable[[Chunk], None]) -> TrtllmGeneration:
        """Hand `request` over; `on_chunk` is called from the loop's thread, in order."""
        check_request(request, self._vocab_size, self.max_seq_len)
        text = begin_answer(self.codec, request)
        generation = TrtllmGeneration(request, on_chunk, text, self._loop, self.draft_length)
        with self._lock:
            if self._is_closed:
                raise TrtMtpError("the engine is closed")
            self._totals["requests"] += 1
            self._running.add(generation)
            self._start(self._answer(generation))
        return generation

    def _start(self, answer: Coroutine[Any, Any, None]) -> None:
        task = asyncio.run_coroutine_threadsafe(answer, self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, generation: TrtllmGeneration) -> None:
        try:
            await self._generate(generation)
        except Exception as error:  # TensorRT-LLM refused or failed; the client is told why
            log.exception("a request failed")
            generation.send("", (), SpeculationCounters(), "error", str(error) or repr(error))
        finally:
            with self._lock:
                self._running.discard(generation)

    async def _generate(self, generation: TrtllmGeneration) -> None:
        if generation.is_cancelled or self._is_closed:
            generation.send("", (), SpeculationCounters(), "cancelled")
            return
        from tensorrt_llm import SamplingParams as TrtllmSampling

        request = generation.request
        # inside the loop, where alone its result can be awaited
        generation.output = self._llm.generate_async(
            list(request.context_ids),
            TrtllmSampling(**sampling_params(request.sampling, len(request.emitted_ids))),
            streaming=True,
        )
        async for output in generation.output:
            if self._pass_on(generation, output):
                return
        self._finish(generation, "", (), "cancelled")  # aborted without a last result

    def _pass_on(self, generation: TrtllmGeneration, output: Any) -> bool:
        """Send what is new in `output`; whether it was the last of it."""
        if getattr(output, "error", None):
            raise TrtMtpError(str(output.error))
        completion = output.outputs[0]
        new = completion.token_ids[generation.num_tokens :]
        text, token_ids, is_stopped = generation.take(new)
        generation.count(iterations_of(output), len(token_ids))
        reason = completion.finish_reason
        if generation.is_cancelled:
            reason = "cancelled"
        elif is_stopped:
            generation.abort(False)
            reason = "stop"
        elif not (output.finished or reason):
            generation.send(text, token_ids, counters_of(generation, self.draft_length))
            return False
        if reason not in FINISH_REASONS:
            raise TrtMtpError(f"TensorRT-LLM ended the answer with {reason!r}")
        self._finish(generation, text, token_ids, FINISH_REASONS[reason])
        return True

    def _finish(
        self,
        generation: TrtllmGeneration,
        text: str,
        token_ids: tuple[int, ...],
        reason: FinishReason,
    ) -> None:
        counters = counters_of(generation, self.draft_length)
        with self._lock:
            self._totals["steps"] += counters.num_steps
            self._totals["output"] += generation.num_tokens
            self._totals["drafts"] += counters.num_draft_tokens
            self._totals["accepted"] += counters.num_accepted_draft_tokens
            self._running.discard(generation)  # before whoever waits for the end looks
        generation.send(text + generation.text.flush(), token_ids, counters, reason)

    def statistics(self) -> EngineStatistics:
        """Totals of finished answers; who waits inside TensorRT-LLM is not told, so none do."""
        with self._lock:
            return EngineStatistics(
                num_requests=self._totals["requests"],
                num_running=len(self._running),
                num_waiting=0,
                num_steps=self._totals["steps"],
                num_output_tokens=self._totals["output"],
                num_draft_tokens=self._totals["drafts"],
                num_accepted_draft_tokens=self._totals["accepted"],
            )

    def close(self) -> None:
        """End every answer as cancelled and shut TensorRT-LLM down."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            running, tasks = tuple(self._running), tuple(self._tasks)
        for generation in running:
            generation.cancel()
        for task in tasks:
            task.exception()  # waits
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._llm.shutdown()
