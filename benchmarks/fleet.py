"""A gateway with a thousand servers: how long a choice takes, and what it costs to do nothing.

`python -m benchmarks.fleet [--json] [--short]`. Targets: a choice among 1,000 servers with 6 draft
lengths each takes 100 us at most in 99 of 100; a gateway in front of 1,000 servers that nobody uses
takes 5% of a core at most.

For the choice, servers are objects of the gateway that never connect; for the idle gateway, one
process that answers Triton's RPCs on a thousand loopback addresses.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from statistics import quantiles
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from benchmarks._report import arguments, print_report
from benchmarks.decision import prompts
from trt_mtp.controller.gateway.draws import DRAWS
from trt_mtp.controller.gateway.servers.backend import Backend
from trt_mtp.controller.gateway.servers.candidates import Index, Preference
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.policy import Policy
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.processes import free_ports

LENGTHS = (0, 1, 2, 3, 5, 7)
ZONES = ("a", "b", "c")
NUM_CHOICES = 4_000
NUM_PASSES = 5
IDLE_S = 30.0
SUBSET_SIZE = 20  # as docs/fleet.md has it


def server(number: int) -> Backend:
    """A server that has all draft lengths, as a gateway sees it."""
    found = Backend(f"10.0.{number // 250}.{number % 250}:8001", "qwen_mtp")
    found.zone = ZONES[number % len(ZONES)]
    found.variants = {f"k{k}": variant(found, k) for k in LENGTHS}
    return found


def variant(backend: Backend, draft_length: int) -> Replica:
    """A variant that runs requests of this gateway."""
    name = f"k{draft_length}"
    found = Replica(
        backend, f"{name}@{backend.target}", name, f"qwen_mtp_{name}", draft_length, 8, 1 << 20,
        "f0", {}, frozenset(), frozenset(),
    )  # fmt: skip
    found.health.poll(True, 0.0)
    found.num_running = random.randrange(6)
    return found


async def choices(num_servers: int, subset_size: int | None, num: int) -> dict[str, float]:
    """Microseconds of processor time of a choice, and of its first level.

    Each choice is made NUM_PASSES times, as the same draws have it, and counts with its quickest:
    what others on this machine take of its caches is not the gateway's.
    """
    random.seed(num_servers)
    servers = [server(number) for number in range(num_servers)]
    variants, now_s = [v for s in servers for v in s.variants.values()], time.monotonic()
    for each in variants:  # all choices are at this instant: what is known of others fades
        each.others.note(each.num_running + random.randrange(6), each.num_running, now_s)
    index = Index(variants, Preference("gateway-0", "a", subset_size))
    policy = Policy()
    passes = [timed_choices(index, policy, num, now_s) for _ in range(NUM_PASSES)]
    await asyncio.gather(*(each.close() for each in servers))
    first, whole = (
        quantiles([min(times) for times in zip(*every, strict=True)], n=100)
        for every in zip(*passes, strict=True)
    )
    return {
        "first_p50_us": round(first[49], 1),
        "first_p99_us": round(first[98], 1),
        "p50_us": round(whole[49], 1),
        "p99_us": round(whole[98], 1),
    }


def timed_choices(
    index: Index, policy: Policy, num: int, now_s: float
) -> tuple[list[float], list[float]]:
    """Microseconds of each choice's first level, and of the whole choice."""
    DRAWS.seed(1)
    requests = prompts(2_000)
    first, whole = list[float](), list[float]()
    for number in range(num):
        features = requests[number % len(requests)]
        began = time.thread_time_ns()
        states = [replica.state(True, now_s) for replica in index.candidates(now_s)]
        first.append((time.thread_time_ns() - began) / 1000)
        policy.choose(features, states, now_s=0.0)
        whole.append((time.thread_time_ns() - began) / 1000)
    return first, whole


async def idle(num_servers: int, seconds: float) -> dict[str, float]:
    """The share of a core that a pool takes while nothing is asked of it."""
    port = free_ports({"double": 0})["double"]
    double = subprocess.Popen([sys.executable, "-m", "benchmarks.fleet", "--double", str(port)])
    targets = ",".join(f"127.0.{n // 250}.{n % 250 + 1}:{port}" for n in range(num_servers))
    pool = Pool(targets, "qwen_mtp")
    try:
        await pool.wait_ready(120)
        pool.watch()
        async with asyncio.timeout(300):
            while sum(variant.is_ready for variant in pool.variants.values()) < num_servers:
                await asyncio.sleep(1.0)
        await asyncio.sleep(seconds / 3)
        begun, began_s = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        core = (time.process_time() - began_s) / (time.monotonic() - begun)
        ready = sum(variant.is_ready for variant in pool.variants.values())
        await pool.close()
    finally:
        double.terminate()
        double.wait(60)
    return {"num_ready": ready, "share_of_a_core": round(core, 4)}


async def serve_double(port: int) -> None:
    """Answer as a Triton with the variant k3, on every address of this machine."""
    config = pb.ModelConfigResponse()
    config.config.name = "qwen_mtp_k3"
    ready = pb.ModelReadyResponse(ready=True).SerializeToString()
    live = pb.ServerLiveResponse(live=True).SerializeToString()

    async def answer_config(request: bytes, context: Any) -> bytes:
        if pb.ModelConfigRequest.FromString(request).name != config.config.name:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return bytes(config.SerializeToString())

    async def answer_ready(request: bytes, context: Any) -> bytes:
        return bytes(ready)

    async def answer_live(request: bytes, context: Any) -> bytes:
        return bytes(live)

    answers = {
        "ModelConfig": answer_config,
        "ModelReady": answer_ready,
        "ServerLive": answer_live,
    }
    handlers = {name: grpc.unary_unary_rpc_method_handler(each) for name, each in answers.items()}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
    )
    server.add_insecure_port(f"0.0.0.0:{port}")
    await server.start()
    await server.wait_for_termination()


FLEETS = (  # what it is called, servers, and how many of them a gateway uses
    ("1 server", 1, None),
    (f"1,000 servers, a subset of {SUBSET_SIZE}", 1_000, SUBSET_SIZE),
    ("1,000 servers, no subset", 1_000, None),
)


def main() -> None:
    """Few servers and many, in one run."""
    asked = arguments("A gateway with a thousand servers.", "fewer choices, a shorter rest")
    num, seconds = (1_000, 6.0) if asked.short else (NUM_CHOICES, IDLE_S)
    rows = {name: asyncio.run(choices(many, subset, num)) for name, many, subset in FLEETS}
    one, *others = rows.values()
    rest = asyncio.run(idle(1_000, seconds))
    print_report(
        asked.json,
        {"choices": rows, "idle": rest, "num_cores": os.cpu_count()},
        [
            *(
                f"a choice, {name}, {len(LENGTHS)} draft lengths each: p50 {row['p50_us']} us, "
                f"p99 {row['p99_us']} us (target: 100 us); of these, the first level "
                f"{row['first_p50_us']} and {row['first_p99_us']} us"
                for name, row in rows.items()
            ),
            "over 1 server, at p50: "
            + ", ".join(f"{r['p50_us'] / one['p50_us']:.2f}" for r in others),
            f"idle in front of 1,000 servers, {rest['num_ready']} of them ready: "
            f"{rest['share_of_a_core']:.1%} of a core (target: 5%)",
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--double"]:
        asyncio.run(serve_double(int(sys.argv[2])))
    else:
        main()
