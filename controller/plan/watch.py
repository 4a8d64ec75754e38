"""The plan again and again from live logs: a sentence when the fleet should change, and no more."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trt_mtp.controller.decision_log import log_files
from trt_mtp.controller.plan.deployment import Deployment
from trt_mtp.controller.plan.erlang import MAX_LOAD
from trt_mtp.controller.plan.modes import Targets, all_modes
from trt_mtp.controller.plan.plan import Plan
from trt_mtp.controller.plan.program import growth
from trt_mtp.controller.plan.sizing import busy
from trt_mtp.controller.plan.text import changes
from trt_mtp.controller.plan.traffic import Traffic, from_requests, read_requests
from trt_mtp.errors import InputError

ROUNDS = 2  # that must say the same before anything is said
SURPLUS = 0.1  # of the present replicas that a smaller fleet has to save


@dataclass(slots=True)
class Watch:
    """Compares plans with the present fleet, `present`, which only its operator changes.

    What two rounds in a row find is said once, and again only after it was otherwise in between.
    """

    present: Mapping[int, int]
    _finding: str = ""
    _num_rounds: int = 0
    _said: str = field(default="")

    def advice(self, plan: Plan) -> str | None:
        """What to change after this round; None if nothing, or nothing yet."""
        finding = self._find(plan)
        self._num_rounds = self._num_rounds + 1 if finding == self._finding else 1
        self._finding = finding
        if self._num_rounds < ROUNDS or finding == self._said:
            return None
        self._said = finding
        return _sentence(finding, plan, self._carried(plan)) if finding else None

    def _find(self, plan: Plan) -> str:
        """`more`, `fewer`, or an empty string where the present fleet is right."""
        if self._carried(plan) < 1:
            return "more"
        present = sum(self.present.values())
        return "fewer" if plan.fleet.num_replicas <= (1 - SURPLUS) * present else ""

    def _carried(self, plan: Plan) -> float:
        return carried(plan.deployment, plan.traffic, plan.wishes.targets, self.present)


def carried(
    deployment: Deployment, traffic: Traffic, targets: Targets, present: Mapping[int, int]
) -> float:
    """How many times the traffic a fleet carries by the program, each length at its best batch."""
    found = all_modes(deployment, traffic, targets)
    modes, capacities = [], []
    for length, count in present.items():
        own = [mode for mode in found if mode.draft_length == length]
        if own and count:
            modes.append(max(own, key=lambda mode: (len(mode.busy_s), -busy(traffic, mode))))
            capacities.append(MAX_LOAD * count)
    rates = {task: one.requests_per_s for task, one in traffic.items()}
    served = {task for mode in modes for task in mode.busy_s}
    return growth(modes, capacities, rates) if served == set(rates) else 0.0


def _sentence(finding: str, plan: Plan, present: float) -> str:
    wanted = " ".join(changes(plan))
    if finding == "more":
        return f"The present fleet carries {present:.0%} of this traffic in time. {wanted}"
    return f"A smaller fleet carries this traffic. {wanted}"


def recent_traffic(log: Path, since: float) -> Traffic:
    """The traffic of a gateway's log and what was rotated out of it, from `since` on."""
    requests = [one for file in log_files(log) for one in read_requests(file) if one.at >= since]
    return from_requests(requests, str(log))


def watch(
    log: Path, every_s: float, present: Mapping[int, int], make: Callable[[Traffic], Plan],
    say: Callable[[str], None], note: Callable[[str], None],
) -> None:  # fmt: skip
    """Plan every `every_s` seconds from the log's requests of that time, until interrupted.

    `say` gets advice, `note` why a round brought none.
    """
    watching = Watch(present)
    while True:
        try:
            plan = make(recent_traffic(log, time.time() - every_s))
        except InputError as error:
            note(f"no plan this time: {error}")
        else:
            advice = watching.advice(plan)
            note(f"planned: {plan.fleet.num_replicas} replicas")
            if advice is not None:
                say(advice)
        time.sleep(every_s)
