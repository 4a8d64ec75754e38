"""What dies during a rollout, and what is left: the old state, and clients with their answers."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.rollout_crash import call
from tests.conftest import CliResult
from tests.gateway_fixtures import wait_until, watch_until_back
from tests.programs import command_line, join
from tests.rollout_fixtures import FAST_GATES, Place, live_requests, make_double, place
from tests.triton_client import streaming
from trt_mtp.controller.gateway.canary.traffic import read_traffic
from trt_mtp.controller.rollout import store as rollout_store
from trt_mtp.controller.rollout.plan import named_variant
from trt_mtp.controller.rollout.store import Store
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.processes import children

Cli = Callable[..., CliResult]
LONG = [{"set_weight": 50, "at_least_s": 600, "at_most_s": 900}]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One place for all faults; every rollout is taken back."""
    folder = tmp_path_factory.mktemp("faults")
    with place(folder, [make_double(folder / "engines", length) for length in (0, 3)]) as running:
        yield running


def disturbed(here: Place, file: Path, act: Callable[[], None]) -> int:
    """The exit code of a rollout during which something is done as soon as the canary has half."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(call(file)[0]))
    thread.start()
    traffic = here.folder / "traffic.json"
    try:
        wait_until(lambda: traffic.exists() and here.traffic()["canary_percent"] == 50, 60)
        act()  # in this thread: Triton ends with the thread that starts it
    finally:
        join(thread)
    return codes[0]


def stub_of(here: Place, variant: str) -> int:
    """The process of a variant's model."""
    for pid in children(here.triton.pid):
        if f"/qwen_mtp_{variant}/".encode() in command_line(pid):
            return pid
    raise AssertionError(f"{variant} is not loaded")


def is_restored(here: Place) -> bool:
    """True when k0 and k3 are stable and there is no canary."""
    traffic = here.traffic()
    return traffic["stable"]["variants"] == ["k0", "k3"] and traffic["canary"] is None


def test_a_canary_that_dies_costs_nobody_an_answer(here: Place, cli: Cli) -> None:
    """Triton calls it ready still; the probes don't, and what it had goes on elsewhere."""
    variant = make_double(here.folder / "dies", 3, delay_s=0.01)
    gates = {**FAST_GATES, "tolerance": 0.9}
    file = here.spec(variant.folder, "k3", name="dies", steps=LONG, gates=gates)

    def kill() -> None:
        os.kill(stub_of(here, named_variant(variant.folder).name), signal.SIGKILL)

    with live_requests(here.gateway, tokens=20) as seen:
        assert disturbed(here, file, kill) == 4
    reason = cli("rollout", "status", file).out
    assert "probes in a row" in reason or "fails at" in reason
    assert seen.errors == []
    assert is_restored(here)


def test_triton_that_dies_comes_back_as_it_was(here: Place, cli: Cli) -> None:
    """It is started again without the canary, and the rollout ends taken back."""
    variant = make_double(here.folder / "triton", 3)
    file = here.spec(variant.folder, "k3", name="triton", steps=LONG)

    def kill() -> None:
        pid = here.triton.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not children(pid))
        watch_until_back(here.triton, pid)

    code = disturbed(here, file, kill)
    if code == 1:  # it was out of reach just then
        code = cli("rollout", "start", file).code
    assert code == 4
    assert is_restored(here)
    with streaming(here.triton.grpc_url) as stream:
        assert stream.ask("qwen_mtp_k3", text_input="{}")[-1].is_final


def test_a_full_disk_stops_it_and_the_next_call_goes_on(
    here: Place, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is done that can't be written first; with room again, abort restores what was."""
    variant = make_double(here.folder / "disk", 3)
    steps = [{"set_weight": 50, "at_least_s": 0, "at_most_s": 1}]
    file = here.spec(variant.folder, "k3", name="disk", steps=steps)
    record = Store.record

    def full(store: Store, rollout: object, action: str, *rest: object, **more: object) -> None:
        if action == "equivalence":
            raise TrtMtpError(f"can't write {store.path}: database or disk is full")
        record(store, rollout, action, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(rollout_store.Store, "record", full)
    stopped = cli("rollout", "start", file)
    assert (stopped.code, "disk is full" in stopped.out) == (1, True)
    assert is_restored(here)  # no request goes to what nobody watches
    monkeypatch.undo()
    assert cli("rollout", "start", file).code == 5  # it went on, to a step without traffic
    assert cli("rollout", "abort", file).code == 0
    assert is_restored(here)


def test_the_old_length_may_be_asked_for_until_it_is_gone(here: Place, cli: Cli) -> None:
    """A client that names its draft length gets it while it is hosted, then a sentence.

    In the second until the gateway has looked, an answer from another length is as good: the
    request meets a model that is gone, and fails over.
    """
    variant = make_double(here.folder / "k5", 5)
    steps = [{"set_weight": 100, "at_least_s": 0, "at_most_s": 60}, {"pause": True}]
    file = here.spec(variant.folder, "k3", name="k5", steps=steps)
    with live_requests(here.gateway), streaming(here.gateway) as stream:
        assert cli("rollout", "start", file).code == 3
        asked = {"text_input": "{}", "parameters": {"draft_length": "3"}}
        assert stream.ask("qwen_mtp", **asked)[-1].error == ""
        assert cli("rollout", "promote", file).code == 0
        refused = ""

        def is_refused() -> bool:
            nonlocal refused
            refused = stream.ask("qwen_mtp", **asked)[-1].error
            return bool(refused)

        wait_until(is_refused)
    assert "draft_length" in refused or "no variant" in refused
    assert read_traffic(here.folder / "traffic.json").stable.variants[1].startswith("k5_")
