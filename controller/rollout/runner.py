"""The runner: does a rollout's actions in order, or undoes them in reverse, from its record."""

from collections.abc import Callable
from typing import Any

from trt_mtp.controller.gateway.canary.traffic import shadow_log
from trt_mtp.controller.rollout.actions import Action, Pause, Route, Switch, actions_of
from trt_mtp.controller.rollout.context import Facts, InconclusiveError, RolloutContext
from trt_mtp.controller.rollout.gates import GateFailedError
from trt_mtp.controller.rollout.plan import make_plan
from trt_mtp.controller.rollout.request_log import RequestLog
from trt_mtp.controller.rollout.spec import RolloutSpec
from trt_mtp.controller.rollout.store import LockLostError, Order, Phase, Rollout, Store
from trt_mtp.controller.rollout.triton import RefusedError, TritonSite
from trt_mtp.errors import TrtMtpError

Say = Callable[[str], None]
WAITING = (Phase.PAUSED, Phase.INCONCLUSIVE)
AT_PAUSE = "waits for `trt-mtp rollout promote`"


class OrderReceivedError(TrtMtpError):
    """A person left an order that interrupts the action."""

    def __init__(self, order: Order) -> None:
        super().__init__(order.why)
        self.order = order


def begin(spec: RolloutSpec, store: Store, sites: list[TritonSite]) -> Rollout:
    """Record a rollout with its facts; changes nothing else.

    Raises InputError if the plan is not possible.
    """
    return store.begin(spec.name, spec.digest, Facts.of(make_plan(spec, sites)).to_json())


class Runner:
    """Runs one rollout in this process, which holds the store's lock."""

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
        self._context = RolloutContext(
            spec=spec,
            facts=facts,
            sites=sites,
            request_log=RequestLog(logs, spec.how.gates, rollout.started_at),
            check=self._check,
            progress=lambda what: store.save_progress(self.rollout, what),
        )
        self._actions = actions_of(self._context)
        self._switch = next(i for i, a in enumerate(self._actions) if isinstance(a, Switch))

    def run(self) -> Rollout:
        """Continue until the rollout is completed, waits for a person, or meets an error."""
        if self.rollout.phase is not Phase.RUNNING and not self.rollout.phase.is_completed:
            self._record("rollout", "running", phase=Phase.RUNNING)
        while self.rollout.phase is Phase.RUNNING:
            try:
                self._undo_next() if self.rollout.direction == "back" else self._do_next()
            except LockLostError:
                raise
            except TrtMtpError as error:
                self._stop(str(error))
        self._say(f"{self.rollout.phase}: {self.rollout.reason or self._spec.name}")
        return self.rollout

    def _do_next(self) -> None:
        """Do the next action; if it fails, start to undo."""
        if self.rollout.position == len(self._actions):
            self._record("rollout", "successful", phase=Phase.SUCCESSFUL, reason="")
            return
        action = self._actions[self.rollout.position]
        try:
            self._check()
            self._record(action.name, "do")
            self._say(action.name)
            result = action.do(self._context)
        except OrderReceivedError as received:
            self._execute(received.order)
        except GateFailedError as error:
            self._start_undo(action.name, Phase.ABORTED, str(error), error.what)
        except RefusedError as error:
            self._start_undo(action.name, Phase.FAILED, str(error))
        except InconclusiveError as error:
            why = str(error)
            self._record(action.name, "inconclusive", why, phase=Phase.INCONCLUSIVE, reason=why)
        else:
            self._done(action, result)

    def _done(self, action: Action, result: dict[str, Any]) -> None:
        changes: dict[str, Any] = {"position": self.rollout.position + 1}
        if isinstance(action, Pause):
            changes |= {"phase": Phase.PAUSED, "reason": AT_PAUSE}
        self._record(action.name, "done", what=result, **changes)

    def _undo_next(self) -> None:
        """Undo the action at the position; the rollout ends before the first one."""
        position = self.rollout.position
        if position < 0:
            ending = Phase(self.rollout.facts["ending"])
            self._record("rollout", ending.lower(), self.rollout.reason, phase=ending)
            return
        if position <= self._switch:
            self._context.retreat()  # first, and again after a kill: no request may wait
        action = self._actions[position]
        self._record(action.name, "undo")
        self._say(f"undo {action.name}")
        result = action.undo(self._context)
        self._record(action.name, "undone", what=result, position=position - 1)

    def _start_undo(
        self, action: str, ending: Phase, why: str, what: Any = None, order_id: int = 0
    ) -> None:
        """Start with the action at the position, because it may be half done."""
        self._say(why)
        self._record(
            action,
            "failed" if not order_id else "done",
            why,
            what,
            order_id,
            direction="back",
            reason=why,
            facts={**self.rollout.facts, "ending": ending},
            position=min(self.rollout.position, len(self._actions) - 1),
        )

    def _execute(self, order: Order) -> None:
        """Abort, pause, or skip this step or all steps that follow."""
        if order.verb == "abort":
            self._start_undo("abort", Phase.ABORTED, f"aborted {order.why}", order_id=order.id)
        elif order.verb == "pause":
            why = f"paused {order.why}"
            self._record("pause", "done", why, order_id=order.id, phase=Phase.PAUSED, reason=why)
        else:
            position = self.rollout.position
            last = len(self._actions) if order.verb == "promote --full" else position + 1
            while position < last and isinstance(self._actions[position], Route | Pause):
                position += 1
            self._record(order.verb, "done", order.why, order_id=order.id, position=position)

    def _stop(self, why: str) -> None:
        """End with an error; takes the requests away from the canary, which nobody watches now."""
        self._say(why)
        if self.rollout.direction == "forward" and self.rollout.position <= self._switch:
            self._context.retreat()
        self._record("rollout", "error", why, phase=Phase.ERROR, reason=why)

    def _check(self) -> None:
        """Raise LockLostError, or OrderReceivedError if an order came while going forward."""
        self._store.check_lock()
        if self.rollout.direction == "forward":
            order = self._store.next_order(self.rollout)
            if order is not None:
                raise OrderReceivedError(order)

    def _record(
        self,
        action: str,
        stage: str,
        why: str = "",
        what: Any = None,
        order_id: int = 0,
        **changes: Any,
    ) -> None:
        changed = self.rollout._replace(**changes)
        self._store.record(changed, action, stage, why, what, order_id)
        self.rollout = changed
