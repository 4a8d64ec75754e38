"""Start, resume and steer rollouts; a running process gets orders through the store."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Any

from trt_mtp.controller.gateway.canary.traffic import read_traffic, write_traffic
from trt_mtp.controller.rollout.plan import Plan, make_plan
from trt_mtp.controller.rollout.runner import AT_PAUSE, WAITING, Runner, Say, begin
from trt_mtp.controller.rollout.spec import RolloutSpec
from trt_mtp.controller.rollout.store import Event, LockLostError, Phase, Rollout, Store
from trt_mtp.controller.rollout.triton import sites
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import open_in_group

ABORT_S = 120.0  # most time for the running process to restore the old state
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
    """A rollout's status for people and pipelines."""

    rollout: Rollout
    holder: str  # the running process; empty if there is none
    progress: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 3 in progress, 4 aborted, 5 inconclusive."""
        return EXIT_CODES[self.rollout.phase]

    def to_json(self) -> dict[str, Any]:
        """The status with stable keys."""
        facts = self.rollout.facts
        return {
            "schema_version": 1,
            "name": self.rollout.name,
            "phase": self.rollout.phase,
            "completed": self.rollout.phase.is_completed,
            "going": self.rollout.direction,
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
    with sites(spec.where.servers, spec.where.model) as connected:
        return make_plan(spec, connected)


def start(spec: RolloutSpec, say: Say, again: bool = False) -> Status:
    """Begin a rollout, or continue one that a crash or an error stopped.

    A rollout that is done, waits for a person, or runs in another process stays as it is. `again`
    restarts an aborted or failed one. Raises InputError if the file changed meanwhile.
    """
    if not spec.where.state.exists():
        plan(spec)  # what is refused leaves no state file behind
    with Store(spec.where.state) as store:
        latest = store.latest(spec.name)
        if latest is not None and not latest.phase.is_completed:
            _check_same(latest, spec)
            return _run(spec, store, say) if latest.phase not in WAITING else _status(store, latest)
        is_done = latest is not None and latest.digest == spec.digest
        if latest is not None and is_done and not (again and latest.phase is not Phase.SUCCESSFUL):
            say(
                f"{spec.name} is completed already; to do it once more, give it another name"
                if latest.phase is Phase.SUCCESSFUL
                else f"{spec.name} ended already ({latest.phase}); `start --again` starts it over"
            )
            return _status(store, latest)
        return _run(spec, store, say, is_new=True)


def resume(spec: RolloutSpec, say: Say) -> Status:
    """Continue a rollout that waits or was stopped; an inconclusive step restarts.

    Raises InputError if the file changed meanwhile.
    """
    with _reading(spec) as store:
        latest = _latest(store, spec)
        if latest.phase.is_completed:
            return _status(store, latest)
        _check_same(latest, spec)
        return _run(spec, store, say)


def steer(spec: RolloutSpec, verb: str, why: str, say: Say) -> Status:
    """Order pause, promote, promote --full or abort; run the rollout here if no process does.

    Raises InputError if the rollout is completed, or never began, and for a promotion of another
    file than the one it began with: a place in its steps means nothing in other steps.
    """
    with _reading(spec) as store:
        latest = _latest(store, spec)
        if latest.phase.is_completed:
            if verb == "abort" and latest.phase is not Phase.SUCCESSFUL:
                return _status(store, latest)
            raise InputError(
                f"{spec.name} is completed ({latest.phase}); "
                + (
                    "to go back, roll out the old variant"
                    if latest.phase is Phase.SUCCESSFUL
                    else "`start --again` restarts it"
                )
            )
        if verb not in ("abort", "pause"):
            _check_same(latest, spec)
        if verb == "pause" and latest.phase in WAITING and not store.holder():
            return _status(store, latest)  # it waits already, and goes on from there
        if not (verb == "promote" and latest.reason == AT_PAUSE):  # there, it only continues
            store.order(latest, verb, why)
        if store.holder():
            say(f"{store.holder()} was told to {verb}")
            if verb != "abort":
                return _status(store, latest)
            _take_traffic_back(spec)  # now: it may be loading a model for minutes
            seen = _wait_for_abort(store, spec)
            if seen.holder or seen.rollout.phase.is_completed:
                return seen
            say("it ended before that; this process goes on")
        return _run(spec, store, say)


def unlock(spec: RolloutSpec) -> str:
    """Take the lock from a process that is gone; returns which, empty if none had it.

    Raises InputError for one that lives on this machine.
    """
    with _reading(spec) as store:
        return store.unlock(_latest(store, spec))


def status(spec: RolloutSpec) -> Status:
    """The rollout's status; raises InputError if it never began."""
    with _reading(spec) as store:
        return _status(store, _latest(store, spec))


