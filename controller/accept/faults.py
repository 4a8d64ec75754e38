"""Smoke checks that disturb answers: a client leaves, or a variant's process is killed."""

import os
import re
import signal
import threading

from trt_mtp.controller.accept.asking import Said, wait_until
from trt_mtp.controller.accept.smoke import (
    Check,
    Smoke,
    concurrency,
    draft_lengths,
    seed,
    stop_text,
    stream,
)
from trt_mtp.controller.accept.verdict import (
    CheckName,
    Verdict,
    compared,
    failed,
    not_tried,
    passed,
)
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.ports import get
from trt_mtp.serve.repository import model_name

ATTEMPTS = 5  # where answers are so short that they may end before the fault comes
FREED_S = 15.0
BACK_S = 3600.0  # at most, within the step's budget: a large model is loaded again
RUNNING = re.compile(r"^trt_mtp_requests_running(?:{.*})? (\S+)$", re.MULTILINE)
IN_FLIGHT = re.compile(r"^trt_mtp_gateway_requests_in_flight(?:{.*})? (\S+)$", re.MULTILINE)
ENDED = re.compile(
    r'^trt_mtp_gateway_answers_abandoned_total{.*rest="ended".*} (\S+)$', re.MULTILINE
)


def total(text: str, metric: "re.Pattern[str]") -> float:
    """The sum of a metric over its labels.

    >>> total('trt_mtp_requests_running{model="a"} 1\\n', RUNNING)
    1.0
    """
    return sum(map(float, metric.findall(text)))


def cancel(smoke: Smoke) -> Verdict:
    """The request of a client that leaves ends at its variant, and its place is free."""
    stack = smoke.stack
    request = smoke.request(smoke.by_length()[0])

    def gateway() -> str:
        return get(stack.metrics_port, "/metrics").decode()

    def is_free() -> bool:
        triton = get(int(stack.server.metrics_url.rpartition(":")[2]), "/metrics").decode()
        return not total(triton, RUNNING) and not total(gateway(), IN_FLIGHT)

    for attempt in range(1, ATTEMPTS + 1):
        before = total(gateway(), ENDED)
        smoke.asker.leave(request)
        if not wait_until(is_free, smoke.over, FREED_S):
            return failed("not-freed", after_s=FREED_S)
        if wait_until(lambda: total(gateway(), ENDED) > before, smoke.over, 1.0):  # noqa: B023
            return passed(num_attempts=attempt)
    return not_tried("too-short", num_attempts=ATTEMPTS)


class Killer:
    """Kills the process of the first variant that answers, once."""

    def __init__(self, smoke: Smoke) -> None:
        """Nothing is killed yet."""
        self._smoke, self._lock = smoke, threading.Lock()
        self.victim = ""  # a variant's name
        self.has_process = True

    def __call__(self, name: str) -> None:
        """Kill the process of variant `name`, unless one was killed."""
        with self._lock:
            if self.victim:
                return
            self.victim = name
            variants = {variant.name: variant for variant in self._smoke.stack.variants}
            pid = self._smoke.stack.server.pid_of(model_name(variants[name]))
            self.has_process = pid is not None
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


def failover(smoke: Smoke) -> Verdict:
    """Answers of a variant whose process is killed go on, and are whole."""
    if len(smoke.stack.variants) < 2:
        return not_tried("one-variant")
    places = smoke.by_length()
    expected = [smoke.alone(place) for place in places]
    for attempt in range(1, ATTEMPTS + 1):
        kill = Killer(smoke)
        answers = smoke.asker.ask_all([smoke.request(place) for place in places], kill)
        if not kill.has_process:
            return failed("no-process")
        num_moved = sum(bool(answer.failed_over) for answer in answers)
        if num_moved:
            triples = zip(places, expected, answers, strict=True)
            left = [smoke.parting(place, one, other) for place, one, other in triples]
            return compared(left, smoke.is_exact, num_attempts=attempt, num_moved=num_moved)
        if not is_back(smoke):
            return failed("not-back", num_attempts=attempt)
    is_long = max(answer.num_steps for answer in expected) > 50
    return (failed if is_long else not_tried)(
        "not-failed-over" if is_long else "too-short", num_attempts=ATTEMPTS
    )


def recovery(smoke: Smoke) -> Verdict:
    """All variants answer again after one was killed."""
    if len(smoke.stack.variants) < 2:
        return not_tried("one-variant")
    return passed() if is_back(smoke) else failed("not-back")


def is_back(smoke: Smoke) -> bool:
    """Whether every hosted variant answers, waited for."""

    def answer_all() -> bool:
        try:
            said: list[Said] = [
                smoke.asker.ask(smoke.request(0).on(variant.draft_length))
                for variant in smoke.stack.variants
            ]
        except TrtMtpError:
            return False
        return all(answer.token_ids for answer in said)

    return wait_until(answer_all, smoke.over, BACK_S)


CHECKS: dict[CheckName, Check] = {
    "stream": stream,
    "draft-lengths": draft_lengths,
    "seed": seed,
    "stop-text": stop_text,
    "concurrency": concurrency,
    "cancel": cancel,
    "failover": failover,
    "recovery": recovery,
}
