"""A cycle in which grammars say which tokens may come, at each drafted position too.

Drafts are drawn from what the grammar allows after those before them, so where it leaves one token
only, that is the draft. The same masks then hold for what the model itself draws: a position has
the mask that a plain step would have there, and so the token.
"""

from collections.abc import Sequence

from trt_mtp.serve.engine import cycle
from trt_mtp.serve.engine.cycle import Masks
from trt_mtp.serve.engine.forward import Ints, Rows, Scratch, Shape, State, Weights
from trt_mtp.serve.engine.guide import Guide


def guided_cycle(
    weights: Weights,
    m: Shape,
    state: State,
    s: Scratch,
    rows: Rows,
    slots: Ints,
    drafts: Ints,
    emitted: Ints,
    masks: Masks,
    guides: Sequence[Guide | None],
) -> None:
    """`cycle.cycle` of `slots` [B], of which those with one of `guides` [B] follow it.

    The guides are left as they were; who keeps tokens tells them.
    """
    given = [(b, guide) for b, guide in enumerate(guides) if guide is not None]
    k = drafts.shape[1]
    if k > 0:
        cycle.begin_drafts(weights, m, state, s, rows, slots)
    for i in range(k + 1):
        for b, guide in given:
            masks.is_set[b, i] = guide.fill(masks.words[b, i])
        if i < k:
            cycle.draft_token(weights, m, state, s, rows, slots, drafts, i, masks)
            for b, guide in given:
                guide.try_token(int(drafts[b, i]))
    for _, guide in given:
        guide.take_back()
    cycle.verify(weights, m, state, s, rows, slots, drafts, emitted, masks)
    masks.is_set[:] = False
