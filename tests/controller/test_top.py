"""`trt-mtp top`: a gateway's statistics on a screen."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import CliResult
from tests.gateway_fixtures import GatewayThread, raw_stream, running_gateway, script_request
from trt_mtp.controller import admin_client
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.top import WIDTH, Look, screen
from trt_mtp.serve.triton import TritonServer

Cli = Callable[..., CliResult]
COUNTERS = ("requests", "finished", "failed", "cancelled", "failed_over", "output_tokens", "steps",
            "draft_tokens", "accepted_draft_tokens", "drifts")  # fmt: skip


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One with an admin port that has answered."""
    with running_gateway(doubles.grpc_url, Policy(), admin_port=0) as thread:
        with raw_stream(thread.gateway.address) as stream:
            stream.send(script_request(tokens=2, parameters={"task": "coding"}))
            stream.receive()
            stream.receive()
        yield thread


def test_a_screen_of_a_gateway(cli: Cli, gateway: GatewayThread) -> None:
    """Variants with their state, and the task with its choice."""
    result = cli("top", "--once", "--admin", f"127.0.0.1:{gateway.gateway.admin_port}")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"qwen_mtp at {gateway.gateway.address}\n")
    assert "in flight 0   waiting 0   refused 0" in result.out
    assert result.out.count(" ready ") == len(gateway.gateway.pool.variants)
    (coding,) = (line for line in result.out.splitlines() if line.startswith("coding"))
    assert "100%" in coding


def test_the_statistics_as_they_are(cli: Cli, gateway: GatewayThread) -> None:
    """For scripts."""
    result = cli("top", "--once", "--json", "--admin", f"127.0.0.1:{gateway.gateway.admin_port}")
    value = json.loads(result.out)
    assert value["schema_version"] == 1
    assert value["tasks"]["coding"]["num_requests"] == 1
    assert value["tasks"]["coding"]["num_drifts"] == 0


def test_a_wrong_address_is_named(cli: Cli, doubles: TritonServer) -> None:
    """One that is none, one where nobody is, one of another program."""
    assert cli("top", "--admin", "9001").code == 2
    result = cli("top", "--admin", "127.0.0.1:1")
    assert result.code == 1
    assert "--admin 127.0.0.1:1 does not answer" in result.err
    grpc = cli("top", "--admin", doubles.grpc_url)
    assert (grpc.code, "is not a gateway's admin port" in grpc.err) == (2, True)
    assert grpc.err.strip().isprintable()


@pytest.mark.parametrize(
    "statistics", [{"tasks": 3}, {"tasks": {}}, {"tasks": {"a": {}}, "variants": {"k3": []}}]
)
def test_another_program_at_the_port_is_told_from_a_gateway(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, statistics: dict[str, Any]
) -> None:
    """Any user of the machine may have taken it."""
    monkeypatch.setattr(admin_client, "read_statistics", lambda address: statistics)
    result = cli("top", "--admin", "127.0.0.1:9001", "--once")
    assert (result.code, "is not a gateway's admin port" in result.err) == (2, True)


def task(**counters: int) -> dict[str, Any]:
    """A task's statistics."""
    chosen = {"3": counters.get("requests", 0)}
    return {f"num_{name}": counters.get(name, 0) for name in COUNTERS} | {"chosen": chosen}


def look(at_s: float, tasks: dict[str, Any], num_variants: int = 1) -> Look:
    """One look at a gateway."""
    variant = {"draft_length": 3, "is_ready": True, "is_ejected": False, "num_running": 2}
    return Look(
        at_s,
        {
            "model": "qwen_mtp", "gateway": "127.0.0.1:8001", "num_refused": 0, "num_waiting": 0,
            "tasks": tasks,
            "variants": {f"k3@10.0.0.{i}:8001": variant for i in range(num_variants)},
        },
    )  # fmt: skip


def test_rates_are_those_since_the_last_look() -> None:
    """Per second; a gateway that was started again begins at 0."""
    before = look(10.0, {"coding": task(requests=10, output_tokens=1_000)})
    now = look(12.0, {"coding": task(requests=14, output_tokens=3_000)})
    (line,) = (line for line in screen(before, now, 24).splitlines() if line.startswith("coding"))
    assert line.split()[1:3] == ["2", "1,000"]
    again = look(14.0, {"coding": task(requests=1, output_tokens=60)})
    (line,) = (line for line in screen(now, again, 24).splitlines() if line.startswith("coding"))
    assert line.split()[1:3] == ["0.5", "30"]


@given(
    counts=st.lists(st.integers(0, 10**12), max_size=20),
    num_variants=st.integers(0, 3_000),
    height=st.integers(10, 60),
)
def test_it_fits_the_terminal(counts: list[int], num_variants: int, height: int) -> None:
    """Whatever the gateway has done, and however many variants there are."""
    tasks = {f"task{i}": task(requests=n, output_tokens=n) for i, n in enumerate(counts)}
    lines = screen(None, look(0.0, tasks, num_variants), height).splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= WIDTH