def history(spec: RolloutSpec) -> list[Event]:
    """The rollout's events, oldest first."""
    with _reading(spec) as store:
        return store.history(_latest(store, spec))


@contextlib.contextmanager
def _reading(spec: RolloutSpec) -> Iterator[Store]:
    if not spec.where.state.exists():
        raise InputError(
            f"{spec.name} has not begun (there is no {spec.where.state}): start it with `trt-mtp "
            "rollout start`"
        )
    with Store(spec.where.state) as store:
        yield store


def _run(spec: RolloutSpec, store: Store, say: Say, is_new: bool = False) -> Status:
    """Run the rollout, unless another process does."""
    try:
        connecting = sites(spec.where.servers, spec.where.model)
        with store.locked(say), alone_with_traffic(spec), connecting as connected:
            rollout = begin(spec, store, connected) if is_new else _latest(store, spec)
            Runner(spec, store, connected, rollout, say).run()
    except LockLostError as error:
        say(str(error))
    return _status(store, _latest(store, spec))


@contextlib.contextmanager
def alone_with_traffic(spec: RolloutSpec) -> Iterator[None]:
    """Keep rollouts with other state files from writing the same traffic files.

    Raises InputError while one is at work on them.
    """
    with contextlib.ExitStack() as stack:
        for path in sorted({gateway.traffic for gateway in spec.where.gateways}):
            lock = path.with_name(f"{path.name}.lock")
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(FileIO(lock, "a", opener=open_in_group))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another rollout is at work on {path}: wait for its end, or abort it"
                ) from None
            except OSError as error:
                raise TrtMtpError(f"can't lock {lock}: {error.strerror or error}") from None
        yield


def _wait_for_abort(store: Store, spec: RolloutSpec) -> Status:
    deadline = time.monotonic() + ABORT_S
    while store.holder() and time.monotonic() < deadline:
        time.sleep(0.2)
    return _status(store, _latest(store, spec))


def _take_traffic_back(spec: RolloutSpec) -> None:
    """Leave the canary without requests, whatever the running process does."""
    nobody = {"canary": None, "canary_percent": 0.0, "shadow_percent": 0.0}
    for gateway in spec.where.gateways:
        with contextlib.suppress(InputError):  # none was written yet
            traffic = read_traffic(gateway.traffic)
            write_traffic(gateway.traffic, traffic.model_copy(update=nobody))


def _latest(store: Store, spec: RolloutSpec) -> Rollout:
    rollout = store.latest(spec.name)
    if rollout is None:
        raise InputError(f"{spec.name} has not begun: start it with `trt-mtp rollout start`")
    return rollout


def _check_same(rollout: Rollout, spec: RolloutSpec) -> None:
    if rollout.digest != spec.digest:
        raise InputError(
            f"the file of {spec.name} changed since the rollout began ({rollout.phase}): restore "
            f"it, or abort the rollout first"
        )


def _status(store: Store, rollout: Rollout) -> Status:
    return Status(rollout, store.holder(), store.progress(rollout))
