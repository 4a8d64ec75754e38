"""What to measure next: few cells teach both factors, the other time goes to open choices.

speedup(task, K, B) = AL(task, K) / R(K, B). So first each task is measured at the deepest draft
length, at a concurrency that answers a batch at once, which teaches its acceptance at all lengths
and concurrencies; then every draft length at the lowest and the highest concurrency, which teaches
the step costs, and how far they may be off between. From then on a choice counts as settled,
measured or not, when the two factors leave no length that may be better by more than ALLOWED_LOSS.
Each next block is the one that narrows all open choices most per second (telling.py). On a noisy
machine it may be one that was asked before. Last come the cells that people look at first, each
task's choice at the lowest concurrency.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from trt_mtp.controller.calibrate.advice import best_index
from trt_mtp.controller.calibrate.confidence import radius
from trt_mtp.controller.calibrate.fit import Estimates, OpenChoice, estimate
from trt_mtp.controller.calibrate.results import Block, Results, Settings
from trt_mtp.controller.calibrate.step_costs import Noise
from trt_mtp.controller.calibrate.telling import Candidate, most_telling
from trt_mtp.controller.calibration import ALLOWED_LOSS, CellKey, Ended

SMALLEST_BATCH = 8  # prompts; radius() is infinite below
MOST_ASKED = 4  # times that a cell is asked each prompt: on a noisy machine, once tells little
TOLERANCE = 0.05  # half of a speedup's interval, relative


def next_block(settings: Settings, results: Results) -> Block | None:
    """The block to measure next; None if every choice is settled or nothing is left to ask.

    The same results always give the same block, so that a run that was killed goes on as it was.
    """
    if settings.all_cells or results.is_untold:  # without acceptance nothing is predicted
        context = _of_context(settings, results) if results.arms else None
        return context or _least_measured(settings, results)
    return (
        _of_acceptance(settings, results)
        or _of_step_costs(settings, results)
        or _of_context(settings, results)
        or _of_choices(settings, results)
    )


def _of_acceptance(settings: Settings, results: Results) -> Block | None:
    """A task at the deepest length that it was not refused at; None if each has one."""
    load = next((c for c in settings.concurrencies if c >= SMALLEST_BATCH), None)
    load = load or settings.concurrencies[-1]
    for task in random.Random(settings.seed).sample(settings.tasks, len(settings.tasks)):
        for length in reversed(settings.draft_lengths[1:]):
            keys = CellKey(task, length, load), CellKey(task, 0, load)
            if not results.num_prompts[keys[0]]:
                return _block(settings, results, task, load, (0, length))
            if not set(keys) & set(results.errors):
                break
    return None


def _of_step_costs(settings: Settings, results: Results) -> Block | None:
    """Every length at the lowest and the highest load, by one task; None if both have one."""
    loads = settings.concurrencies
    for load, task in zip(
        dict.fromkeys((loads[0], loads[-1])), references(settings, results) * 2, strict=False
    ):
        missing = [
            length
            for length in settings.draft_lengths[1:]
            if not any(results.num_prompts[CellKey(t, length, load)] for t in settings.tasks)
        ]
        if missing:
            return _block(settings, results, task, load, (0, *missing))
    return None


def _of_context(settings: Settings, results: Results) -> Block | None:
    """Two cells with long prompts: no speculation, and the deepest length. None if there are some.

    At the lowest load, where nobody else's prompt is read in the middle of an answer.
    """
    if not settings.context_tokens or results.long_arms:
        return None
    lengths = (0, settings.draft_lengths[-1])
    block = _block(settings, results, settings.tasks[0], settings.concurrencies[0], lengths)
    few = block.prompts[: SMALLEST_BATCH // 2]
    return replace(block, prompts=few, context_tokens=settings.context_tokens)


def ends_first(n: int) -> list[int]:
    """0 to n - 1 so that the first few lie apart.

    >>> ends_first(5)
    [0, 4, 2, 1, 3]
    """
    order, spans = [0, n - 1][:n], [(0, n - 1)]
    for low, high in spans:
        middle = (low + high) // 2
        if low < middle < high:
            order.append(middle)
            spans += [(low, middle), (middle, high)]
    return order


def references(settings: Settings, results: Results) -> tuple[str, ...]:
    """The tasks of the highest and the lowest acceptance: between them lie the others.

    By their first batches, so that the same ones stay the references.
    """
    accepted: dict[str, float] = {}
    for arm in results.arms:
        good = [answer for answer in arm.answers if not answer.error]
        steps = sum(answer.num_steps for answer in good)
        if arm.draft_length == settings.draft_lengths[-1] and steps:
            mean = sum(sum(answer.accepted_per_position) for answer in good) / steps
            accepted.setdefault(arm.block.task, mean)
    if not accepted:
        return ()
    ends = max(accepted, key=lambda t: accepted[t]), min(accepted, key=lambda t: accepted[t])
    return tuple(dict.fromkeys(ends))


def ended(settings: Settings, results: Results, key: CellKey) -> Ended | None:
    """The reason why a cell needs no more answers; None if it needs some."""
    if key in results.errors or CellKey(key.task, 0, key.concurrency) in results.errors:
        return "failed"
    if key.draft_length == 0:
        others = [key._replace(draft_length=length) for length in settings.draft_lengths[1:]]
        states = [ended(settings, results, k) for k in others if results.num_prompts[k]]
        return "tight" if states and all(states) else None
    speedups = results.speedups.get(key)
    if speedups:
        half = radius(speedups, results.effect(key.concurrency))
        mean = math.fsum(speedups) / len(speedups)
        if half <= TOLERANCE:
            return "tight"
        if mean + half < best_lower_bound(settings, results, key):
            return "hopeless"
    most = 1 if settings.all_cells else MOST_ASKED
    return (
        "max" if results.num_prompts[key] >= most * dict(settings.num_prompts)[key.task] else None
    )


def best_lower_bound(settings: Settings, results: Results, key: CellKey) -> float:
    """The highest lower end among the draft lengths beside a cell, 0 (no speculation) included."""
    bounds = [0.0]
    for length in settings.draft_lengths[1:]:
        speedups = results.speedups.get(key._replace(draft_length=length))
        if speedups:
            half = radius(speedups, results.effect(key.concurrency))
            bounds.append(math.fsum(speedups) / len(speedups) - half)
    return max(bounds)


def _of_choices(settings: Settings, results: Results) -> Block | None:
    """The block that tells most of the open choices; then what is looked at first.

    A choice that is settled for these prompts may be open for others, while some were not asked.
    """
    allowed = math.log1p(ALLOWED_LOSS)
    for of_prompts in (True, False):
        estimates = estimate(settings, results, of_prompts=of_prompts)
        choices = list(estimates.open_choices(allowed))
        candidates = [
            candidate
            for choice in choices
            for candidate in _candidates(settings, results, choice, estimates.noise, of_prompts)
        ]
        chosen = most_telling(estimates, choices, dict.fromkeys(candidates), allowed)
        if chosen is not None:
            lengths = (0, *chosen.lengths)
            block = _block(settings, results, chosen.task, chosen.concurrency, lengths)
            return replace(block, prompts=block.prompts[: chosen.num_prompts])
    return _of_first_look(settings, results, estimates)


def _of_first_look(settings: Settings, results: Results, estimates: Estimates) -> Block | None:
    """The choice of a task at the lowest load, if it was not measured; None if all were."""
    lowest = settings.concurrencies[0]
    for task in (task for task, load in estimates.speedups if load == lowest):
        chosen = settings.draft_lengths[best_index(estimates.speedups[task, lowest])]
        missing = [
            length
            for length in sorted({chosen or settings.draft_lengths[1], 0})
            if not results.num_prompts[CellKey(task, length, lowest)]
        ]
        if missing:
            return _block(settings, results, task, lowest, tuple(sorted({0, *missing})))
    return None


def _candidates(
    settings: Settings,
    results: Results,
    choice: OpenChoice,
    noise: Mapping[int, Noise],
    of_prompts: bool,
) -> Iterator[Candidate]:
    """More prompts for the task's acceptance; if asked of these prompts, the two closest lengths.

    Where batches differ more than the answers of one, few prompts tell as much as many.
    """
    task, load, deepest = choice.task, choice.concurrency, settings.draft_lengths[-1]
    available = dict(settings.num_prompts)[task]
    if len(_asked(results, task)) < available and not _failed(results, task, deepest):
        keys = (CellKey(task, deepest, c) for c in settings.concurrencies)
        most = max((key.concurrency for key in keys if results.num_prompts[key]), default=load)
        size = _block_size(most, available)
        yield _candidate(settings, results, task, most, (deepest,), size)
    if not of_prompts:
        return
    size = _block_size(load, available)
    if noise[load].batch > noise[load].answer / size:
        size = min(max(SMALLEST_BATCH // 2, load), available)
    left = tuple(
        length
        for length in choice.closest
        if length and not _is_exhausted(settings, results, CellKey(task, length, load))
    )
    if left:
        yield _candidate(settings, results, task, load, left, size)


def _candidate(
    settings: Settings,
    results: Results,
    task: str,
    load: int,
    lengths: tuple[int, ...],
    size: int,
) -> Candidate:
    available, num_asked = dict(settings.num_prompts)[task], len(_asked(results, task))
    known = 0.0
    if settings.draft_lengths[-1] in lengths and 0 < num_asked < available:
        after = min(num_asked + size, available)
        known = 1 - (1 / after - 1 / available) / (1 / num_asked - 1 / available)
    seconds = (1 + len(lengths)) * size * results.seconds_per_prompt(load)
    return Candidate(task, load, lengths, size, seconds, known)


def _is_exhausted(settings: Settings, results: Results, key: CellKey) -> bool:
    """True if a cell failed, or all its prompts were asked MOST_ASKED times."""
    if {key, key._replace(draft_length=0)} & set(results.errors):
        return True
    return results.num_prompts[key] >= MOST_ASKED * dict(settings.num_prompts)[key.task]


def _failed(results: Results, task: str, length: int) -> bool:
    return any(key.task == task and key.draft_length in (0, length) for key in results.errors)


def _asked(results: Results, task: str) -> Counter[int]:
    """How often each prompt of a task was asked with drafts."""
    drafting = [arm for arm in results.arms if arm.block.task == task and arm.draft_length]
    return Counter(prompt for arm in drafting for prompt in arm.block.prompts)


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
    """As many prompts as keep the load up: those that say most, else in an order that is drawn.

    New to the cell, so that its times are of more prompts; then new to the task, for acceptance.
    """
    available = dict(settings.num_prompts)[task]
    order = random.Random(f"{settings.seed}/{task}").sample(range(available), available)
    size = _block_size(concurrency, available)
    cell, anywhere = CellKey(task, lengths[-1], concurrency), _asked(results, task)
    here = Counter(n for arm in results.arms if arm.key == cell for n in arm.block.prompts)
    order.sort(key=lambda prompt: (here[prompt], anywhere[prompt]))
    return Block(results.num_blocks, task, concurrency, lengths, tuple(order[:size]))


def _block_size(concurrency: int, available: int) -> int:
    """Prompts that keep the load up."""
    return min(max(SMALLEST_BATCH, 2 * concurrency), available)
