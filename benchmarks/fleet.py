"""A gateway with a thousand servers: how long a choice takes, and what it costs to do nothing.

`python -m benchmarks.fleet [--json] [--short]`. Targets: a choice among 1,000 servers with 6 draft
lengths each takes 100 us at most in 99 of 100; a gateway in front of 1,000 servers that nobody uses
takes 5% of a core at most.

The servers are doubles: for the choice, objects of the gateway without a connection; for the idle
gateway, one process that answers Triton's RPCs on a thousand loopback addresses.
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
from trt_mtp.controller.gateway.servers.backend import Replica
from trt_mtp.controller.gateway.servers.candidates import Index, Preference
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.policy import Policy
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.processes import free_ports

LENGTHS = (0, 1, 2, 3, 5, 7)
ZONES = ("a", "b", "c")
NUM_CHOICES = 20_000
IDLE_S = 30.0


class ServerDouble:
    """What a variant needs of its server to be chosen."""

    def __init__(self, number: int) -> None:
        self.target = f"10.0.{number // 250}.{number % 250}:8001"
        self.zone = ZONES[number % len(ZONES)]
        self.variants = {f"k{k}": self._variant(k) for k in LENGTHS}

    def load(self, now_s: float) -> int:
        """As of a Backend."""
        return sum([variant.load(now_s) for variant in self.variants.values()])

    def _variant(self, draft_length: int) -> Replica:
        name = f"k{draft_length}"
        nothing: Any = self
        found = Replica(
            nothing, f"{name}@{self.target}", name, f"qwen_mtp_{name}", draft_length, 8, 1 << 20,
            "f0", {}, frozenset(), frozenset(),
        )  # fmt: skip
        found.health.poll(True, 0.0)
        found.num_running = random.randrange(6)
        found.others.note(random.randrange(6), 0, time.monotonic())
        return found


def choices(num_servers: int, num: int) -> dict[str, float]:
    """Microseconds of processor time of a choice, and of its first level.

    Each of the servers has all draft lengths.
    """
    random.seed(num_servers)
    servers = [ServerDouble(number) for number in range(num_servers)]
    preference = Preference("gateway-0", "a")
    index = Index([v for s in servers for v in s.variants.values()], preference)
    policy, requests = Policy(), prompts(2_000)
    first, whole = list[float](), list[float]()
    for number in range(num):
        features, now_s = requests[number % len(requests)], time.monotonic()
        began = time.thread_time_ns()  # others use this machine, too
        states = [replica.state(True, now_s) for replica in index.candidates(now_s)]
        first.append((time.thread_time_ns() - began) / 1000)
        policy.choose(features, states, now_s=0.0)
        whole.append((time.thread_time_ns() - began) / 1000)
    levels, steps = quantiles(first, n=100), quantiles(whole, n=100)
    return {
        "first_p50_us": round(levels[49], 1),
        "first_p99_us": round(levels[98], 1),
        "p50_us": round(steps[49], 1),
        "p99_us": round(steps[98], 1),
    }


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


def main() -> None:
    """Few servers and many, in one run."""
    asked = arguments("A gateway with a thousand servers.", "fewer choices, a shorter rest")
    num, seconds = (2_000, 6.0) if asked.short else (NUM_CHOICES, IDLE_S)
    few, many = choices(1, num), choices(1_000, num)
    rest = asyncio.run(idle(1_000, seconds))
    print_report(
        asked.json,
        {"choices": {"1": few, "1000": many}, "idle": rest, "num_cores": os.cpu_count()},
        [
            *(
                f"a choice, {count} with {len(LENGTHS)} draft lengths: p50 {row['p50_us']} us, "
                f"p99 {row['p99_us']} us (target: 100 us); of these, the first level "
                f"{row['first_p50_us']} and {row['first_p99_us']} us"
                for count, row in (("1 server", few), ("1,000 servers", many))
            ),
            f"1,000 servers over 1: {many['p50_us'] / few['p50_us']:.2f} at p50",
            f"idle in front of 1,000 servers, {rest['num_ready']} of them ready: "
            f"{rest['share_of_a_core']:.1%} of a core (target: 5%)",
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--double"]:
        asyncio.run(serve_double(int(sys.argv[2])))
    else:
        main()
