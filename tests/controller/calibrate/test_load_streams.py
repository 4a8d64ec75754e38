"""The load client at a real Triton: how it ends what is in flight, and a server that stops."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_fixtures import running_gateway, triton_of_doubles, wait_until
from trt_mtp.controller import client
from trt_mtp.controller.calibrate import load_streams
from trt_mtp.controller.calibrate.load_client import Batch, LoadClient, request_bytes
from trt_mtp.controller.client import Prompt, StreamClient
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.triton import TritonServer

VARIANT = "qwen_mtp_k0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the doubles of `triton` leave their notes."""
    return tmp_path_factory.mktemp("doubles")


@pytest.fixture(scope="module")
def triton(folder: Path) -> Iterator[TritonServer]:
    """One Triton of doubles for all tests that leave it alive."""
    with triton_of_doubles(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def _soon_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is quiet is asked sooner whether it lives; how long it may take stays."""
    for module in (load_streams, client):
        monkeypatch.setattr(module, "QUIET_S", 1.0)


def scripted(**script: Any) -> Prompt:
    """A prompt that tells a double what to answer."""
    return Prompt([{"role": "user", "content": json.dumps(script)}])


def notes(folder: Path, name: str) -> set[str]:
    """What the double noted about the requests of this name: begun, cancelled, dropped."""
    return {file.name.partition("-")[0] for file in (folder / "notes").glob(f"*-{name}")}


def requests(model: str, name: str) -> list[bytes]:
    """One quick and one slow: a copy of the slow one is half answered when both are."""
    quick, slow = scripted(tokens=1, delay_s=0.5), scripted(tokens=30, delay_s=0.05, name=name)
    return [request_bytes(model, quick), request_bytes(model, slow)]


async def measured(url: str, *batches: list[bytes]) -> list[Batch]:
    """Some batches of one client, two requests at a time."""
    loading = LoadClient(url)
    try:
        return [await loading.answers(batch, 2) for batch in batches]
    finally:
        await loading.close()


def test_what_is_in_flight_at_the_end_is_ended_in_band(triton: TritonServer, folder: Path) -> None:
    """The copy of a request is told to stop before the batch is returned; no stream is cancelled.

    The next batch of the same client is answered whole on the streams of the one before.
    """

    async def run() -> None:
        loading = LoadClient(triton.grpc_url)
        first = await loading.answers(requests(VARIANT, "a"), 2)
        seen = notes(folder, "a")
        second = await loading.answers(requests(VARIANT, "b"), 2)
        await loading.close()
        assert seen == notes(folder, "a") == notes(folder, "b") == {"begun", "cancelled"}
        for batch in (first, second):
            assert [answer.num_output_tokens for answer in batch.answers] == [1, 30]
            assert not batch.lost

    asyncio.run(run())


def test_an_interrupted_batch_is_ended_in_band(triton: TritonServer, folder: Path) -> None:
    """Cancelled in the middle, what is in flight is told to stop, and the client can be closed."""
    slow = [request_bytes(VARIANT, scripted(tokens=100_000, delay_s=0.05, name="endless"))]

    async def run() -> None:
        loading = LoadClient(triton.grpc_url)
        work = asyncio.create_task(loading.answers(slow, 2))
        await asyncio.to_thread(wait_until, lambda: "begun" in notes(folder, "endless"))
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await loading.close()

    asyncio.run(run())
    assert notes(folder, "endless") == {"begun", "cancelled"}


def test_a_model_that_can_not_be_told_is_read_to_the_end(
    triton: TritonServer, folder: Path
) -> None:
    """The gateway's model takes no cancelling: the copy is answered whole, then the batch is."""
    with running_gateway(triton.grpc_url) as gateway:
        url = f"127.0.0.1:{gateway.gateway.port}"
        [batch] = asyncio.run(measured(url, requests("qwen_mtp", "slow")))
        wait_until(lambda: len(gateway.outcomes) == len(gateway.policy.seen))
        assert [answer.num_output_tokens for answer in batch.answers] == [1, 30]
        tokens = sorted({outcome.num_output_tokens for _, outcome in gateway.outcomes})
    assert tokens == [1, 30]
    assert notes(folder, "slow") == {"begun"}


def test_a_slow_server_is_not_taken_for_dead(triton: TritonServer) -> None:
    """A model that is silent for longer than a server may be is waited for: the server answers."""
    slow = [request_bytes(VARIANT, scripted(tokens=1, delay_s=2.5 * load_streams.QUIET_S))]
    [batch] = asyncio.run(measured(triton.grpc_url, slow))
    assert [answer.num_output_tokens for answer in batch.answers] == [1]


def test_a_model_that_stays_silent_is_dropped_with_its_connection(
    triton: TritonServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that hangs in a server that lives ends the batch; the client's next one is whole."""
    monkeypatch.setattr(load_streams, "MODEL_SILENT_S", 6 * load_streams.QUIET_S)
    hangs = [request_bytes(VARIANT, scripted(hang_at=1, deaf=True, name="deaf"))]
    good = [request_bytes(VARIANT, scripted(tokens=2))]
    first, second = asyncio.run(measured(triton.grpc_url, hangs, good))
    assert "says that it lives and sent nothing" in first.lost
    assert [answer.num_output_tokens for answer in second.answers] == [2]
    wait_until(lambda: "dropped" in notes(folder, "deaf"))


def test_a_server_that_stopped_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped server is lost for a batch and for a client long before an answer may take.

    The same load client measures again when the server was replaced.
    """
    for module in (load_streams, client):
        monkeypatch.setattr(module, "LIVE_S", 1.0)
    good = [request_bytes(VARIANT, scripted(tokens=2))]
    endless = [request_bytes(VARIANT, scripted(tokens=100_000, delay_s=0.05))]

    async def run(triton: TritonServer) -> tuple[Batch, Batch]:
        loading = LoadClient(triton.grpc_url)
        work = asyncio.create_task(loading.answers(endless, 2))
        await asyncio.sleep(0.5)
        os.kill(triton.pid, signal.SIGSTOP)
        lost = await work
        with StreamClient(triton.grpc_url) as asking, pytest.raises(TrtMtpError) as error:
            asking.ask(VARIANT, scripted(tokens=2))
        assert "stopped answering" in str(error.value)
        os.killpg(triton.pid, signal.SIGKILL)
        wait_until(lambda: restarted(triton))
        again = await loading.answers(good, 1)
        await loading.close()
        return lost, again

    with triton_of_doubles(tmp_path) as triton:
        lost, again = asyncio.run(run(triton))
    assert "doesn't say that it lives" in lost.lost
    assert all(answer.is_lost for answer in lost.answers)
    assert [answer.num_output_tokens for answer in again.answers] == [2]


def restarted(server: TritonServer) -> bool:
    """True when the server runs again after its end was seen."""
    before = server.pid
    server.check()
    return server.pid not in (0, before)


def test_a_client_that_leaves_reads_its_answer_to_the_end(
    triton: TritonServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that gave up waiting half-closes; what it asked for comes to its end uncancelled."""
    monkeypatch.setattr(client, "CLOSE_S", 60.0)
    script = scripted(tokens=4, delay_s=0.4, name="left")
    start = time.monotonic()
    with (
        StreamClient(triton.grpc_url, reply_timeout_s=0.05) as asking,
        pytest.raises(TrtMtpError, match="sent nothing"),
    ):
        asking.ask(VARIANT, script)
    assert time.monotonic() - start > 4 * 0.4  # it can't have been read in less
    assert notes(folder, "left") == {"begun"}


def test_an_answer_without_end_is_given_up(
    triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many messages come."""
    monkeypatch.setattr(load_streams, "MAX_ANSWER_BYTES", 10_000)

    async def scenario() -> Batch:
        load_client = LoadClient(triton.grpc_url)
        try:
            return await load_client.answers(
                [request_bytes(VARIANT, scripted(tokens=10**6, word="x" * 1_000))], 1
            )
        finally:
            await load_client.close()

    batch = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert batch.lost
