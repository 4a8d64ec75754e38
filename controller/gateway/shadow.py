"""Shadow traffic: copies of live requests to a rollout's canary, whose answers nobody gets.

A copy is sent when its live answer is over, so that the two can be compared, and only a few run at
a time; what would be more is not copied. The times of copies are not compared with live ones: they
ran at another load.
"""

import asyncio
import json
import logging
import random
import time
from dataclasses import asdict
from pathlib import Path

from trt_mtp.controller.gateway.backend import Hosted
from trt_mtp.controller.gateway.flight import Attempt, Flight, outcome
from trt_mtp.controller.gateway.health import CallEnd
from trt_mtp.controller.gateway.pool import Pool
from trt_mtp.controller.gateway.traffic import CANARY, TrafficFile, shadow_log
from trt_mtp.controller.gateway.upstream import UpstreamLost
from trt_mtp.errors import InputError

log = logging.getLogger(__name__)

MAX_AT_ONCE = 4
MAX_LOG_BYTES = 64 * 1024 * 1024  # then copies are no longer written down
COPY_S = 300.0  # a copy that takes longer has failed


class Shadow:
    """Copies some requests, as the traffic file says. Use it in the gateway's event loop."""

    def __init__(self, file: TrafficFile, pool: Pool) -> None:
        self._file, self._pool = file, pool
        self._log = shadow_log(file.path)
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, live: Flight) -> None:
        """Perhaps copy a request that was answered; returns at once."""
        traffic = self._file.traffic
        if traffic is None or traffic.canary is None or not traffic.shadow_percent:
            return
        if random.random() * 100 >= traffic.shadow_percent or len(self._tasks) >= MAX_AT_ONCE:
            return
        new = set(traffic.canary.variants) - set(traffic.stable.variants)
        found = [v for v in self._pool.variants.values() if v.name in new and _has_room(v, live)]
        if found and live.attempt is not None:
            task = asyncio.create_task(self._copy(live, live.attempt, found[0]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, live: Flight, answered: Attempt, variant: Hosted) -> None:
        """Ask the canary the same, and write down how its answer compares."""
        copy = Flight(live.request, live.features, live.is_streaming)
        decision = answered.decision._replace(
            variant=variant.key, draft_length=variant.draft_length, side=CANARY, now_s=time.time()
        )
        attempt = copy.attempt_on(variant, decision, self._pool.public_name)
        variant.num_running += 1
        problem = "cancelled"
        try:
            async with asyncio.timeout(COPY_S):
                problem = await _ask(copy, attempt)
        except TimeoutError:
            problem = f"no answer in {COPY_S:.0f} s"
        finally:
            variant.num_running -= 1
            how = CallEnd.FAILED if problem else CallEnd.ANSWERED
            variant.health.end(attempt.begun, how, time.monotonic())
        self._write(live, copy, attempt, problem)

    def _write(self, live: Flight, copy: Flight, attempt: Attempt, problem: str) -> None:
        """One line, in the form of a decision log's, with what the comparison gave."""
        compared = _num_equal(live, copy) if not problem else None
        decision = attempt.decision
        line = {
            "decision": {
                "now_s": decision.now_s,
                "side": CANARY,
                "variant": attempt.variant.name,
                "task": decision.task,
            },
            "outcome": asdict(outcome(copy, attempt, "error" if problem else "")),
            "shadow": {
                "is_equal": None if compared is None else compared[0],
                "num_equal_tokens": None if compared is None else compared[1],
                "problem": problem,
            },
        }
        _append(self._log, json.dumps(line, separators=(",", ":")) + "\n")


def _has_room(variant: Hosted, live: Flight) -> bool:
    hint = live.features.hint_draft_length
    return (
        variant.is_ready
        and variant.num_running < variant.max_batch_size
        and (hint is None or hint == variant.draft_length)
    )


async def _ask(copy: Flight, attempt: Attempt) -> str:
    """Read the whole answer; what went wrong, or an empty string."""
    backend, reader = attempt.variant.backend, attempt.reader
    upstream = backend.lease(())
    try:
        upstream.begin(attempt.message)
        while not reader.is_over:
            reader.read(await upstream.read(), True)
            if copy.first_s is None:
                copy.first_s = time.monotonic()
    except (UpstreamLost, InputError) as error:
        return str(error)
    finally:
        backend.give_back(upstream) if reader.is_over else upstream.close()
    return reader.error


def _num_equal(live: Flight, copy: Flight) -> tuple[bool, int] | None:
    """Are two greedy answers equal, and for how many tokens? None for others."""
    one, other = bytes(live.emitted), bytes(copy.emitted)
    if live.features.temperature > 0 or not one or not other:
        return None
    pairs = zip(one, other, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return one == other, same // 4  # they are INT32


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            if file.tell() < MAX_LOG_BYTES:
                file.write(line)
    except OSError as error:
        log.error("a shadow's outcome is lost: %s", error)
