"""The CPU engine: continuous batching over the numba forward passes, in one thread.

Each turn admits waiting requests to free slots, prefills one chunk of one prompt, and runs one
draft-and-verify cycle for all slots that are decoding.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.engine import cycle, forward
from trt_mtp.serve.engine.base import Chunk, EngineStatistics, Request
from trt_mtp.serve.engine.checks import check_request
from trt_mtp.serve.engine.grammar import Grammars
from trt_mtp.serve.engine.guided_cycle import guided_cycle
from trt_mtp.serve.engine.kernels import Array
from trt_mtp.serve.engine.logprobs import PlaceLogprobs, place_logprobs
from trt_mtp.serve.engine.sampling import NO_TOKEN
from trt_mtp.serve.engine.sequence import Sequence
from trt_mtp.serve.engine.text import TextCodec, TextEngine, begin_answer
from trt_mtp.serve.engine.weights import (
    load_weights,
    mixed_width,
    projection_width,
)

log = logging.getLogger(__name__)

CLOSE_S = 60.0  # for the step in progress when the engine is closed
OVERFLOW = (
    "the model computed values that are infinite or not a number: the checkpoint's weights are too "
    "large or damaged"
)
PREFILL_CHUNK = 64  # prompt tokens a turn; bounds how long decoding requests wait


def allocate(
    shape: forward.Shape,
    kinds: list[str],
    slots: int,
    length: int,
    k: int,
    end_ids: Collection[int] = (),
) -> tuple[forward.State, forward.Scratch, forward.Rows]:
    """Memory for `slots` requests of `length` positions at draft length k; touched when used."""
    num_attention = kinds.count("full_attention") + (1 if k else 0)
    num_linear = kinds.count("linear_attention")
    values = shape.num_value_heads * shape.value_dim
    channels = 2 * shape.num_key_heads * shape.key_dim + values
    verify_rows = slots * (k + 1)
    num_rows = max(PREFILL_CHUNK, verify_rows)

    def zeros(*size: int) -> Any:
        return np.zeros(size, np.float32)

    cache = (slots, num_attention, shape.num_kv_heads)
    state = forward.State(
        tokens=np.zeros((slots, length + 1), np.int32),
        done=np.zeros(slots, np.int64),
        pending=np.zeros(slots, np.int64),
        hidden=zeros(slots, k + 1, shape.hidden),
        keys=zeros(*cache, shape.head_dim, length),
        values=zeros(*cache, length, shape.head_dim),
        conv=zeros(slots, num_linear, shape.conv_kernel + k, channels),
        delta=zeros(
            slots, num_linear, k + 2, shape.num_value_heads, shape.key_dim, shape.value_dim
        ),
        temperature=np.zeros(slots),
        top_k=np.zeros(slots, np.int64),
        top_p=np.ones(slots),
        seed=np.zeros(slots, np.uint64),
        end_from=np.zeros(slots, np.int64),
        end_ids=np.array(sorted(end_ids), np.int64),
        answer_from=np.zeros(slots, np.int64),
        frequency=zeros(slots),
        presence=zeros(slots),
    )
    scratch = forward.Scratch(
        x=zeros(num_rows, shape.hidden),
        normed=zeros(num_rows, shape.hidden),
        wide=zeros(num_rows, projection_width(shape)),
        mixed=zeros(num_rows, mixed_width(shape)),
        added=zeros(num_rows, shape.hidden),
        logits=zeros(verify_rows, shape.vocab),
        scores=zeros(shape.num_heads // shape.num_kv_heads, length),
        probabilities=zeros(shape.vocab),
        channels=zeros(channels),
        delta=zeros(shape.value_dim),
        draft=zeros(slots, shape.hidden),
        seen=np.zeros(shape.vocab, np.bool_),
    )
    rows = forward.Rows(*(np.zeros(num_rows, np.int64) for _ in range(3)))
    return state, scratch, rows


def margin(logits: Array) -> float:
    """By how much the best of `logits` [V] leads."""
    second, best = np.partition(logits, -2)[-2:]
    return float(best - second)


class CpuEngine(TextEngine):
    """One variant on one CPU core. See trt_mtp.serve.engine.base.Engine."""

    def __init__(
        self, shared: Path, *, draft_length: int, max_batch_size: int, max_seq_len: int
    ) -> None:
        """Open the packed checkpoint in `shared` for `draft_length` drafts a step.

        `max_batch_size` requests run at once, each of at most `max_seq_len` tokens, answer
        included. Raises InputError when a file is missing or damaged.
        """
        self.draft_length = draft_length
        self.max_seq_len = max_seq_len
        length = max_seq_len + draft_length + 1  # a verify step may look past the last token
        self._weights, self._shape, kinds = load_weights(shared, length)
        self.codec = TextCodec(shared, self._shape.vocab)
        self._state, self._scratch, self._rows = allocate(
            self._shape, kinds, max_batch_size, length, draft_length, self.codec.eos_ids
        )
        self._masks = cycle.allocate_masks(max_batch_size, draft_length, self._shape.vocab)
        self._grammars = Grammars(shared, self.codec, self._shape.vocab)
        self._free = list(range(max_batch_size))
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in the order in which they were admitted
        self._is_shortest_next = False  # of the prompts; else the oldest
        self._wake = threading.Condition()
        self._is_closed = False
        self._failure = ""
        self._totals = dict.fromkeys(("requests", "steps", "output", "drafts", "accepted"), 0)
        self._thread = threading.Thread(target=self._run, name="cpu-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_chunk: Callable[[Chunk], None]) -> Sequence:
        """Queue `request`; `on_chunk` is called from the engine's thread, in order."""
        check_request(request, self._shape.vocab, self.max_seq_len)
        text = begin_answer(self.codec, request)
        guide = self._grammars.begin(request)
        sequence = Sequence(request, on_chunk, text, self.draft_length, guide)
        with self._wake:
            if self._is_closed:
                raise TrtMtpError(self._failure or "the engine is closed")
            self._waiting.append(sequence)
            self._totals["requests"] += 1
            self._wake.notify()
        return sequence

    def statistics(self) -> EngineStatistics:
        """Totals and what is in flight."""
        with self._wake:
            return EngineStatistics(
                num_requests=self._totals["requests"],
                num_running=len(self._running),
                num_waiting=len(self._waiting),
                num_steps=self._totals["steps"],
                num_output_tokens=self._totals["output"],
                num_draft_tokens=self._totals["drafts"],
                num_accepted_draft_tokens=self._totals["accepted"],
            )

    @property
    def failure(self) -> str:
        """Why it can't answer any more; empty while it can."""
        return self._failure

    def close(self) -> None:
        """Finish the step in progress and end every answer as cancelled."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_S)
        self._grammars.close()

    def _run(self) -> None:
        """The engine's thread: turn after turn until closed."""
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._prefill_one()
                self._decode()
        except Exception as error:
            log.exception("the engine stopped")
            self._failure = f"the engine stopped: {error}"
        with self._wake:
            self._is_closed = True
            left = [*self._running, *self._waiting]
            self._running, self._waiting = [], deque()
        for sequence in left:
            sequence.finish("error" if self._failure else "cancelled", self._failure)

    def _wait_for_work(self) -> bool:
        """Admit what fits; false when closed."""
        with self._wake:
            while not (self._is_closed or self._waiting or self._running):
                self._wake.wait()  # for ever, where no request comes
            while self._waiting and self._free and not self._is_closed:
                sequence = self._waiting.popleft()
                self._admit(sequence, self._free.pop())
                self._running.append(sequence)
            return not self._is_closed

    def _admit(self, sequence: Sequence, slot: int) -> None:
        state, sampling = self._state, sequence.request.sampling
        sequence.slot = slot
        state.tokens[slot, : sequence.num_context_tokens] = sequence.request.context_ids
        state.done[slot] = 0
        state.pending[slot] = 0
        state.conv[slot] = 0
        state.delta[slot] = 0
        state.temperature[slot] = sampling.temperature
        state.top_k[slot] = min(sampling.top_k, self._shape.vocab)
        state.top_p[slot] = sampling.top_p
        state.seed[slot] = sampling.seed
        state.answer_from[slot] = len(sequence.request.prompt_ids)
        state.frequency[slot] = sampling.frequency_penalty
        state.presence[slot] = sampling.presence_penalty
        state.end_from[slot] = 0
        if not (sampling.ignore_eos or sequence.guide):  # a guide holds them back itself
            state.end_from[slot] = len(sequence.request.prompt_ids) + sampling.min_tokens

    def _drop_cancelled(self) -> None:
        with self._wake:
            waiting = [sequence for sequence in self._waiting if sequence.is_cancelled]
            for sequence in waiting:
                self._waiting.remove(sequence)
        for sequence in waiting:
            sequence.finish("cancelled")
        for sequence in [s for s in self._running if s.is_cancelled]:
            self._release(sequence)
            sequence.finish("cancelled")

    def _next_to_prefill(self) -> Sequence | None:
        """In turns the oldest and the one with the least left, of those whose context isn't done.

        So no short prompt waits for long ones that came before it, and each long one has half of
        the turns at last, however many short ones come.
        """
        unread = [s for s in self._running if not s.is_prefilled]
        self._is_shortest_next = not self._is_shortest_next
        if self._is_shortest_next and unread:
            return min(unread, key=lambda s: s.num_context_tokens - s.num_prefilled)
        return next(iter(unread), None)

    def _prefill_one(self) -> None:
        """One chunk of one request whose context is not done."""
        sequence = self._next_to_prefill()
        if sequence is None:
            return
        num_context, slot = sequence.num_context_tokens, sequence.slot
        stop = min(sequence.num_prefilled + PREFILL_CHUNK, num_context)
        if sequence.guide is not None and stop == num_context:
            self._masks.is_set[0, 0] = sequence.guide.fill(self._masks.words[0, 0])
        cycle.prefill(
            self._weights,
            self._shape,
            self._state,
            self._scratch,
            self._rows,
            slot,
            stop,
            num_context,
            self.draft_length > 0,
            self._masks,
        )
        self._masks.is_set[0, 0] = False
        sequence.num_prefilled = stop
        if sequence.is_prefilled:
            if sequence.request.wants_margin:
                sequence.margin = margin(self._scratch.logits[0])
            token = int(self._state.tokens[slot, num_context])
            self._deliver(sequence, [token], self._logprobs(sequence, [token], 0))

    def _decode(self) -> None:
        """One draft-and-verify cycle for every request that is past its prompt."""
        batch = [s for s in self._running if s.is_prefilled]
        if not batch:
            return
        slots = np.array([s.slot for s in batch], np.int64)
        emitted = np.zeros(len(batch), np.int64)
        drafts = np.zeros((len(batch), self.draft_length), np.int64)
        memory = (self._weights, self._shape, self._state, self._scratch, self._rows)
        rows = (slots, drafts, emitted, self._masks)
        guides = [s.guide for s in batch]
        if any(guides):
            guided_cycle(*memory, *rows, guides)
        else:
            cycle.cycle(*memory, *rows)
        for b, (sequence, count) in enumerate(zip(batch, emitted.tolist(), strict=True)):
            done = int(self._state.done[sequence.slot])
            tokens = self._state.tokens[sequence.slot, done - count + 1 : done + 1].tolist()
            logprobs = self._logprobs(sequence, tokens, b * (self.draft_length + 1))
            self._deliver(sequence, tokens, logprobs, is_step=True)

    def _logprobs(
        self, sequence: Sequence, tokens: list[int], row: int
    ) -> tuple[PlaceLogprobs, ...]:
        """Of tokens whose logits are from `row` on."""
        num_top = sequence.request.num_logprobs
        if num_top is None or NO_TOKEN in tokens:
            return ()
        return tuple(
            place_logprobs(logits, token, num_top, self.codec.token_bytes)
            for logits, token in zip(self._scratch.logits[row:], tokens, strict=False)
        )

    def _deliver(
        self,
        sequence: Sequence,
        tokens: list[int],
        logprobs: tuple[PlaceLogprobs, ...],
        is_step: bool = False,
    ) -> None:
        error = OVERFLOW if NO_TOKEN in tokens else sequence.guide and sequence.guide.error
        if error:  # the tokens are anyone's
            self._release(sequence)
            sequence.finish("error", error)
            return
        before = sequence.num_output_tokens
        sequence.advance(tokens, self.codec.eos_ids, is_step, logprobs)
        self._totals["output"] += sequence.num_output_tokens - before
        if is_step:
            self._totals["steps"] += 1
            self._totals["drafts"] += self.draft_length
            self._totals["accepted"] += sequence.num_output_tokens - before - 1
        if sequence.finish_reason is not None:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        with self._wake:
            self._running.remove(sequence)
            self._free.append(sequence.slot)
