"""What was measured so far, in the sums that planning and fitting ask for."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trt_mtp.controller.counts import MAX_POSITIONS
from trt_mtp.controller.measure.confidence import design_effect
from trt_mtp.controller.measure.load_client import Answer

Pairs = list[tuple[Answer, Answer]]  # of one batch: without speculation, and with

DISTURBANCE = 3.0  # times the median that a step may take


class CellKey(NamedTuple):
    """A cell: task, draft length, requests at a time."""

    task: str
    draft_length: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run measures; draft lengths ascend and begin with 0, concurrencies ascend."""

    num_prompts: tuple[tuple[str, int], ...]  # of each task
    draft_lengths: tuple[int, ...]
    concurrencies: tuple[int, ...]
    seed: int = 0
    all_cells: bool = False  # every cell until it ends, for checking what a plan leaves out

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the prompt set."""
        return tuple(task for task, _ in self.num_prompts)

    def cells(self) -> Iterator[CellKey]:
        """Every cell, those without speculation among them."""
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


@dataclass(frozen=True, slots=True)
class Arm:
    """One draft length's answers to a block's prompts, in their order."""

    block: Block
    draft_length: int
    answers: tuple[Answer, ...]
    wall_s: float

    @property
    def key(self) -> CellKey:
        """The cell that it belongs to."""
        return CellKey(self.block.task, self.draft_length, self.block.concurrency)


@dataclass(slots=True)
class Survival:
    """Steps that reached each draft position, and those whose draft there was accepted."""

    steps: list[float] = field(default_factory=lambda: [0.0] * MAX_POSITIONS)
    accepted: list[float] = field(default_factory=lambda: [0.0] * MAX_POSITIONS)

    def add(self, num_steps: int, accepted: Sequence[int]) -> None:
        """Add an answer; `accepted[j]` steps had their first j + 1 drafts accepted."""
        for position, count in enumerate(accepted[:MAX_POSITIONS]):
            self.steps[position] += num_steps
            self.accepted[position] += count

    def join(self, other: "Survival") -> None:
        """Add what `other` counted."""
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
    answers: dict[CellKey, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    num_prompts: dict[CellKey, int] = field(default_factory=lambda: defaultdict(int))
    errors: dict[CellKey, str] = field(default_factory=dict)  # of cells that failed
    survival: dict[CellKey, dict[int, Survival]] = field(default_factory=lambda: defaultdict(dict))
    _open: dict[int, list[Arm]] = field(default_factory=lambda: defaultdict(list))
    _pairs: dict[Block, dict[int, Pairs]] = field(default_factory=lambda: defaultdict(dict))
    _compared: "Compared | None" = None

    @property
    def elapsed_s(self) -> float:
        """Time spent on measuring."""
        return sum(arm.wall_s for arm in self.arms)

    @property
    def num_blocks(self) -> int:
        """Blocks begun."""
        return max((arm.block.number + 1 for arm in self.arms), default=0)

    @property
    def speedups(self) -> Mapping[CellKey, list[float]]:
        """Logs of the time per token without speculation over the cell's, pair by pair."""
        return self._compare().speedups

    @property
    def batches(self) -> Sequence[Batch]:
        """The step times of each block that were compared."""
        return self._compare().batches

    def effect(self, concurrency: int) -> float:
        """The design effect of times: 1 where the answers of a batch are independent."""
        return self._compare().effects.get(concurrency, 1.0)

    @property
    def num_disturbed(self) -> int:
        """Answers left out of all times."""
        return self._compare().num_disturbed

    def add(self, arm: Arm) -> None:
        """Take in an arm; those of a block may come in any order."""
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
                    own.add(answer.num_steps, answer.accepted_per_position)
        for other in self._open[arm.block.number]:
            plain, drafting = (arm, other) if arm.draft_length == 0 else (other, arm)
            if plain.draft_length == 0 and drafting.draft_length > 0:
                pairs = list(zip(plain.answers, drafting.answers, strict=True))
                self._pairs[arm.block][drafting.draft_length] = pairs
        self._open[arm.block.number].append(arm)

    def plain_steps(self, concurrency: int) -> list[float]:
        """Seconds a step of each answer without speculation at a concurrency."""
        return self._compare().step_times.get((0, concurrency), [])

    def _compare(self) -> "Compared":
        if self._compared is None:
            self._compared = _compared(self.answers, self._pairs)
        return self._compared


class Compared(NamedTuple):
    """What follows from all answers together."""

    step_times: dict[tuple[int, int], list[float]]  # by draft length and concurrency
    speedups: dict[CellKey, list[float]]
    batches: list[Batch]
    effects: dict[int, float]  # by concurrency
    num_disturbed: int


def _compared(
    answers: Mapping[CellKey, list[Answer]],
    pairs: Mapping[Block, Mapping[int, Pairs]],
) -> Compared:
    """Times that can be right, compared. A step's time depends on draft length and load alone.

    So an answer whose steps took a third or three times as long as the others' was disturbed, by
    a pause of the client for instance, in which messages pile up, and is left out.
    """
    times: dict[tuple[int, int], list[float]] = {}
    for key, part in answers.items():
        times.setdefault(key[1:], []).extend(a.step_s for a in part if a.step_s > 0)
    medians = {at: statistics.median(part) for at, part in times.items() if part}

    def is_right(answer: Answer, at: tuple[int, int]) -> bool:
        return (
            answer.tpot_s > 0
            and medians[at] / DISTURBANCE < answer.step_s < medians[at] * DISTURBANCE
        )

    speedups: dict[CellKey, list[float]] = defaultdict(list)
    batches: list[Batch] = []
    for block, by_length in pairs.items():
        batch = Batch(block.task, block.concurrency, {})
        for length, both in by_length.items():
            key = CellKey(block.task, length, block.concurrency)
            right = [
                (base, answer)
                for base, answer in both
                if is_right(base, (0, key.concurrency)) and is_right(answer, key[1:])
            ]
            if right:
                speedups[key] += [math.log(base.tpot_s / answer.tpot_s) for base, answer in right]
                batch.ratios[length] = [math.log(a.step_s / base.step_s) for base, a in right]
        if batch.ratios:
            batches.append(batch)
    disturbed = sum(
        answer.step_s > 0 and not is_right(answer, key[1:])
        for key, part in answers.items()
        for answer in part
    )
    return Compared(times, speedups, batches, _effects(batches), disturbed)


def _effects(batches: Sequence[Batch]) -> dict[int, float]:
    """Of each concurrency: what its own cells say, and no less than what all of them do."""
    cells: dict[int, dict[CellKey, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for batch in batches:
        for length, values in batch.ratios.items():
            key = CellKey(batch.task, length, batch.concurrency)
            cells[batch.concurrency][key].append(values)
    overall = design_effect([part for group in cells.values() for part in group.values()])
    return {
        load: max(overall, design_effect(list(group.values()))) for load, group in cells.items()
    }
