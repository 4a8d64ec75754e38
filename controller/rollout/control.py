"""Starting, resuming and steering rollouts; a process at work is given orders."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trt_mtp.controller.gateway.traffic import read_traffic, write_traffic
from trt_mtp.controller.rollout.plan import Plan, make_plan
from trt_mtp.controller.rollout.runner import AT_PAUSE, WAITING, Runner, Say, begin
from trt_mtp.controller.rollout.spec import RolloutSpec
from trt_mtp.controller.rollout.store import Event, LostLock, Phase, Rollout, Store
from trt_mtp.controller.rollout.triton import sites
from trt_mtp.errors import InputError

ABORT_S = 120.0  # for the process at work to have restored the old state
EXIT_CODES = {
    Phase.SUCCESSFUL: 0,
    Phase.FAILED: 1,
    Phase.ERROR: 1,
    Phase.PENDING: 3,
    Phase.RUNNING: 3,
    Phase.PAUSED: 3,
    Phase.ABORTED: 4,
    Phase.INCONCLUSIVE: 5,
}


@dataclass(frozen=True, slots=True)
class Status:
    """A rollout as people and pipelines see it."""

    rollout: Rollout
    holder: str  # the process at work; empty when none is
    progress: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 3 in progress, 4 aborted, 5 inconclusive."""
        return EXIT_CODES[self.rollout.phase]

    def to_json(self) -> dict[str, Any]:
        """With stable keys."""
        facts = self.rollout.facts
        return {
            "schema_version": 1,
            "name": self.rollout.name,
            "phase": self.rollout.phase,
            "completed": self.rollout.phase.is_completed,
            "going": self.rollout.going,
            "position": self.rollout.position,
            "reason": self.rollout.reason,
            "old": facts["old"],
            "new": facts["new"],
            "stable": facts["stable"],
            "target": facts["target"],
            "at_work": self.holder,
            "progress": self.progress,
        }


def plan(spec: RolloutSpec) -> Plan:
    """What the rollout would do now; changes nothing."""
    with sites(spec.where.servers, spec.where.model) as found:
        return make_plan(spec, found)


def start(spec: RolloutSpec, say: Say, again: bool = False) -> Status:
    """Begin a rollout, or go on with one that a crash or an error stopped.

    One that is done, waits for a person, or has another process at work is left as it is. `again`
    begins anew what was aborted or has failed. Raises InputError when the file changed meanwhile.
    """
    with Store(spec.where.state) as store:
        latest = store.latest(spec.name)
        if latest is not None and not latest.phase.is_completed:
            _check_same(latest, spec)
            return _run(spec, store, say) if latest.phase not in WAITING else _status(store, latest)
        is_done = latest is not None and latest.digest == spec.digest
        if latest is not None and is_done and not (again and latest.phase is not Phase.SUCCESSFUL):
            return _status(store, latest)
        return _run(spec, store, say, anew=True)


def resume(spec: RolloutSpec, say: Say) -> Status:
    """Go on with a rollout that waits or was stopped; a step that was inconclusive begins anew."""
    with Store(spec.where.state) as store:
        latest = _latest(store, spec)
        return _status(store, latest) if latest.phase.is_completed else _run(spec, store, say)


def steer(spec: RolloutSpec, verb: str, why: str, say: Say) -> Status:
    """Order pause, promote, promote --full or abort, and see to it when no process is at work.

    Raises InputError for a rollout that is completed.
    """
    with Store(spec.where.state) as store:
        latest = _latest(store, spec)
        if latest.phase.is_completed:
            if verb == "abort" and latest.phase is not Phase.SUCCESSFUL:
                return _status(store, latest)
            raise InputError(
                f"{spec.name} is completed ({latest.phase}); "
                + (
                    "to go back, roll out the old variant"
                    if latest.phase is Phase.SUCCESSFUL
                    else "`start --again` begins anew"
                )
            )
        if not (verb == "promote" and latest.reason == AT_PAUSE):  # there, going on is all
            store.order(latest, verb, why)
        if store.holder():
            say(f"{store.holder()} was told to {verb}")
            if verb != "abort":
                return _status(store, latest)
            _take_traffic_back(spec)  # now: it may be loading a model for minutes
            return _wait_for_abort(store, spec)
        return _run(spec, store, say)


def status(spec: RolloutSpec) -> Status:
    """Where the rollout stands; raises InputError when it never began."""
    with _reading(spec) as store:
        return _status(store, _latest(store, spec))


def history(spec: RolloutSpec) -> list[Event]:
    """All that was done, in order."""
    with _reading(spec) as store:
        return store.history(_latest(store, spec))


@contextlib.contextmanager
def _reading(spec: RolloutSpec) -> Iterator[Store]:
    if not spec.where.state.exists():
        raise InputError(f"{spec.name} has not begun: there is no {spec.where.state}")
    with Store(spec.where.state) as store:
        yield store


def _run(spec: RolloutSpec, store: Store, say: Say, anew: bool = False) -> Status:
    """Act, when no other process does."""
    try:
        with store.locked(), sites(spec.where.servers, spec.where.model) as found:
            rollout = begin(spec, store, found) if anew else _latest(store, spec)
            Runner(spec, store, found, rollout, say).run()
    except LostLock as error:
        say(str(error))
    return _status(store, _latest(store, spec))


def _wait_for_abort(store: Store, spec: RolloutSpec) -> Status:
    deadline = time.monotonic() + ABORT_S
    while store.holder() and time.monotonic() < deadline:
        time.sleep(0.2)
    return _status(store, _latest(store, spec))


def _take_traffic_back(spec: RolloutSpec) -> None:
    """Leave the canary without requests, whatever else is going on."""
    nobody = {"canary": None, "canary_percent": 0.0, "shadow_percent": 0.0}
    for gateway in spec.where.gateways:
        with contextlib.suppress(InputError):  # none was written yet
            traffic = read_traffic(gateway.traffic)
            write_traffic(gateway.traffic, traffic.model_copy(update=nobody))


def _latest(store: Store, spec: RolloutSpec) -> Rollout:
    found = store.latest(spec.name)
    if found is None:
        raise InputError(f"{spec.name} has not begun: start it with `trt-mtp rollout start`")
    return found


def _check_same(rollout: Rollout, spec: RolloutSpec) -> None:
    if rollout.digest != spec.digest:
        raise InputError(
            f"the file of {spec.name} changed since the rollout began ({rollout.phase}): restore "
            f"it, or abort the rollout first"
        )


def _status(store: Store, rollout: Rollout) -> Status:
    return Status(rollout, store.holder(), store.progress(rollout))
