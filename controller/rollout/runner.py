"""The runner: does a rollout's actions in order or undoes them in reverse, from its record."""

from collections.abc import Callable
from typing import Any

from trt_mtp.controller.gateway.traffic import shadow_log
from trt_mtp.controller.rollout.actions import Action, Pause, Route, Switch, actions_of
from trt_mtp.controller.rollout.evidence import EvidenceReader
from trt_mtp.controller.rollout.gates import GateFailed
from trt_mtp.controller.rollout.plan import make_plan
from trt_mtp.controller.rollout.spec import RolloutSpec
from trt_mtp.controller.rollout.store import LostLock, Order, Phase, Rollout, Store
from trt_mtp.controller.rollout.triton import Refused, TritonSite
from trt_mtp.controller.rollout.work import Facts, Undecided, Work
from trt_mtp.errors import TrtMtpError

Say = Callable[[str], None]
WAITING = (Phase.PAUSED, Phase.INCONCLUSIVE)
AT_PAUSE = "waits for `trt-mtp rollout promote`"


class Ordered(TrtMtpError):
    """A person wants something else than what is being done."""

    def __init__(self, order: Order) -> None:
        super().__init__(order.why)
        self.order = order


def begin(spec: RolloutSpec, store: Store, sites: list[TritonSite]) -> Rollout:
    """Write a rollout down, with what is known before it; nothing else is changed.

    Raises InputError when the plan is not possible.
    """
    return store.begin(spec.name, spec.digest, Facts.of(make_plan(spec, sites)).to_json())


class Runner:
    """One rollout being done by this process, which holds the store's lock."""

    def __init__(
        self,
        spec: RolloutSpec,
        store: Store,
        sites: list[TritonSite],
        rollout: Rollout,
        say: Say = lambda text: None,
    ) -> None:
        self.rollout = rollout
        self._spec, self._store, self._say = spec, store, say
        facts = Facts.from_json(rollout.facts)
        logs = [
            log
            for gateway in spec.where.gateways
            for log in (gateway.decision_log, shadow_log(gateway.traffic))
        ]
        self._work = Work(
            spec=spec,
            facts=facts,
            sites=sites,
            evidence=EvidenceReader(logs, spec.how.gates, rollout.started),
            check=self._check,
            progress=lambda what: store.save_progress(self.rollout, what),
        )
        self._actions = actions_of(self._work)
        self._switch = next(i for i, a in enumerate(self._actions) if isinstance(a, Switch))

    def run(self) -> Rollout:
        """Go on until the rollout is completed, waits for a person, or can't be gone on with."""
        if self.rollout.phase is not Phase.RUNNING and not self.rollout.phase.is_completed:
            self._record("rollout", "running", phase=Phase.RUNNING)
        while self.rollout.phase is Phase.RUNNING:
            try:
                self._go_back() if self.rollout.going == "back" else self._go_on()
            except LostLock:
                raise
            except TrtMtpError as error:
                self._stop(str(error))
        self._say(f"{self.rollout.phase}: {self.rollout.reason or self._spec.name}")
        return self.rollout

    def _go_on(self) -> None:
        """Do the next action, or turn back."""
        if self.rollout.position == len(self._actions):
            self._record("rollout", "successful", phase=Phase.SUCCESSFUL, reason="")
            return
        action = self._actions[self.rollout.position]
        try:
            self._check()
            self._record(action.name, "do")
            self._say(action.name)
            result = action.do(self._work)
        except Ordered as ordered:
            self._obey(ordered.order)
        except GateFailed as error:
            self._turn_back(action.name, Phase.ABORTED, str(error), error.what)
        except Refused as error:
            self._turn_back(action.name, Phase.FAILED, str(error))
        except Undecided as error:
            why = str(error)
            self._record(action.name, "inconclusive", why, phase=Phase.INCONCLUSIVE, reason=why)
        else:
            self._done(action, result)

    def _done(self, action: Action, result: dict[str, Any]) -> None:
        changes: dict[str, Any] = {"position": self.rollout.position + 1}
        if isinstance(action, Pause):
            changes |= {"phase": Phase.PAUSED, "reason": AT_PAUSE}
        self._record(action.name, "done", what=result, **changes)

    def _go_back(self) -> None:
        """Undo the action at the position, and end before the first."""
        position = self.rollout.position
        if position < 0:
            ending = Phase(self.rollout.facts["ending"])
            self._record("rollout", ending.lower(), self.rollout.reason, phase=ending)
            return
        if position <= self._switch:
            self._work.retreat()  # first of all, and again after a kill: no request may wait
        action = self._actions[position]
        self._record(action.name, "undo")
        self._say(f"undo {action.name}")
        result = action.undo(self._work)
        self._record(action.name, "undone", what=result, position=position - 1)

    def _turn_back(
        self, action: str, ending: Phase, why: str, what: Any = None, obeys: int = 0
    ) -> None:
        """From now on undo, the action at the position too: it may be half done."""
        self._say(why)
        self._record(
            action,
            "failed" if not obeys else "done",
            why,
            what,
            obeys,
            going="back",
            reason=why,
            facts={**self.rollout.facts, "ending": ending},
            position=min(self.rollout.position, len(self._actions) - 1),
        )

    def _obey(self, order: Order) -> None:
        """Do what a person wants: abort, pause, or leave out this step or all that follow."""
        if order.verb == "abort":
            self._turn_back("abort", Phase.ABORTED, f"aborted {order.why}", obeys=order.id)
        elif order.verb == "pause":
            why = f"paused {order.why}"
            self._record("pause", "done", why, obeys=order.id, phase=Phase.PAUSED, reason=why)
        else:
            position = self.rollout.position
            last = len(self._actions) if order.verb == "promote --full" else position + 1
            while position < last and isinstance(self._actions[position], Route | Pause):
                position += 1
            self._record(order.verb, "done", order.why, obeys=order.id, position=position)

    def _stop(self, why: str) -> None:
        """Nothing more can be done now; the canary is not left alone with requests."""
        self._say(why)
        if self.rollout.going == "forward" and self.rollout.position <= self._switch:
            self._work.retreat()
        self._record("rollout", "error", why, phase=Phase.ERROR, reason=why)

    def _check(self) -> None:
        """Raise LostLock, or Ordered for an order while going forward."""
        self._store.check_lock()
        if self.rollout.going == "forward":
            order = self._store.next_order(self.rollout)
            if order is not None:
                raise Ordered(order)

    def _record(
        self,
        action: str,
        stage: str,
        why: str = "",
        what: Any = None,
        obeys: int = 0,
        **changes: Any,
    ) -> None:
        changed = self.rollout._replace(**changes)
        self._store.record(changed, action, stage, why, what, obeys)
        self.rollout = changed
