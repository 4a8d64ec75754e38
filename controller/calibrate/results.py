"""The measurements so far, in the sums that planning and fitting need."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trt_mtp.controller.calibrate.confidence import design_effect
from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibration import CellKey
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.position_counts import MAX_POSITIONS

Pairs = list[tuple[Answer, Answer]]  # of one batch: without speculation, and with

DISTURBANCE = 3.0  # times the median that a step may take


@dataclass(frozen=True, slots=True)
class Settings:
    """The cells of a run; draft lengths ascend and begin with 0, concurrencies ascend."""

    num_prompts: tuple[tuple[str, int], ...]  # of each task
    draft_lengths: tuple[int, ...]
    concurrencies: tuple[int, ...]
    seed: int = 0
    all_cells: bool = False  # every cell until it ends, for checking what a plan leaves out
    context_tokens: int = 0  # of two cells with long prompts, for what context costs; 0: none
    prior: StepCost | None = None  # what is known of step costs before the first batch

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the prompt set."""
        return tuple(task for task, _ in self.num_prompts)

    def cells(self) -> Iterator[CellKey]:
        """Every cell, with those at draft length 0."""
        for task in self.tasks:
            for concurrency in self.concurrencies:
                for draft_length in self.draft_lengths:
                    yield CellKey(task, draft_length, concurrency)


@dataclass(frozen=True, slots=True)
class Block:
    """One batch of prompts, to be answered at each of some draft lengths."""

    number: int
    task: str
    concurrency: int
    draft_lengths: tuple[int, ...]  # with 0, which the others are compared with
    prompts: tuple[int, ...]  # their places in the task's part of the prompt set
    context_tokens: int = 0  # put before each prompt, about; such answers count for nothing else


@dataclass(frozen=True, slots=True)
class Arm:
    """One draft length's answers to a block's prompts, in their order."""

    block: Block
    draft_length: int
    answers: tuple[Answer, ...]
    wall_s: float

    @property
    def key(self) -> CellKey:
        """The key of its cell."""
        return CellKey(self.block.task, self.draft_length, self.block.concurrency)


@dataclass(slots=True)
class Survival:
    """Steps that reached each draft position, and those whose draft there was accepted."""

    steps: list[float] = field(default_factory=lambda: [0.0] * MAX_POSITIONS)
    accepted: list[float] = field(default_factory=lambda: [0.0] * MAX_POSITIONS)

    def add(self, num_steps: int, accepted: Sequence[int], cut_after: int = -1) -> None:
        """Add an answer; `accepted[j]` steps had their first j + 1 drafts accepted.

        A last step that was cut before its first draft showed its outcome is left out.
        """
        for position, count in enumerate(accepted[:MAX_POSITIONS]):
            self.steps[position] += num_steps - (cut_after == 0)
            self.accepted[position] += count

    def join(self, other: "Survival") -> None:
        """Add the counts of `other`."""
        self.steps = [a + b for a, b in zip(self.steps, other.steps, strict=True)]
        self.accepted = [a + b for a, b in zip(self.accepted, other.accepted, strict=True)]


class Batch(NamedTuple):
    """One block's step times over those without speculation: logs by draft length, pair by pair."""

    task: str
    concurrency: int
    ratios: dict[int, list[float]]


