"""The gate on memory: real numbers of Triton's on this machine, and a GPU's from a double."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.rollout_crash import call
from tests.conftest import CliResult
from tests.gateway_fixtures import wait_until
from tests.programs import join
from tests.rollout_fixtures import FAST_GATES, Place, live_requests, make_double, place
from trt_mtp.controller.rollout.memory_gate import read_memory
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.processes import free_ports

Cli = Callable[..., CliResult]
GPUS = ("GPU-0e9fdafb", "GPU-91cd26a8")
TOTAL = 80_000_000_000
SOAK = [{"set_weight": 100, "at_least_s": 0, "at_most_s": 60}]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One place for all; every rollout but the last is taken back."""
    folder = tmp_path_factory.mktemp("memory")
    with place(folder, [make_double(folder / "engines", length) for length in (0, 3)]) as running:
        yield running


class Gpus:
    """A double of the metrics of a Triton on two GPUs: `used` of the second may be changed."""

    def __init__(self) -> None:
        self.used = [16e9, 20e9]
        self.is_down = False

    def text(self) -> str:
        """As Triton writes them."""
        lines = ["# TYPE nv_gpu_utilization gauge", f'nv_gpu_utilization{{gpu_uuid="{GPUS[0]}"}} 1']
        for gpu, used in zip(GPUS, self.used, strict=True):
            lines.append(f'nv_gpu_memory_total_bytes{{gpu_uuid="{gpu}"}} {TOTAL:f}')
            lines.append(f'nv_gpu_memory_used_bytes{{gpu_uuid="{gpu}"}} {used:f}')
        return "\n".join([*lines, "nv_cpu_memory_total_bytes 100", "nv_cpu_memory_used_bytes 10"])


@contextmanager
def metrics_of(gpus: Gpus) -> Iterator[str]:
    """A metrics port that tells of `gpus`; host:port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if gpus.is_down or self.path != "/metrics" else 200)
            self.end_headers()
            self.wfile.write(gpus.text().encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        join(thread)
        server.server_close()


@contextmanager
def started(here: Place, file: Path, cli: Cli) -> Iterator[list[int]]:
    """`rollout start` in a process of its own, which watches a step by now; its exit code."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(call(file)[0]))
    thread.start()
    try:
        wait_until(lambda: "fails above" in cli("rollout", "explain", file).out, 60)
        yield codes
    finally:
        join(thread)


def is_restored(here: Place) -> bool:
    """True when k0 and k3 are stable and there is no canary."""
    traffic = here.traffic()
    return traffic["stable"]["variants"] == ["k0", "k3"] and traffic["canary"] is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "much"])
def test_a_number_that_is_none_is_not_read(value: str) -> None:
    """What else is told counts."""

    class Odd(Gpus):
        def text(self) -> str:
            odd = f'nv_gpu_memory_total_bytes{{gpu_uuid="x"}} {value}'
            return f"{odd}\n{super().text()}"

    with metrics_of(Odd()) as address:
        assert {memory.device for memory in read_memory(address)} == {*GPUS, "host"}


def test_a_full_server_gets_no_requests(here: Place, cli: Cli) -> None:
    """Triton's own numbers: more than the share in use after loading ends the rollout."""
    variant = make_double(here.folder / "full", 3)
    file = here.spec(
        variant.folder,
        "k3",
        name="full",
        metrics=here.triton.metrics_url,
        gates=FAST_GATES | {"max_memory_share": 0.001},
    )
    planned = json.loads(cli("rollout", "plan", file, "--json").out)
    (gate,) = planned["memory_gates"]
    (host,) = gate["devices"]
    assert (host["device"], gate["max_share"]) == ("host", 0.001)
    assert 0 < host["used_bytes"] < host["total_bytes"]
    assert not any("not gated" in note for note in planned["notes"])
    with live_requests(here.gateway, num_clients=1) as seen:
        result = cli("rollout", "start", file, "--json")
    status = json.loads(result.out)
    assert (result.code, status["phase"], seen.errors) == (4, "Aborted", [])
    assert f"memory of {here.triton.grpc_url}: host " in status["reason"]
    assert "gates.max_memory_share allows 0.1%" in status["reason"]
    assert is_restored(here)
    events = json.loads(cli("rollout", "history", file, "--json").out)["events"]
    (failed,) = [event for event in events if event["stage"] == "failed"]
    assert failed["action"] == "load 0"
    assert failed["what"]["memory"]["devices"][0]["device"] == "host"


