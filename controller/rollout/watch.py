"""Watching one step: the gates, whether the canary still answers, and when there is enough."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from trt_mtp.controller.client import Prompt
from trt_mtp.controller.rollout.gates import GateFailed
from trt_mtp.controller.rollout.memory_gate import MemoryGate
from trt_mtp.controller.rollout.spec import Step
from trt_mtp.controller.rollout.work import Undecided, Work

LOOK_S = 0.5
PROBE_S = 2.0
SAVE_S = 2.0
PROBE = Prompt([{"role": "user", "content": "Say yes."}], max_tokens=2)


class Prober:
    """Asks a server something again and again, in a thread.

    For two tokens of the canary, because Triton calls a model ready whose process has died, and
    lets its requests hang; and for its memory.
    """

    def __init__(self, what: str, ask: Callable[[], object], failure_limit: int) -> None:
        """`ask` raises GateFailed for an answer that ends the rollout, another error for none."""
        self._what, self._ask, self._failure_limit = what, ask, failure_limit
        self._num_failed, self._reason = 0, ""
        self._verdict: GateFailed | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Prober":
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._ended.set()  # a probe that hangs is left to its own timeout

    def check(self) -> None:
        """Raise GateFailed for such an answer, or for none often enough in a row."""
        if self._verdict is not None:
            raise self._verdict
        if self._num_failed >= self._failure_limit:
            raise GateFailed(
                f"{self._what}: {self._num_failed} probes in a row failed: {self._reason}"
            )

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._ask()
                self._num_failed = 0
            except GateFailed as failed:
                self._verdict = failed
                return
            except Exception as error:  # whatever it is: a probe that ended would be a blind gate
                self._reason = str(error)
                self._num_failed += 1
            self._ended.wait(PROBE_S)


def watch(work: Work, step: Step) -> dict[str, Any]:
    """Wait for the end of a step; what was seen, for the history.

    Raises GateFailed for a canary that is worse, Undecided after at_most_s without enough requests.
    """
    memory = _memory_gates(work)
    with ExitStack() as stack:
        probers = [stack.enter_context(prober) for prober in _probers(work, memory)]
        return _watch(work, step, probers, memory)


def _memory_gates(work: Work) -> list[MemoryGate]:
    """Those of the servers that have the new variant; each has been looked at once."""
    found = []
    for index, site in enumerate(work.sites):
        gate = work.memory_gate(index)
        if gate is not None and work.facts.new is not None and site.is_ready(work.facts.new):
            gate.check()
            found.append(gate)
    return found


def _probers(work: Work, memory: Sequence[MemoryGate]) -> list[Prober]:
    new, gates = work.facts.new, work.spec.how.gates
    if new is None:
        return []
    site = work.sites[0]

    def ask() -> None:
        site.answers(new, [PROBE], gates.probe_timeout_s)

    return [
        Prober(f"{new} on {site.name}", ask, gates.failure_limit),
        *(Prober(f"memory of {gate.server}", gate.check, gates.failure_limit) for gate in memory),
    ]


def _watch(
    work: Work, step: Step, probers: Sequence[Prober], memory: Sequence[MemoryGate]
) -> dict[str, Any]:
    gates, evidence = work.spec.how.gates, work.evidence

    def seen(num_requests: int) -> dict[str, Any]:
        in_use = [gate.to_json() for gate in memory]
        return {"num_requests": num_requests, **evidence.summary(), "memory": in_use}

    evidence.read(time.time())
    start, before, saved = time.monotonic(), evidence.keeper.num_canary, 0.0
    while True:
        work.check()
        evidence.read(time.time())
        failed = evidence.keeper.failed()
        if failed:
            why = "; ".join(result.sentence() for result in failed)
            raise GateFailed(why, seen(evidence.keeper.num_canary - before))
        if evidence.num_diverged > gates.max_divergences:
            raise GateFailed(
                f"{evidence.num_diverged} of {evidence.num_compared} greedy answers of copied "
                f"requests differ from the live ones"
            )
        for prober in probers:
            prober.check()
        now, num = time.monotonic(), evidence.keeper.num_canary - before
        if now - saved >= SAVE_S:
            saved = now
            work.progress({"step": step.name, **seen(num)})
        if now - start >= step.at_least_s and num >= gates.min_requests:
            return seen(num)
        if now - start >= step.at_most_s:
            raise Undecided(
                f"{step.name} saw {num} requests of the canary in {step.at_most_s:.0f} s and needs "
                f"{gates.min_requests}: resume to wait on, promote to go on, or abort"
            )
        time.sleep(LOOK_S)