@dataclass(slots=True)
class Results:
    """All arms. Pairs are answers of a draft length and of 0 to one prompt of one block."""

    arms: list[Arm] = field(default_factory=list)
    long_arms: list[Arm] = field(default_factory=list)  # of blocks with a long context
    answers: dict[CellKey, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    num_prompts: dict[CellKey, int] = field(default_factory=lambda: defaultdict(int))
    errors: dict[CellKey, str] = field(default_factory=dict)  # of cells that failed
    survival: dict[CellKey, dict[int, Survival]] = field(default_factory=lambda: defaultdict(dict))
    _open: dict[int, list[Arm]] = field(default_factory=lambda: defaultdict(list))
    _pairs: dict[Block, dict[int, Pairs]] = field(default_factory=lambda: defaultdict(dict))
    _compared: "Compared | None" = None

    @property
    def elapsed_s(self) -> float:
        """Seconds spent on measuring."""
        return sum(arm.wall_s for arm in self.all_arms)

    @property
    def all_arms(self) -> list[Arm]:
        """Those with a long context, too."""
        return self.arms + self.long_arms

    @property
    def num_blocks(self) -> int:
        """The number of blocks begun."""
        return max((arm.block.number + 1 for arm in self.all_arms), default=0)

    def seconds_per_prompt(self, concurrency: int) -> float:
        """Seconds of an arm for each prompt at a concurrency, or at the nearest one with arms."""
        loads = {arm.block.concurrency for arm in self.arms}
        near = min(loads, key=lambda load: (abs(math.log(load / concurrency)), load))
        arms = [arm for arm in self.arms if arm.block.concurrency == near]
        return sum(arm.wall_s for arm in arms) / sum(len(arm.answers) for arm in arms)

    @property
    def is_untold(self) -> bool:
        """True if answers came with drafts, and none said how many steps it took."""
        drafted = [a for key, part in self.answers.items() if key.draft_length for a in part]
        return bool(drafted) and not any(answer.num_steps for answer in drafted)

    @property
    def speedups(self) -> Mapping[CellKey, list[float]]:
        """Logs of the time per token without speculation over the cell's, pair by pair."""
        return self._compare().speedups

    @property
    def batches(self) -> Sequence[Batch]:
        """The step times of each block that were compared."""
        return self._compare().batches

    def effect(self, concurrency: int) -> float:
        """The design effect of times: 1 if the answers of a batch are independent."""
        return self._compare().effects.get(concurrency, 1.0)

    @property
    def num_disturbed(self) -> int:
        """The number of answers that all times skip."""
        return self._compare().num_disturbed

    def add(self, arm: Arm) -> None:
        """Add an arm; the arms of a block may come in any order."""
        if arm.block.context_tokens:
            self.long_arms.append(arm)
            return
        self._compared = None
        self.arms.append(arm)
        key = arm.key
        self.num_prompts[key] += len(arm.answers)
        good = [answer for answer in arm.answers if not answer.error]
        if 2 * len(good) < len(arm.answers):
            self.errors[key] = next(answer.error for answer in arm.answers if answer.error)
        self.answers[key] += good
        if arm.draft_length:
            for prompt, answer in zip(arm.block.prompts, arm.answers, strict=True):
                if not answer.error and answer.num_steps:
                    own = self.survival[key].setdefault(prompt, Survival())
                    own.add(answer.num_steps, answer.accepted_per_position, answer.cut_after)
        for other in self._open[arm.block.number]:
            plain, drafting = (arm, other) if arm.draft_length == 0 else (other, arm)
            if plain.draft_length == 0 and drafting.draft_length > 0:
                pairs = list(zip(plain.answers, drafting.answers, strict=True))
                self._pairs[arm.block][drafting.draft_length] = pairs
        self._open[arm.block.number].append(arm)

    def plain_steps(self, concurrency: int) -> list[float]:
        """Seconds per step of each answer without speculation at a concurrency."""
        return self._compare().step_times.get((0, concurrency), [])

    def _compare(self) -> "Compared":
        if self._compared is None:
            self._compared = _compared(self.answers, self._pairs)
        return self._compared


class Compared(NamedTuple):
    """The comparison of all answers, which each new arm changes."""

    step_times: dict[tuple[int, int], list[float]]  # by draft length and concurrency
    speedups: dict[CellKey, list[float]]
    batches: list[Batch]
    effects: dict[int, float]  # by concurrency
    num_disturbed: int


@dataclass(frozen=True, slots=True)
class _StepTimes:
    """Seconds per step of all answers, by draft length and concurrency.

    These two alone decide a step's time. So an answer with steps DISTURBANCE times longer or
    shorter than the median was disturbed, e.g. by a pause of the client in which messages pile up.
    Where steps are not told, the time per token stands for a step's.
    """

    times: dict[tuple[int, int], list[float]]
    medians: dict[tuple[int, int], float]

    @classmethod
    def of(cls, answers: Mapping[CellKey, list[Answer]]) -> "_StepTimes":
        times: dict[tuple[int, int], list[float]] = {}
        for key, part in answers.items():
            times.setdefault(key[1:], []).extend(filter(None, map(_pace_s, part)))
        return cls(times, {at: statistics.median(part) for at, part in times.items() if part})

    def is_undisturbed(self, answer: Answer, draft_length: int, concurrency: int) -> bool:
        if answer.tpot_s <= 0:
            return False
        median = self.medians[draft_length, concurrency]
        return median / DISTURBANCE < _pace_s(answer) < median * DISTURBANCE


def _pace_s(answer: Answer) -> float:
    """Seconds per step, per token where the steps are not told; 0 if there was none."""
    return answer.step_s or answer.tpot_s


def _compared(
    answers: Mapping[CellKey, list[Answer]],
    pairs: Mapping[Block, Mapping[int, Pairs]],
) -> Compared:
    """The comparison of all undisturbed answers."""
    steps = _StepTimes.of(answers)
    speedups: dict[CellKey, list[float]] = defaultdict(list)
    batches: list[Batch] = []
    paces: list[Batch] = []
    for block, by_length in pairs.items():
        batch = Batch(block.task, block.concurrency, {})
        pace = batch._replace(ratios={})
        for length, both in by_length.items():
            kept = [
                (base, answer)
                for base, answer in both
                if steps.is_undisturbed(base, 0, block.concurrency)
                and steps.is_undisturbed(answer, length, block.concurrency)
            ]
            if kept:
                key = CellKey(block.task, length, block.concurrency)
                speedups[key] += [math.log(base.tpot_s / answer.tpot_s) for base, answer in kept]
                ratios = [math.log(_pace_s(answer) / _pace_s(base)) for base, answer in kept]
                pace.ratios[length] = ratios
                if all(base.step_s and answer.step_s for base, answer in kept):
                    batch.ratios[length] = ratios
        batches += [batch] if batch.ratios else []
        paces += [pace] if pace.ratios else []
    num_disturbed = sum(
        _pace_s(answer) > 0 and not steps.is_undisturbed(answer, *key[1:])
        for key, part in answers.items()
        for answer in part
    )
    return Compared(steps.times, speedups, batches, _effects(paces), num_disturbed)


def _effects(batches: Sequence[Batch]) -> dict[int, float]:
    """The design effect of each concurrency's cells, at least that of all cells."""
    cells: dict[int, dict[CellKey, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for batch in batches:
        for length, values in batch.ratios.items():
            key = CellKey(batch.task, length, batch.concurrency)
            cells[batch.concurrency][key].append(values)
    overall = design_effect([part for group in cells.values() for part in group.values()])
    return {
        load: max(overall, design_effect(list(group.values()))) for load, group in cells.items()
    }
