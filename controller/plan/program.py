"""The integer program: the fewest replicas, of which modes, and which task goes where.

Replicas x of mode m, and the share y of task t's requests that go there:

    minimize   sum x + distinct * modes used + CHANGE * replicas changed
    such that  sum over m of y[t, m] = 1
               sum over t of y[t, m] * rate[t] * busy_s[t, m] <= load[m] * (x[m] - spare)
               sum x <= most

The third line is Little's law for a full replica, whose slots may be busy by `load`. y[t, m] is
absent where the mode breaks the task's target.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trt_mtp.controller.plan.modes import Mode

DISTINCT = 0.02  # replicas that another draft length or batch has to save, at least
CHANGE = 0.4  # replicas, divided by all, for each one that is added or taken away: breaks ties
# of the solver, which has a good fleet long before it has proved it. Nodes and not time end its
# search, so that a busy machine plans the same fleet
NODE_LIMIT, TIME_LIMIT_S = 1_000, 60.0
GAP = 5e-4  # of the cost, at which it is content
TIE_GAP = 1e-4  # the same where changes to a present fleet, which cost little, break ties


@dataclass(frozen=True, slots=True)
class Problem:
    """Rates of the tasks, and what bounds the fleet."""

    rates: Mapping[str, float]  # requests per second
    most: int  # replicas
    spare: int = 0  # replicas of each mode in use that may be lost
    present: Mapping[int, int] = field(default_factory=dict)  # replicas by draft length
    distinct: float = DISTINCT  # replicas that another draft length or batch has to save


@dataclass(frozen=True, slots=True)
class Solution:
    """Replicas by mode, and the requests per second of each task that go to it."""

    counts: tuple[int, ...]  # [modes]
    flows: tuple[Mapping[str, float], ...]  # [modes]

    @property
    def num_replicas(self) -> int:
        """All replicas."""
        return sum(self.counts)


def solve(problem: Problem, modes: Sequence[Mode], loads: Sequence[float]) -> Solution | None:
    """The cheapest fleet; None if no fleet of that many replicas serves all tasks.

    `loads` has the share of each mode's slots that may be busy.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not all(any(task in mode.busy_s for mode in modes) for task in problem.rates):
        return None
    layout = _Layout(problem, modes)
    matrix, low, high = layout.constraints(loads)
    result = milp(
        layout.costs(),
        integrality=layout.integrality(),
        bounds=Bounds(np.zeros(layout.size), layout.upper()),
        constraints=LinearConstraint(matrix, low, high),
        options={
            "node_limit": NODE_LIMIT,
            "time_limit": TIME_LIMIT_S,
            "mip_rel_gap": TIE_GAP if problem.present else GAP,
        },
    )
    return None if result.x is None else layout.solution(result.x)