def test_a_gpu_that_fills_up_ends_a_step(here: Place, cli: Cli) -> None:
    """The fullest device counts, and it is looked at all the time."""
    variant, gpus = make_double(here.folder / "fills", 3), Gpus()
    steps = [{"set_weight": 50, "at_least_s": 600, "at_most_s": 900}]
    with metrics_of(gpus) as metrics, live_requests(here.gateway, num_clients=1) as seen:
        file = here.spec(variant.folder, "k3", name="fills", metrics=metrics, steps=steps)
        planned = cli("rollout", "plan", file).out
        assert f"{GPUS[1]} 20.00 of 80.00 GB (25.0%), host" in planned
        assert "fails above 95.0%" in planned
        with started(here, file, cli) as codes:
            gpus.used[1] = 79e9
    assert (codes, seen.errors) == ([4], [])
    reason = json.loads(cli("rollout", "status", file, "--json").out)["reason"]
    assert f"{GPUS[1]} 79.00 of 80.00 GB (98.8%) in use" in reason
    assert is_restored(here)


def test_a_gate_that_sees_nothing_does_not_pass(here: Place, cli: Cli) -> None:
    """Without an answer nothing begins, and in a step the rollout ends after a few failures."""
    variant, gpus = make_double(here.folder / "blind", 3), Gpus()
    steps = [{"set_weight": 50, "at_least_s": 600, "at_most_s": 900}]
    with metrics_of(gpus) as metrics, live_requests(here.gateway, num_clients=1):
        file = here.spec(variant.folder, "k3", name="blind", metrics=metrics, steps=steps)
        gpus.is_down = True
        refused = cli("rollout", "start", file)
        assert (refused.code, f"the metrics at {metrics} can't be read" in refused.err) == (1, True)
        gpus.is_down = False
        with started(here, file, cli) as codes:
            gpus.is_down = True
    assert codes == [4]
    reason = cli("rollout", "status", file).out
    assert f"memory of {here.triton.grpc_url}: 2 probes in a row failed" in reason
    assert is_restored(here)


def test_what_was_used_is_in_the_history(here: Place, cli: Cli) -> None:
    """With room enough the rollout goes through; each step says what was used at most."""
    variant = make_double(here.folder / "fits", 3)
    gates = FAST_GATES | {"max_memory_share": 1.0}
    file = here.spec(
        variant.folder, "k3", "fits", metrics=here.triton.metrics_url, steps=SOAK, gates=gates
    )
    with live_requests(here.gateway) as seen:
        assert cli("rollout", "start", file).code == 0
    assert seen.errors == []
    events = json.loads(cli("rollout", "history", file, "--json").out)["events"]
    what = {event["action"]: event["what"] for event in events if event["stage"] == "done"}
    assert what["load 0"]["memory"]["devices"][0]["used_bytes"] > 0
    assert what["0 set_weight 100"]["memory"][0]["devices"][0]["used_bytes"] > 0
    without = here.spec(make_double(here.folder / "next", 5).folder, "k3", name="without")
    planned = cli("rollout", "plan", without)
    assert f"memory of {here.triton.grpc_url} is not gated" in planned.out


def test_other_answers_are_named(tmp_path: Path) -> None:
    """A port where nobody listens, and a page without memory, are one sentence each."""
    port = free_ports({"metrics": 0})["metrics"]
    with pytest.raises(TrtMtpError, match=rf"127.0.0.1:{port} can't be read.*metrics port"):
        read_memory(f"127.0.0.1:{port}")
    gpus = Gpus()
    gpus.text = lambda: "nv_gpu_utilization 1"  # type: ignore[method-assign]
    with metrics_of(gpus) as metrics, pytest.raises(TrtMtpError, match="tell no memory"):
        read_memory(metrics)
