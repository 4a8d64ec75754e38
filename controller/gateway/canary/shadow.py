"""Shadow traffic: copies of live requests to a rollout's canary, whose answers nobody gets.

A copy is sent when its live answer is over, so that the two can be compared, and only a few run at
a time; what would be more is not copied. The times of copies are not compared with live ones: they
ran at another load.
"""

import asyncio
import json
import logging
import time
from array import array
from dataclasses import asdict, replace
from pathlib import Path

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.filters import can_take
from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.canary.traffic import CANARY, TrafficFile, shadow_log
from trt_mtp.controller.gateway.draws import DRAWS
from trt_mtp.controller.gateway.failure import VariantFailedError
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.router import Router
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.errors import TrtMtpError
from trt_mtp.files import open_private
from trt_mtp.serve.divergence import first_difference

log = logging.getLogger(__name__)

MAX_AT_ONCE = 4
MAX_LOG_BYTES = 64 * 1024 * 1024  # then copies are no longer written down
COPY_S = 300.0  # a copy that takes longer has failed
LONGEST_S = COPY_S / 3  # of an answer that is copied: a canary may be slower, which others judge


class Shadow:
    """Copies some requests, as the traffic file says. Use it in the gateway's event loop."""

    def __init__(self, file: TrafficFile, router: Router) -> None:
        self._file, self._router = file, router
        self._log = shadow_log(file.path)
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, live: Lease) -> None:
        """Perhaps copy a request that was answered; returns at once."""
        traffic = self._file.traffic
        if traffic is None or traffic.canary is None or not traffic.shadow_percent:
            return
        if DRAWS.random() * 100 >= traffic.shadow_percent or len(self._tasks) >= MAX_AT_ONCE:
            return
        if not live.is_answered or live.outcome is None or live.outcome.duration_s > LONGEST_S:
            return
        new = set(traffic.canary.variants) - set(traffic.stable.variants)
        replicas = self._router.pool.variants.values()
        free = [r for r in replicas if r.name in new and _has_room(r, live.call)]
        if free:
            task = asyncio.create_task(self._copy(live, free[0]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, live: Lease, replica: Replica) -> None:
        """Ask the canary the same, and write down how its answer compares."""
        copy = InferenceCall(live.call.request, live.call.features, live.call.caller)
        problem = "cancelled"
        lease = self._router.lease(copy, replica, _canary_decision(live, replica), _nothing)
        try:
            async with asyncio.timeout(COPY_S):
                with lease:
                    async for _ in lease:
                        pass
            problem = ""
        except TimeoutError:
            problem = f"no answer in {COPY_S:.0f} s"
        except (VariantFailedError, TrtMtpError) as error:
            problem = str(error)
        self._write(live, lease, problem)

    def _write(self, live: Lease, copy: Lease, problem: str) -> None:
        """One line, in the form of a decision log's, with what the comparison gave."""
        compared = _num_equal(live.call, copy.call) if not problem else None
        decision, outcome = copy.decision, copy.outcome
        assert outcome is not None
        if problem:
            outcome = replace(outcome, finish_reason="error")
        line = {
            "decision": {
                "now_s": decision.now_s,
                "side": CANARY,
                "variant": copy.replica.name,
                "task": decision.task,
            },
            "outcome": asdict(outcome),
            "shadow": {
                "is_equal": None if compared is None else compared[0],
                "num_equal_tokens": None if compared is None else compared[1],
                "problem": problem,
            },
        }
        _append(self._log, json.dumps(line, separators=(",", ":")) + "\n")


def _nothing(_: Lease) -> None:
    """Nobody learns from a copy."""


def _canary_decision(live: Lease, replica: Replica) -> Decision:
    """The live decision, as if it had been for `replica`."""
    chosen = live.decision.chosen._replace(variant=replica.key, draft_length=replica.draft_length)
    return live.decision._replace(
        variant=replica.key,
        draft_length=replica.draft_length,
        candidates=(chosen,),
        side=CANARY,
        now_s=time.time(),
    )


def _has_room(replica: Replica, live: InferenceCall) -> bool:
    state = replica.state(replica.is_ready, time.monotonic())
    return not state.is_full and can_take(state, live.features)


def _num_equal(live: InferenceCall, copy: InferenceCall) -> tuple[bool, int] | None:
    """Are two greedy answers equal, and for how many tokens? None for others."""
    one, other = (array("i", bytes(call.emitted)) for call in (live, copy))  # INT32
    if live.features.temperature > 0 or not one or not other:
        return None
    return one == other, first_difference(one, other)


def _append(path: Path, line: str) -> None:
    try:
        with open(path, "a", encoding="utf-8", opener=open_private) as file:
            if file.tell() < MAX_LOG_BYTES:
                file.write(line)
    except OSError as error:
        log.error("a shadow's outcome is lost: %s", error)
