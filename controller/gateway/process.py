"""The process around a gateway: signals, what was learned kept on disk, a line of counters."""

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.controller.decision_log import DecisionLog, LoggedPolicy
from trt_mtp.controller.gateway.gateway import Gateway, GatewayConfig
from trt_mtp.controller.gateway.shadow import Shadow
from trt_mtp.controller.gateway.traffic import TrafficFile
from trt_mtp.controller.gateway.traffic_policy import TrafficPolicy, follow
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile, read_profile, require_measured_on
from trt_mtp.controller.state import PeerStates, default_replica, load_state, save_state
from trt_mtp.errors import TrtMtpError

log = logging.getLogger(__name__)

OnReady = Callable[[dict[str, Any]], None]

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
REPORT_S = 60.0
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """What the command line adds to the gateway's own settings."""

    gateway: GatewayConfig
    profile: Path | None = None
    state: Path | None = None  # what was learned: read at the start, written every minute
    decision_log: Path | None = None  # one line per request, for `trt-mtp replay`
    log_prompts: bool = False  # in the decision log
    replica: str | None = None  # this gateway's name in states; None takes default_replica
    peer_states: Sequence[Path] = ()  # of other gateways: read at the start and every minute
    worker_states: Sequence[Path] = ()  # of the other workers, the same once they are there
    traffic: Path | None = None  # what a rollout says about who goes where


def run_gateway(config: ProcessConfig, on_ready: OnReady) -> None:
    """Run a gateway until SIGTERM, SIGHUP or Ctrl-C; a second one doesn't wait for answers.

    `on_ready` is given what `Gateway.describe` says.

    Raises InputError for a wrong file or a port in use, TrtMtpError when no variant gets ready.
    """
    asyncio.run(_run(config, on_ready))


async def _run(config: ProcessConfig, on_ready: OnReady) -> None:
    profile = read_profile(config.profile) if config.profile else Profile()
    policy = Policy(profile, replica=config.replica or default_replica(config.state))
    peers = PeerStates(config.peer_states, config.worker_states)
    decisions = DecisionLog(config.decision_log) if config.decision_log else None
    traffic = TrafficFile(config.traffic) if config.traffic else None
    divided = TrafficPolicy(policy, traffic) if traffic else policy
    logged = LoggedPolicy(divided, decisions, log_prompts=config.log_prompts) if decisions else None
    gateway = Gateway(config.gateway, logged or divided)
    follower = asyncio.create_task(follow(traffic, gateway.pool)) if traffic else None
    if traffic is not None:
        gateway.answering.on_answered = Shadow(traffic, gateway.pool).offer
    try:
        await gateway.start()
        check_fingerprint(profile, str(config.profile), gateway)
        if config.state is not None:
            log.info("%s", load_state(config.state, policy, _hosted(gateway)))
        _merge(peers, policy, gateway)
        ended = _end_of_service()
        gateway.on_drain = ended.set
        on_ready(gateway.describe())
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), REPORT_S)
                break
            _merge(peers, policy, gateway)
            _report(gateway, policy, config.state)
    finally:
        if traffic is not None and follower is not None:
            follower.cancel()
            traffic.close()
        await gateway.stop()
    _report(gateway, policy, config.state)
    if decisions is not None:
        decisions.close()


def _end_of_service() -> asyncio.Event:
    """Set by the first signal; from then on signals do what they do without us."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        ended.set()
        for number in END_SIGNALS:
            loop.remove_signal_handler(number)

    for number in END_SIGNALS:
        loop.add_signal_handler(number, end)
    return ended


def check_fingerprint(profile: Profile, where: str, gateway: Gateway) -> None:
    """Raise InputError when the profile was measured on other variants than those hosted."""
    hosted = {v.fingerprint: v.measured_on for v in gateway.pool.variants.values()}
    require_measured_on(profile, where, hosted, "Triton hosts")


def _hosted(gateway: Gateway) -> frozenset[str]:
    """The fingerprints of the variants."""
    return frozenset(v.fingerprint for v in gateway.pool.variants.values() if v.fingerprint)


def _merge(peers: PeerStates, policy: Policy, gateway: Gateway) -> None:
    for problem in peers.merge_into(policy, _hosted(gateway)):
        log.warning("%s", problem)


def _report(gateway: Gateway, policy: Policy, state: Path | None) -> None:
    log.info("counters %s", json.dumps(gateway.statistics(), separators=(",", ":")))
    if state is not None:
        try:
            save_state(state, policy, _hosted(gateway))
        except TrtMtpError as error:  # a full disk may not cost answers
            log.error("what was learned is not saved: %s", error)
