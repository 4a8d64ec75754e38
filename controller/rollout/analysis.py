"""The analysis of one step: the gates, the canary's probes, and whether enough was seen."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from trt_mtp.controller.client import Prompt
from trt_mtp.controller.rollout.context import InconclusiveError, RolloutContext
from trt_mtp.controller.rollout.gates import GateFailedError
from trt_mtp.controller.rollout.memory_gate import MemoryGate
from trt_mtp.controller.rollout.spec import Step

LOOK_S = 0.5
PROBE_S = 2.0
SAVE_S = 2.0
PROBE = Prompt([{"role": "user", "content": "Say yes."}], max_tokens=2)


class Prober:
    """Asks a server something again and again, in a thread.

    It asks the canary for two tokens, because Triton calls a model ready after its process died,
    and lets its requests hang. It also asks for the server's memory.
    """

    def __init__(self, what: str, ask: Callable[[], object], failure_limit: int) -> None:
        """`ask` raises GateFailedError to end the rollout, any other error if it got no answer."""
        self._what, self._ask, self._failure_limit = what, ask, failure_limit
        self._num_failed, self._reason = 0, ""
        self._verdict: GateFailedError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Prober":
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._ended.set()  # a probe that hangs is left to its own timeout

    def check(self) -> None:
        """Raise GateFailedError for a verdict, or after too many failed probes in a row."""
        if self._verdict is not None:
            raise self._verdict
        if self._num_failed >= self._failure_limit:
            raise GateFailedError(
                f"{self._what}: {self._num_failed} probes in a row failed: {self._reason}"
            )

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._ask()
                self._num_failed = 0
            except GateFailedError as verdict:
                self._verdict = verdict
                return
            except Exception as error:  # any error: a prober that stopped would be a blind gate
                self._reason = str(error)
                self._num_failed += 1
            self._ended.wait(PROBE_S)


def analyze(context: RolloutContext, step: Step) -> dict[str, Any]:
    """Wait for the end of a step; returns what was seen, for the history.

    Raises GateFailedError if the canary is worse, InconclusiveError if there were too few requests
    after at_most_s.
    """
    memory = _memory_gates(context)
    with ExitStack() as stack:
        probers = [stack.enter_context(prober) for prober in _probers(context, memory)]
        context.request_log.read(time.time())
        num_before = context.request_log.num_canary_in_windows
        return _Analysis(context, step, probers, memory, num_before).run()


def _memory_gates(context: RolloutContext) -> list[MemoryGate]:
    """The memory gates of servers that host the new variant, each checked once."""
    new, gates = context.facts.new, []
    for index, site in enumerate(context.sites):
        gate = context.memory_gate(index)
        if gate is not None and new is not None and site.is_ready(new):
            gate.check()
            gates.append(gate)
    return gates


def _probers(context: RolloutContext, memory: Sequence[MemoryGate]) -> list[Prober]:
    new, gates = context.facts.new, context.spec.how.gates
    if new is None:
        return []
    site = context.sites[0]

    def ask() -> None:
        site.answers(new, [PROBE], gates.probe_timeout_s)

    return [
        Prober(f"{new} on {site.name}", ask, gates.failure_limit),
        *(Prober(f"memory of {gate.server}", gate.check, gates.failure_limit) for gate in memory),
    ]


@dataclass(frozen=True, slots=True)
class _Analysis:
    context: RolloutContext
    step: Step
    probers: Sequence[Prober]
    memory: Sequence[MemoryGate]
    num_before: int  # requests of the canary before this step

    def run(self) -> dict[str, Any]:
        """See `analyze`."""
        step, min_requests = self.step, self.context.spec.how.gates.min_requests
        started_at, saved_at = time.monotonic(), 0.0
        while True:
            self.context.check()
            self.context.request_log.read(time.time())
            self._check_gates()
            now, num = time.monotonic(), self._num_requests()
            if now - saved_at >= SAVE_S:
                saved_at = now
                self.context.progress({"step": step.name, **self._seen()})
            if now - started_at >= step.at_least_s and num >= min_requests:
                return self._seen()
            if now - started_at >= step.at_most_s:
                raise InconclusiveError(
                    f"{step.name} saw {num} requests of the canary in {step.at_most_s:.0f} s and "
                    f"needs {min_requests}: resume to wait on, promote to go on, or abort"
                )
            time.sleep(LOOK_S)

    def _check_gates(self) -> None:
        log = self.context.request_log
        failed = log.keeper.failed()
        if failed:
            why = "; ".join(result.sentence() for result in failed)
            raise GateFailedError(why, self._seen())
        if log.num_diverged > self.context.spec.how.gates.max_divergences:
            raise GateFailedError(
                f"{log.num_diverged} of {log.num_compared} greedy answers of copied "
                f"requests differ from the live ones"
            )
        for prober in self.probers:
            prober.check()

    def _num_requests(self) -> int:
        return self.context.request_log.num_canary_in_windows - self.num_before

    def _seen(self) -> dict[str, Any]:
        log, in_use = self.context.request_log, [gate.to_json() for gate in self.memory]
        return {"num_requests": self._num_requests(), **log.summary(), "memory": in_use}
