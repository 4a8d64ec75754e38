"""What to measure next: few cells teach both factors, and the rest goes where a choice is open.

speedup(task, K, B) = AL(task, K) / R(K, B), so that first each task is measured at the deepest
draft length and the lowest concurrency, which teaches its acceptance at all lengths; then every
draft length and concurrency with two tasks, which teaches the step costs; then, one block after
the other, the task and concurrency whose best draft length is least certain.
"""

import math
import random

from trt_mtp.controller.calibration import Ended
from trt_mtp.controller.measure.confidence import radius
from trt_mtp.controller.measure.fit import Estimates, estimate
from trt_mtp.controller.measure.results import Block, CellKey, Results, Settings

SMALLEST_BATCH = 8  # prompts; radius() is infinite below
TOLERANCE = 0.05  # half of a speedup's interval, relative
OPEN_LOSS = 0.02  # what a wrong choice may cost before it is measured again
NUM_REFERENCES = 2  # tasks that the step costs are measured with


def next_block(settings: Settings, results: Results) -> Block | None:
    """The block to measure next; None when every choice is settled or nothing is left to ask.

    The same results always give the same block, so that a run that was killed goes on as it was.
    """
    lowest = settings.concurrencies[0]
    if settings.all_cells:
        return _least_measured(settings, results)
    tasks = random.Random(settings.seed).sample(settings.tasks, len(settings.tasks))
    for task in tasks:
        deepest = _deepest_untried(settings, results, task)
        if deepest:
            return _block(settings, results, task, lowest, (0, deepest))
    for concurrency in settings.concurrencies:
        for task in references(settings, results):
            missing = [
                length
                for length in settings.draft_lengths
                if not results.num_prompts[CellKey(task, length, concurrency)]
            ]
            if missing:
                return _block(settings, results, task, concurrency, (0, *missing))
    return _most_open(settings, results, estimate(settings, results))


def _deepest_untried(settings: Settings, results: Results, task: str) -> int | None:
    """The draft length to learn a task's acceptance with; None once one has answered it."""
    lowest = settings.concurrencies[0]
    for length in reversed(settings.draft_lengths[1:]):
        if not results.num_prompts[CellKey(task, length, lowest)]:
            return length
        if not {CellKey(task, length, lowest), CellKey(task, 0, lowest)} & set(results.errors):
            return None
    return None


def references(settings: Settings, results: Results) -> tuple[str, ...]:
    """The tasks of the highest and the lowest acceptance: between them lie the others."""
    lowest, deepest = settings.concurrencies[0], settings.draft_lengths[-1]
    lengths = []
    for task in settings.tasks:
        survival = results.survival[CellKey(task, deepest, lowest)].values()
        steps = sum(part.steps[0] for part in survival)
        if steps and CellKey(task, deepest, lowest) not in results.errors:
            lengths.append((sum(sum(part.accepted) for part in survival) / steps, task))
    if not lengths:
        return ()
    return tuple(dict.fromkeys((max(lengths)[1], min(lengths)[1])))[:NUM_REFERENCES]


def ended(settings: Settings, results: Results, key: CellKey) -> Ended | None:
    """Why a cell needs no more answers; None while it does."""
    if key in results.errors or CellKey(key.task, 0, key.concurrency) in results.errors:
        return "failed"
    if key.draft_length == 0:
        others = [key._replace(draft_length=length) for length in settings.draft_lengths[1:]]
        states = [ended(settings, results, k) for k in others if results.num_prompts[k]]
        return "tight" if states and all(states) else None
    speedups = results.speedups.get(key)
    if speedups:
        half = radius(speedups, results.effect)
        mean = math.fsum(speedups) / len(speedups)
        if half <= TOLERANCE:
            return "tight"
        if mean + half < best_lower_bound(settings, results, key):
            return "hopeless"
    if results.num_prompts[key] >= dict(settings.num_prompts)[key.task]:
        return "max"
    return None


def best_lower_bound(settings: Settings, results: Results, key: CellKey) -> float:
    """The highest lower end among the draft lengths beside a cell, 0 (no speculation) included."""
    bounds = [0.0]
    for length in settings.draft_lengths[1:]:
        speedups = results.speedups.get(key._replace(draft_length=length))
        if speedups:
            half = radius(speedups, results.effect)
            bounds.append(math.fsum(speedups) / len(speedups) - half)
    return max(bounds)


def _most_open(settings: Settings, results: Results, found: Estimates) -> Block | None:
    """A block of the likely lengths where a wrong choice may cost most."""
    best: tuple[float, str, int, list[int]] | None = None
    for task, concurrency in found.decisions():
        loss, contenders = found.open_loss(task, concurrency)
        lengths = [
            length
            for length in contenders
            if length and ended(settings, results, CellKey(task, length, concurrency)) is None
        ]
        if loss > OPEN_LOSS and lengths and (best is None or loss > best[0]):
            best = (loss, task, concurrency, lengths)
    if best is None:
        return None
    return _block(settings, results, best[1], best[2], (0, *best[3]))


def _least_measured(settings: Settings, results: Results) -> Block | None:
    """All lengths that haven't ended, of the task and concurrency with the fewest prompts."""
    open_lengths: dict[tuple[str, int], list[int]] = {}
    for key in settings.cells():
        if key.draft_length and ended(settings, results, key) is None:
            open_lengths.setdefault((key.task, key.concurrency), []).append(key.draft_length)
    if not open_lengths:
        return None
    task, concurrency = min(
        open_lengths, key=lambda pair: results.num_prompts[CellKey(pair[0], 0, pair[1])]
    )
    return _block(settings, results, task, concurrency, (0, *open_lengths[task, concurrency]))


def _block(
    settings: Settings, results: Results, task: str, concurrency: int, lengths: tuple[int, ...]
) -> Block:
    """The next prompts, in an order that the seed fixes; as many as keep the load up."""
    available = dict(settings.num_prompts)[task]
    order = random.Random(f"{settings.seed}/{task}").sample(range(available), available)
    size = min(max(SMALLEST_BATCH, 2 * concurrency), available)
    start = min(results.num_prompts[CellKey(task, lengths[-1], concurrency)], available - 1)
    prompts = tuple(order[start : start + size])
    return Block(results.num_blocks, task, concurrency, lengths, prompts)
