"""Watching one step: the gates, whether the canary still answers, and when there is enough."""

import threading
import time
from typing import Any

from trt_mtp.controller.client import Prompt
from trt_mtp.controller.rollout.spec import Gates, Step
from trt_mtp.controller.rollout.triton import TritonSite
from trt_mtp.controller.rollout.work import GateFailed, Undecided, Work
from trt_mtp.errors import TrtMtpError

LOOK_S = 0.5
PROBE_S = 2.0
SAVE_S = 2.0
PROBE = Prompt([{"role": "user", "content": "Say yes."}], max_tokens=2)


class Prober:
    """Asks the canary for two tokens again and again, in a thread.

    Triton calls a model ready whose process has died, and lets its requests hang.
    """

    def __init__(self, site: TritonSite, variant: str, gates: Gates) -> None:
        self._site, self._variant, self._gates = site, variant, gates
        self._num_failed, self._reason = 0, ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Prober":
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._ended.set()  # a probe that hangs is left to its own timeout

    def check(self) -> None:
        """Raise GateFailed when the canary did not answer often enough in a row."""
        if self._num_failed >= self._gates.failure_limit:
            raise GateFailed(
                f"{self._variant} on {self._site.name} did not answer {self._num_failed} probes in "
                f"a row: {self._reason}"
            )

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._site.answers(self._variant, [PROBE], self._gates.probe_timeout_s)
                self._num_failed = 0
            except TrtMtpError as error:
                self._reason = str(error)
                self._num_failed += 1
            self._ended.wait(PROBE_S)


def watch(work: Work, step: Step) -> dict[str, Any]:
    """Wait for the end of a step; what was seen, for the history.

    Raises GateFailed for a canary that is worse, Undecided after at_most_s without enough requests.
    """
    if work.facts.new is None:
        return _watch(work, step, None)
    with Prober(work.sites[0], work.facts.new, work.spec.how.gates) as prober:
        return _watch(work, step, prober)


def _watch(work: Work, step: Step, prober: Prober | None) -> dict[str, Any]:
    gates, evidence = work.spec.how.gates, work.evidence
    evidence.read(time.time())
    start, before, saved = time.monotonic(), evidence.keeper.num_canary, 0.0
    while True:
        work.check()
        evidence.read(time.time())
        failed = evidence.keeper.failed()
        if failed:
            raise GateFailed("; ".join(result.sentence() for result in failed))
        if evidence.num_diverged > gates.max_divergences:
            raise GateFailed(
                f"{evidence.num_diverged} of {evidence.num_compared} greedy answers of copied "
                f"requests differ from the live ones"
            )
        if prober is not None:
            prober.check()
        now, num = time.monotonic(), evidence.keeper.num_canary - before
        if now - saved >= SAVE_S:
            saved = now
            work.progress({"step": step.name, "num_requests": num, **evidence.summary()})
        if now - start >= step.at_least_s and num >= gates.min_requests:
            return {"num_requests": num, **evidence.summary()}
        if now - start >= step.at_most_s:
            raise Undecided(
                f"{step.name} saw {num} requests of the canary in {step.at_most_s:.0f} s and needs "
                f"{gates.min_requests}: resume to wait on, promote to go on, or abort"
            )
        time.sleep(LOOK_S)
