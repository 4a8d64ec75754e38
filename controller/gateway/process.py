"""The process around a gateway: signals, what was learned kept on disk, a line of counters."""

import asyncio
import contextlib
import gc
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.controller.decision_log import DecisionLog
from trt_mtp.controller.gateway.canary.shadow import Shadow
from trt_mtp.controller.gateway.canary.traffic import TrafficFile
from trt_mtp.controller.gateway.canary.traffic_policy import TrafficPolicy, follow
from trt_mtp.controller.gateway.gateway import Gateway, GatewayConfig
from trt_mtp.controller.gateway.observers import RequestLogger
from trt_mtp.controller.gateway.shared.config import SharedConfig
from trt_mtp.controller.gateway.shared.metrics import SharedMetrics
from trt_mtp.controller.gateway.shared.sharing import Sharing
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile, read_profile, require_measured_on
from trt_mtp.controller.state import default_replica, load_state, save_state
from trt_mtp.errors import TrtMtpError
from trt_mtp.interrupts import interrupt, note_interrupt, run_async, time_left
from trt_mtp.serve.processes import end_signals

log = logging.getLogger(__name__)

OnReady = Callable[[dict[str, Any]], None]

REPORT_S = 60.0
LOOK_S = 0.1
SAME_S = 2.0  # signals of one end: systemd sends SIGTERM to us, and so does who started us
YOUNG_OBJECTS = 50_000  # made and not freed again, before the collector looks for cycles


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """What the command line adds to the gateway's own settings."""

    gateway: GatewayConfig
    profile: Path | None = None
    state: Path | None = None  # what was learned: read at the start, written every minute
    decision_log: Path | None = None  # one line per request, for `trt-mtp replay`
    log_prompts: bool = False  # in the decision log
    replica: str | None = None  # this gateway's name in states; None takes default_replica
    traffic: Path | None = None  # what a rollout says about who goes where
    shared: SharedConfig | None = None  # through which gateways share what they know


def run_gateway(config: ProcessConfig, on_ready: OnReady) -> None:
    """Run a gateway until SIGTERM, SIGHUP or Ctrl-C; a second one doesn't wait for answers.

    `on_ready` is given what `Gateway.describe` says.

    Raises InputError for a wrong file or a port in use, TrtMtpError when no variant gets ready.
    """
    run_async(_run(config, on_ready))


async def _run(config: ProcessConfig, on_ready: OnReady) -> None:
    profile = read_profile(config.profile) if config.profile else Profile()
    policy = Policy(profile, replica=config.replica or default_replica(config.state))
    decisions = DecisionLog(config.decision_log) if config.decision_log else None
    traffic = TrafficFile(config.traffic) if config.traffic else None
    sharing = Sharing(config.shared, config.gateway.model, policy) if config.shared else None
    gateway = Gateway(
        config.gateway,
        TrafficPolicy(policy, traffic) if traffic else policy,
        sharing.limits if sharing else None,
    )
    observers = gateway.router.observers
    if decisions is not None:
        observers.append(RequestLogger(decisions, log_prompts=config.log_prompts))
    if traffic is not None:
        observers.append(Shadow(traffic, gateway.router).offer)
    follower = asyncio.create_task(follow(traffic, gateway.pool)) if traffic else None
    try:
        await gateway.connect()
        check_fingerprint(profile, str(config.profile), gateway)
        if config.state is not None:
            log.info("%s", load_state(config.state, policy, _hosted(gateway)))
        if sharing is not None:
            await sharing.begin(SharedMetrics(gateway.metrics.registry), lambda: _hosted(gateway))
        await gateway.start()
        _collect_seldom()
        ended = _end_of_service()
        gateway.on_drain = ended.set
        on_ready(gateway.describe())
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), REPORT_S)
                break
            # every while for who debugs, as /metrics has them all along
            _report(gateway, policy, config.state, logging.DEBUG)
    finally:
        if traffic is not None and follower is not None:
            follower.cancel()
            traffic.close()
        is_whole = await _stopped(gateway)
        if sharing is not None:
            await sharing.end()
        _ignore_further(signal.SIGTERM, signal.SIGHUP)
    _report(gateway, policy, config.state, logging.INFO)
    if decisions is not None:
        decisions.close()
    if not is_whole:
        raise TrtMtpError("stopped, and cut answers that were still in flight")


def _collect_seldom() -> None:
    """Keep the garbage collector off the path of requests, which make no cycles of their own.

    What is there from the start is never looked at again. The cycles that gRPC makes, some six
    small objects a stream, are still found, but not by a look at every other request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


async def _stopped(gateway: Gateway) -> bool:
    """Stop it, for as long as its grace period lasts, or a Ctrl-C leaves of that.

    False when that was not enough for the answers in flight.
    """
    cut_at = time.monotonic() + gateway.config.grace_s
    stopping = asyncio.ensure_future(gateway.stop())
    while not stopping.done() and time_left(LOOK_S):
        await asyncio.wait([stopping], timeout=LOOK_S)
    if stopping.done():
        stopping.result()
    return stopping.done() and time.monotonic() < cut_at


def _end_of_service() -> asyncio.Event:
    """Set by the first signal; SAME_S later signals do what they do without us, Ctrl-C at once."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def leave() -> None:
        for each in (signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(each)

    def end(number: signal.Signals) -> None:
        if loop.remove_signal_handler(signal.SIGINT):  # the first one
            signal.signal(signal.SIGINT, interrupt)
            loop.call_later(SAME_S, leave)
        ended.set()
        if number == signal.SIGINT:
            note_interrupt()

    for number in (signal.SIGINT, *end_signals()):
        loop.add_signal_handler(number, end, number)
    return ended


def _ignore_further(*numbers: signal.Signals) -> None:
    """From now on, those that had a handler do nothing: all answers are over."""
    loop = asyncio.get_running_loop()
    for number in numbers:
        if loop.remove_signal_handler(number):
            signal.signal(number, signal.SIG_IGN)


def check_fingerprint(profile: Profile, where: str, gateway: Gateway) -> None:
    """Raise InputError when the profile was measured on other variants than those hosted."""
    hosted = {v.fingerprint: v.measured_on for v in gateway.pool.variants.values()}
    require_measured_on(profile, where, hosted, "Triton hosts")


def _hosted(gateway: Gateway) -> frozenset[str]:
    """The fingerprints of the variants."""
    return frozenset(v.fingerprint for v in gateway.pool.variants.values() if v.fingerprint)


def _report(gateway: Gateway, policy: Policy, state: Path | None, level: int) -> None:
    """Log the counters, for programs; on a terminal `trt-mtp top` and /statistics show them."""
    if sys.stderr.isatty():
        level = logging.DEBUG
    log.log(level, "counters %s", json.dumps(gateway.statistics(), separators=(",", ":")))
    if state is not None:
        try:
            save_state(state, policy, _hosted(gateway))
        except TrtMtpError as error:  # a full disk may not cost answers
            log.error("what was learned is not saved: %s", error)
