"""Engines that batch inside a library with asynchronous streams: what they have in common.

The library's results are read in one thread with an event loop, and cut into chunks there.
"""

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import read_json
from trt_mtp.serve.contract import GUIDED, NUM_LOGPROBS
from trt_mtp.serve.engine.base import (
    Chunk,
    EngineStatistics,
    FinishReason,
    Request,
    SpeculationCounters,
    cut_after,
)
from trt_mtp.serve.engine.checks import check_request
from trt_mtp.serve.engine.text import AnswerText, TextCodec, TextEngine, begin_answer

log = logging.getLogger(__name__)

CLOSE_S = 30.0  # for answers to end when the engine is closed, and for its loop


class StreamedGeneration:
    """One request on its way through the library; only the loop's thread changes it."""

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
        self.draft_length = draft_length
        self.num_last = 0  # tokens of the last step; 0 before the first one
        self.num_steps = 0
        self.accepted_per_position: list[int] | None = [0] * draft_length  # None: not known
        self.margin: float | None = None  # to be sent with the next chunk
        self.is_cancelled = False
        self.output: Any = None  # what the library reports of it
        self.stop: Callable[[], object] | None = None  # ends it in the library, once it is there
        self._on_chunk = on_chunk
        self._loop = loop

    def cancel(self) -> None:
        """Stop within one step; the last chunk then has finish_reason "cancelled"."""
        self._loop.call_soon_threadsafe(self.abort, True)

    def abort(self, is_cancelled: bool) -> None:
        """End the request in the library; on the loop's thread."""
        self.is_cancelled = self.is_cancelled or is_cancelled
        if self.stop is not None:
            self.stop()

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

    def count_step(self, num_new: int) -> None:
        """Count the drafts that a step's tokens show to be accepted, position by position."""
        self.num_steps += 1
        self.num_last = num_new
        positions = self.accepted_per_position or []
        for j in range(min(num_new - 1, len(positions))):
            positions[j] += 1

    def cut(self, reason: FinishReason) -> int:
        """`cut_after` of an answer that ended for `reason`."""
        if reason in ("stop", "length") and self.num_last:
            return cut_after(self.num_last, self.draft_length)
        return -1

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
        margin, self.margin = self.margin, None
        chunk = Chunk(text, token_ids, counters, num_output_tokens, finish_reason, error, margin)
        try:
            self._on_chunk(chunk)
        except Exception:
            log.exception("a chunk was not taken")
            self.abort(True)


class StreamedEngine(TextEngine, ABC):
    """One variant behind such a library. See trt_mtp.serve.engine.base.Engine."""

    library: str  # its name in sentences
    hang_s: float  # without any result while requests run

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Read the text files of the variant in `folder`, and start the loop's thread.

        Raises InputError when its checkpoint is gone.
        """
        checkpoint = Path(record["checkpoint"]["path"])
        config = read_json(checkpoint / "config.json")
        self.draft_length = int(record["draft_length"])
        self.max_seq_len = int(record["max_seq_len"])
        self.has_schedule = "draft_len_schedule" in record["details"]
        self.codec = TextCodec(checkpoint)
        self._vocab_size = int(config.get("text_config", config)["vocab_size"])
        self._totals = dict.fromkeys(("requests", "steps", "output", "drafts", "accepted"), 0)
        self._running: set[StreamedGeneration] = set()
        self._tasks: set[Future[None]] = set()
        self._is_closed = False
        self._failure = ""
        self._heard_at = time.monotonic()  # of a result, or of a request that found none running
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"{folder.name}-engine", daemon=True
        )
        self._thread.start()

    @abstractmethod
    async def _generate(self, generation: StreamedGeneration) -> None:
        """Have the library answer, and send what it yields; ends with `_finish`."""

    @abstractmethod
    def _counters(
        self, generation: StreamedGeneration, reason: FinishReason | None = None
    ) -> SpeculationCounters:
        """What the drafts of a request did so far."""

    @abstractmethod
    def _is_alive(self) -> bool:
        """Whether the library still takes requests; not on the loop's thread."""

    @abstractmethod
    def _shut_down(self) -> None:
        """Free what the library holds."""

    def submit(self, request: Request, on_chunk: Callable[[Chunk], None]) -> StreamedGeneration:
        """Hand `request` over; `on_chunk` is called from the loop's thread, in order."""
        self._check(request)
        text = begin_answer(self.codec, request)
        generation = StreamedGeneration(request, on_chunk, text, self._loop, self.draft_length)
        with self._lock:
            if self._is_closed:
                raise TrtMtpError("the engine is closed")
            if self._failure:
                raise TrtMtpError(self._failure)
            if not self._running:
                self._heard_at = time.monotonic()
            self._totals["requests"] += 1
            self._running.add(generation)
            self._start(self._answer(generation))
        return generation

    def _check(self, request: Request) -> None:
        """Raise InputError for a request that can't be run."""
        check_request(request, self._vocab_size, self.max_seq_len)
        unable = {
            GUIDED: request.guided,
            NUM_LOGPROBS: request.num_logprobs,
            "frequency_penalty": request.sampling.frequency_penalty or None,
            "presence_penalty": request.sampling.presence_penalty or None,
        }
        for name, value in unable.items():
            if value is not None:
                raise InputError(
                    f"{name} is not supported by variants of {self.library}; "
                    "send it to one of the CPU engine"
                )

    def _start(self, answer: Coroutine[Any, Any, None]) -> None:
        task = asyncio.run_coroutine_threadsafe(answer, self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, generation: StreamedGeneration) -> None:
        try:
            if generation.is_cancelled or self._is_closed:
                generation.send("", (), SpeculationCounters(), "cancelled")
            else:
                await self._generate(generation)
        except Exception as error:  # the library refused or failed; the client is told why
            log.exception("a request failed")
            if not await asyncio.to_thread(self._is_alive):
                self._failure = f"{self.library} has shut down after an error: {error}"
            generation.send("", (), SpeculationCounters(), "error", str(error) or repr(error))
        finally:
            with self._lock:
                self._running.discard(generation)

    def _heard(self) -> None:
        """Note a result of the library."""
        self._heard_at = time.monotonic()

    def _finish(
        self,
        generation: StreamedGeneration,
        text: str,
        token_ids: tuple[int, ...],
        reason: FinishReason,
    ) -> None:
        counters = self._counters(generation, reason)
        with self._lock:
            self._totals["steps"] += counters.num_steps
            self._totals["output"] += generation.num_tokens
            self._totals["drafts"] += counters.num_draft_tokens
            self._totals["accepted"] += counters.num_accepted_draft_tokens
            self._running.discard(generation)  # before whoever waits for the end looks
        generation.send(text + generation.text.flush(), token_ids, counters, reason)

    def statistics(self) -> EngineStatistics:
        """Totals of finished answers; who waits inside the library is not told, so none do."""
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

    @property
    def failure(self) -> str:
        """Why it can't answer any more; empty while it can."""
        if self._failure or self._is_closed:
            return self._failure
        silent_s = time.monotonic() - self._heard_at
        if self._running and silent_s > self.hang_s:
            return f"{self.library} gave no result for {silent_s:.0f} s while requests run"
        return ""

    def close(self) -> None:
        """End every answer as cancelled and shut the library down."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            running, tasks = tuple(self._running), tuple(self._tasks)
        for generation in running:
            generation.cancel()
        wait(tasks, CLOSE_S)
        self._end_loop()
        self._shut_down()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()