class _Layout:
    """Where each variable is: replicas and use of each mode, changes of each length, flows."""

    def __init__(self, problem: Problem, modes: Sequence[Mode]) -> None:
        self._problem, self._modes = problem, modes
        self._flows = [
            (task, m) for m, mode in enumerate(modes) for task in problem.rates
            if task in mode.busy_s
        ]  # fmt: skip
        self._lengths = sorted({*problem.present, *(mode.draft_length for mode in modes)})
        self._lengths = self._lengths if problem.present else []
        self._changes_at = 2 * len(modes)
        self._flows_at = self._changes_at + len(self._lengths)
        self.size = self._flows_at + len(self._flows)

    def costs(self) -> Any:
        """The objective, in prices of a replica."""
        costs = np.zeros(self.size)
        costs[: len(self._modes)] = 1.0
        costs[len(self._modes) : self._changes_at] = self._problem.distinct
        most = self._problem.most + sum(self._problem.present.values())
        costs[self._changes_at : self._flows_at] = CHANGE / most
        return costs

    def integrality(self) -> Any:
        """1 for whole numbers."""
        kinds = np.zeros(self.size)
        kinds[: self._changes_at] = 1
        return kinds

    def upper(self) -> Any:
        """The highest value of each variable."""
        upper = np.full(self.size, np.inf)
        upper[: len(self._modes)] = self._problem.most
        upper[len(self._modes) : self._changes_at] = 1
        upper[self._flows_at :] = 1
        return upper

    def constraints(self, loads: Sequence[float]) -> tuple[Any, list[float], list[float]]:
        """The matrix, and what each of its rows lies between."""
        rows: list[dict[int, float]] = []
        low: list[float] = []
        high: list[float] = []

        def add(row: dict[int, float], least: float, most: float) -> None:
            rows.append(row)
            low.append(least)
            high.append(most)

        for task in self._problem.rates:
            add(self._served(task), 1.0, 1.0)
        for m, load in enumerate(loads):
            add(self._capacity(m, load), -np.inf, 0.0)
            add({m: 1.0, len(self._modes) + m: -self._needed(m, load)}, -np.inf, 0.0)
        add(dict.fromkeys(range(len(self._modes)), 1.0), 0.0, float(self._problem.most))
        for i, length in enumerate(self._lengths):
            own = {m: 1.0 for m, mode in enumerate(self._modes) if mode.draft_length == length}
            now = self._problem.present.get(length, 0)
            add({**own, self._changes_at + i: 1.0}, now, np.inf)
            add({**own, self._changes_at + i: -1.0}, -np.inf, now)
        return _sparse(rows, self.size), low, high

    def _needed(self, m: int, load: float) -> float:
        """Replicas of a mode beyond which more of it serve nothing."""
        busy = sum(self._problem.rates[t] * s for t, s in self._modes[m].busy_s.items())
        return float(min(math.ceil(busy / load) + self._problem.spare, self._problem.most))

    def _served(self, task: str) -> dict[int, float]:
        return {self._flows_at + i: 1.0 for i, (t, _) in enumerate(self._flows) if t == task}

    def _capacity(self, m: int, load: float) -> dict[int, float]:
        row = {
            self._flows_at + i: self._problem.rates[task] * self._modes[m].busy_s[task]
            for i, (task, own) in enumerate(self._flows)
            if own == m
        }
        return {**row, m: -load, len(self._modes) + m: load * self._problem.spare}

    def solution(self, values: Any) -> Solution:
        """The fleet in the solver's values."""
        flows: list[dict[str, float]] = [{} for _ in self._modes]
        for (task, m), value in zip(self._flows, values[self._flows_at :], strict=True):
            if value > 1e-6:
                flows[m][task] = float(value) * self._problem.rates[task]
        counts = tuple(round(value) for value in values[: len(self._modes)])
        return Solution(counts, tuple(flows))


def _sparse(rows: Sequence[Mapping[int, float]], width: int) -> Any:
    from scipy.sparse import csr_array

    entries = [(i, j, value) for i, row in enumerate(rows) for j, value in row.items()]
    i, j, values = zip(*entries, strict=True)
    return csr_array((values, (i, j)), shape=(len(rows), width))


def growth(modes: Sequence[Mode], capacities: Sequence[float], rates: Mapping[str, float]) -> float:
    """How many times this traffic these replicas carry; `capacities` are load * replicas."""
    from scipy.optimize import linprog

    flows = [(task, m) for m, mode in enumerate(modes) for task in rates if task in mode.busy_s]
    served = np.zeros((len(rates), 1 + len(flows)))
    busy = np.zeros((len(modes), 1 + len(flows)))
    for t, rate in enumerate(rates.values()):
        served[t, 0] = -rate
    names = list(rates)
    for i, (task, m) in enumerate(flows, 1):
        served[names.index(task), i] = 1.0
        busy[m, i] = modes[m].busy_s[task]
    objective = np.zeros(1 + len(flows))
    objective[0] = -1.0
    result = linprog(objective, busy, list(capacities), served, np.zeros(len(rates)))
    return float(result.x[0]) if result.x is not None else 0.0
