"""What the engine does in one go: prefill a piece of a prompt, or draft, verify and keep.

A draft is kept when it equals the token drawn from the model's own logits at its position.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trt_mtp.serve.engine import forward
from trt_mtp.serve.engine.compiler import kernel
from trt_mtp.serve.engine.forward import Ints, Rows, Scratch, Shape, State, Weights
from trt_mtp.serve.engine.kernels import Array
from trt_mtp.serve.engine.sampling import argmax, sample, uniform


class Masks(NamedTuple):
    """Which tokens a position may have, of the slots of a cycle and their next positions."""

    words: npt.NDArray[np.uint32]  # [B, K + 1, V / 32] a bit per token
    is_set: npt.NDArray[np.bool_]  # [B, K + 1] false where every token may come


def allocate_masks(slots: int, draft_length: int, vocab_size: int) -> Masks:
    """Masks of which none is set."""
    size = (slots, draft_length + 1)
    return Masks(np.zeros((*size, -(-vocab_size // 32)), np.uint32), np.zeros(size, np.bool_))


@kernel
def _mask(logits: Array, masks: Masks, b: int, i: int) -> None:
    """Leave of `logits` [V] those of tokens that may come."""
    if masks.is_set[b, i]:
        words = masks.words[b, i]
        for token in range(logits.shape[0]):
            if (words[token // 32] >> np.uint32(token % 32)) & np.uint32(1) == 0:
                logits[token] = -np.inf


@kernel
def _penalize(state: State, s: Scratch, row: int, slot: int, position: int) -> None:
    """Take from the logits of row `row` what the answer's tokens before `position` cost.

    logit - frequency * count - presence * (count > 0), as OpenAI has it
    (developers.openai.com/api/docs/guides/text-generation, frequency and presence penalties).
    """
    frequency, presence = state.frequency[slot], state.presence[slot]
    if frequency == 0 and presence == 0:
        return
    answer = state.tokens[slot, state.answer_from[slot] : position]
    for token in answer:
        s.logits[row, token] -= frequency
        if not s.seen[token]:
            s.seen[token] = True
            s.logits[row, token] -= presence
    for token in answer:
        s.seen[token] = False


@kernel
def _draw(state: State, s: Scratch, row: int, slot: int, position: int) -> int:
    """The token that goes to `position` of `slot`, from logits row `row`."""
    _penalize(state, s, row, slot, position)
    if position < state.end_from[slot]:
        for end in state.end_ids:
            s.logits[row, end] = -np.inf
    return sample(
        s.logits[row],
        state.temperature[slot],
        state.top_k[slot],
        state.top_p[slot],
        uniform(state.seed[slot], position),
        s.probabilities,
    )


@kernel
def prefill(
    weights: Weights,
    m: Shape,
    state: State,
    s: Scratch,
    rows: Rows,
    slot: int,
    stop: int,
    num_prompt: int,
    drafts: bool,
    masks: Masks,
) -> None:
    """Run prompt positions state.done[slot] .. stop; at stop == num_prompt draw the first token.

    Its mask is the first of `masks`.
    """
    start = state.done[slot]
    n = stop - start
    for row in range(n):
        rows.token[row] = state.tokens[slot, start + row]
        rows.slot[row] = slot
        rows.position[row] = start + row
    forward.trunk(weights, m, state, s, rows, n)
    state.done[slot] = stop
    if stop == num_prompt:
        # the last row alone; s.normed is still needed below
        s.added[0, :] = s.normed[n - 1]
        forward.logits(weights, m, s.added, 1, s.logits)
        _mask(s.logits[0], masks, 0, 0)
        state.tokens[slot, stop] = _draw(state, s, 0, slot, stop)
        state.hidden[slot, 0, :] = s.normed[n - 1]
        state.pending[slot] = 1
    if drafts:
        n = min(stop, num_prompt - 1) - start
        for row in range(n):
            rows.token[row] = state.tokens[slot, start + row + 1]
            s.added[row, :] = s.normed[row]
        forward.mtp_head(weights, m, state, s, rows, n)


@kernel
def begin_drafts(
    weights: Weights, m: Shape, state: State, s: Scratch, rows: Rows, slots: Ints
) -> None:
    """Bring the MTP cache of `slots` [B] up to date; s.draft [B, d] then is what drafts follow."""
    n = 0
    for b in range(slots.shape[0]):
        slot = slots[b]
        first = state.done[slot] - state.pending[slot]
        for i in range(state.pending[slot]):
            rows.token[n] = state.tokens[slot, first + i + 1]
            rows.slot[n] = slot
            rows.position[n] = first + i
            s.added[n, :] = state.hidden[slot, i]
            n += 1
    forward.mtp_head(weights, m, state, s, rows, n)
    row = -1
    for b in range(slots.shape[0]):
        row += state.pending[slots[b]]
        s.draft[b, :] = s.normed[row]


@kernel
def draft_token(
    weights: Weights,
    m: Shape,
    state: State,
    s: Scratch,
    rows: Rows,
    slots: Ints,
    drafts: Ints,
    k: int,
    masks: Masks,
) -> None:
    """Fill column `k` of drafts [B, K] with tokens that may come, and make ready for the next."""
    forward.draft_logits(weights, m, s.draft, slots.shape[0], s.logits)
    for b in range(slots.shape[0]):
        _mask(s.logits[b], masks, b, k)
        drafts[b, k] = argmax(s.logits[b])
    if k + 1 == drafts.shape[1]:
        return
    for b in range(slots.shape[0]):
        rows.token[b] = drafts[b, k]
        rows.slot[b] = slots[b]
        rows.position[b] = state.done[slots[b]] + k
        s.added[b, :] = s.draft[b]
    forward.mtp_head(weights, m, state, s, rows, slots.shape[0])
    for b in range(slots.shape[0]):
        s.draft[b, :] = s.normed[b]


@kernel
def verify(
    weights: Weights,
    m: Shape,
    state: State,
    s: Scratch,
    rows: Rows,
    slots: Ints,
    drafts: Ints,
    emitted: Ints,
    masks: Masks,
) -> None:
    """Run the drafts [B, K] of every slot in `slots` [B] through the model, keep what matches."""
    n, k = 0, drafts.shape[1]
    for b in range(slots.shape[0]):
        slot = slots[b]
        for i in range(k + 1):
            rows.token[n] = drafts[b, i - 1] if i > 0 else state.tokens[slot, state.done[slot]]
            rows.slot[n] = slot
            rows.position[n] = state.done[slot] + i
            n += 1
    forward.trunk(weights, m, state, s, rows, n)
    forward.logits(weights, m, s.normed, n, s.logits)
    for b in range(slots.shape[0]):
        slot, count = slots[b], 0
        for i in range(k + 1):
            row, position = b * (k + 1) + i, state.done[slot] + 1
            _mask(s.logits[row], masks, b, i)
            token = _draw(state, s, row, slot, position)
            state.tokens[slot, position] = token
            state.hidden[slot, i, :] = s.normed[row]
            state.done[slot] = position
            count += 1
            if i < k and token != drafts[b, i]:
                break
        state.pending[slot] = count
        emitted[b] = count


@kernel
def cycle(
    weights: Weights,
    m: Shape,
    state: State,
    s: Scratch,
    rows: Rows,
    slots: Ints,
    drafts: Ints,
    emitted: Ints,
    masks: Masks,
) -> None:
    """One step of every slot in `slots` [B]: draft K tokens, verify, keep what matches.

    drafts [B, K] (K may be 0) is filled with the drafts. A draft is kept when it equals the token
    drawn from the model's own logits at its position, so the answer is the one without drafts.
    emitted [B] counts the new tokens, 1 .. K + 1, which are appended to state.tokens. `masks` hold
    for the positions where they are set.
    """
    k = drafts.shape[1]
    if k > 0:
        begin_drafts(weights, m, state, s, rows, slots)
        for i in range(k):
            draft_token(weights, m, state, s, rows, slots, drafts, i, masks)
    verify(weights, m, state, s, rows, slots, drafts, emitted, masks)
