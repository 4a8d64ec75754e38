"""A real Triton that lives and doesn't answer, or doesn't finish loading, is started again."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc import service_pb2 as pb

from tests.certificates import Authority
from tests.gateway_fixtures import (
    raw_stream,
    script_request,
    text_of,
    triton_of_doubles,
    wait_until,
    write_doubles,
)
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve import restarts
from trt_mtp.serve.grpc_access import LOCAL, GrpcAccess
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.limits import Limits
from trt_mtp.serve.liveness import GRPC, HTTP, MISSED_PROBES, Liveness, grpc_probe, http_probe
from trt_mtp.serve.processes import is_alive
from trt_mtp.serve.repository import ModelConfig, to_pbtxt
from trt_mtp.serve.tls_files import TlsFiles
from trt_mtp.serve.triton import TritonServer
from trt_mtp.serve.triton_install import find_triton

ABORTED = b"double free or corruption (out)\nSignal (6) received.\n"
MODEL = "qwen_mtp_k1"
HELD = Path(__file__).parents[1] / "doubles" / "held_model.py"
PROBE_S = 60.0  # for an answer that is expected


def hold(repository: Path, model: str, notes: Path) -> str:
    """Put a model into `repository` that loads only while `notes`/held is not there."""
    config = ModelConfig(model, parameters={"notes": str(notes)})
    (repository / model / "1").mkdir(parents=True, exist_ok=True)
    (repository / model / "config.pbtxt").write_text(to_pbtxt(config))
    (repository / model / "1" / "model.py").write_bytes(HELD.read_bytes())
    return model


@contextmanager
def stopped_at_the_end(server: TritonServer) -> Iterator[TritonServer]:
    """`server`, whatever state a test leaves it in."""
    try:
        yield server
    finally:
        if server.pid:
            os.kill(server.pid, signal.SIGKILL)  # nothing in it is worth waiting for
        server.stop()


@contextmanager
def serving(folder: Path, limits: Limits, *held: str) -> Iterator[TritonServer]:
    """A Triton, not started yet, with one double that answers and the `held` ones."""
    repository, notes = folder / "repository", folder / "notes"
    notes.mkdir()
    models = [*write_doubles(repository, notes, [1]), *(hold(repository, m, notes) for m in held)]
    server = TritonServer(find_triton(), repository, models, folder, limits=limits)
    with stopped_at_the_end(server):
        yield server


def write(server: TritonServer, lines: bytes) -> None:
    """Write to a server's log, as it does itself."""
    with server.log.open("ab") as log:
        log.write(lines)


def answers(server: TritonServer) -> bool:
    """Ask a double for three tokens."""
    with raw_stream(server.grpc_url) as stream:
        stream.send(script_request(MODEL))
        stream.half_close()
        errors = [stream.receive().error_message for _ in range(3)]
        stream.receive_to_end()  # Triton 2.51 may abort where one with answers on it is cancelled
        return errors == [""] * 3


def checked_until(server: TritonServer, said: list[str], text: str) -> None:
    """Call `check`, as `trt-mtp serve` does, until it says `text`."""

    def has_said() -> bool:
        server.check(said.append)
        return any(text in line for line in said)

    wait_until(has_said)


def test_one_that_aborted_and_lives_is_started_again_at_once(tmp_path: Path) -> None:
    """The line of Triton's signal handler is enough, however long a silence would be borne.

    Nothing that ends after a signal in order, and no text of a model, is taken for that line.
    """
    with serving(tmp_path, Limits(answer_s=3600)) as server:
        server.start()
        pids, url, said = (server.pid, *server.stub_pids), server.grpc_url, list[str]()
        write(server, b"Signal (15) received.\nI say: Signal (6) received.\n")
        server.check(said.append)
        assert said == []
        os.kill(server.pid, signal.SIGSTOP)
        write(server, ABORTED)
        server.check(said.append)
        assert said[0] == "tritonserver aborted (Signal (6) received); starting again"
        assert server.grpc_url == url
        assert answers(server)
        assert not any(is_alive(pid) for pid in pids)


def test_of_a_model_that_was_loaded_again_the_new_process_is_watched(tmp_path: Path) -> None:
    """Triton keeps the old one while a stream is open on which it answered."""
    with serving(tmp_path, Limits(answer_s=3600)) as server:
        server.start()
        before, said = set(server.stub_pids), list[str]()
        with raw_stream(server.grpc_url) as stream:
            stream.send(script_request(MODEL, tokens=1))
            assert text_of(stream.receive()) == "w0"
            os.utime(tmp_path / "repository" / MODEL / "1" / "model.py")
            with InferenceServerClient(server.grpc_url) as client:
                key = {"triton-grpc-protocol-admin-key": server.admin_key}
                client.load_model(MODEL, headers=key)
            server.check(said.append)
            [old], [new] = before - {*server.stub_pids}, {*server.stub_pids} - before
            assert is_alive(old)
            assert said == []
            os.kill(new, signal.SIGKILL)
            checked_until(server, said, "; starting again")
            assert said[0] == f"the process of a model ended (pid {new}); starting again"


def test_one_that_is_silent_is_started_again(tmp_path: Path) -> None:
    """A server that lives and gives no answer for the limit is killed and started."""
    with serving(tmp_path, Limits(answer_s=3)) as server:
        server.start()
        pid, said = server.pid, list[str]()
        os.kill(pid, signal.SIGSTOP)
        checked_until(server, said, "; starting again")
        assert said[0].startswith("tritonserver gave no answer over ")
        assert said[0].endswith(" for 3 s; starting again")
        assert not is_alive(pid)
        assert answers(server)


def test_one_that_aborts_often_is_waited_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each restart doubles the pause before the next one, up to the longest."""
    pauses: list[float] = []
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 3.0)
    monkeypatch.setattr(TritonServer, "_launch", lambda server, on_progress: None)
    monkeypatch.setattr("trt_mtp.serve.triton.time.sleep", pauses.append)
    with serving(tmp_path, Limits()) as server:
        said: list[str] = []
        for _ in range(5):
            server.check(said.append)
    assert pauses == [0.0, 1.0, 2.0, 3.0, 3.0]
    assert said[2] == "tritonserver ended; starting again in 2 s"


def test_a_busy_server_is_let_be(tmp_path: Path) -> None:
    """Many answers at once and loads that take longer than the limit are no silence."""
    limits, names = Limits(answer_s=6), [f"slow{number}" for number in range(8)]
    with serving(tmp_path, limits) as server:
        server.start()
        pid, said = server.pid, list[str]()
        (tmp_path / "notes" / "held").touch()
        for name in names:
            hold(tmp_path / "repository", name, tmp_path / "notes")
        with raw_stream(server.grpc_url) as stream, loading(server, names) as loads:
            for _ in range(64):
                stream.send(script_request(MODEL, tokens=5000, delay_s=0.001))
            deadline = time.monotonic() + 2 * limits.answer_s
            while time.monotonic() < deadline:
                stream.receive()
                server.check(said.append)
            assert any(load.is_alive() for load in loads)
            assert answers(server)
            assert said == []
            assert server.pid == pid
            (tmp_path / "notes" / "held").unlink()


@contextmanager
def loading(server: TritonServer, names: list[str]) -> Iterator[list[threading.Thread]]:
    """Ask Triton for models over gRPC, each from a thread, which has ended in the end."""
    key = (("triton-grpc-protocol-admin-key", server.admin_key),)

    def load(name: str) -> None:
        with grpc.insecure_channel(server.grpc_url) as channel:
            call = channel.unary_unary(f"/{SERVICE.full_name}/RepositoryModelLoad")
            request = pb.RepositoryModelLoadRequest(model_name=name)
            call(request.SerializeToString(), metadata=key, timeout=120)

    threads = [threading.Thread(target=load, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(120)


def test_a_model_that_never_loads_is_named_and_given_up(tmp_path: Path) -> None:
    """A start ends with an error that names the model, after three attempts that are said."""
    with serving(tmp_path, Limits(load_s=4), "qwen_mtp_k3") as server:
        (tmp_path / "notes" / "held").touch()
        said: list[str] = []
        with pytest.raises(TrtMtpError, match=r"qwen_mtp_k3 not loaded 4 s .*, 3 times in a row"):
            server.start(said.append)
        attempts = [line for line in said if line.endswith("; starting again")]
        assert len(attempts) == 2
        assert all("qwen_mtp_k3 not loaded" in line for line in attempts)
        assert server.pid == 0


def test_a_model_that_does_not_load_again_is_tried_again(tmp_path: Path) -> None:
    """A restart that hangs while loading is killed, and the next one serves."""
    with serving(tmp_path, Limits(load_s=12), "qwen_mtp_k3") as server:
        server.start()
        (tmp_path / "notes" / "held").touch()
        os.kill(server.pid, signal.SIGKILL)
        said: list[str] = []
        checked_until(server, said, "tritonserver ended")  # and waits for its load
        (tmp_path / "notes" / "held").unlink()
        checked_until(server, said, "qwen_mtp_k3 not loaded 12 s after the start")
        server.check(said.append)
        assert answers(server)


@pytest.mark.parametrize("kind", ["plain", "TLS", "its own client", "a stranger"])
def test_probes_are_answered(tmp_path: Path, kind: str) -> None:
    """A server is found alive over gRPC, also where it asks for a certificate that we lack."""
    tls = None
    if kind != "plain":
        authority, others = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "other")
        ca = {"TLS": None, "its own client": authority.ca, "a stranger": others.ca}[kind]
        tls = TlsFiles(*authority.issue("server"), ca)
    access = GrpcAccess("127.0.0.1", tls) if tls else LOCAL
    with triton_of_doubles(tmp_path / "triton", access) as server:
        host, port = server.grpc_url.split(":")
        assert grpc_probe(host, int(port), tls)(PROBE_S)
        host, port = server.http_url.split(":")
        assert http_probe(host, int(port))(PROBE_S)


def with_tls(folder: Path) -> TlsFiles:
    authority = Authority(folder)
    return TlsFiles(*authority.issue("server"), authority.ca)


@pytest.mark.parametrize("is_reset", [False, True])
def test_who_accepts_and_says_nothing_is_silent(tmp_path: Path, is_reset: bool) -> None:
    """A port that accepts, or closes at once, is no answer, over gRPC, TLS and HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        probes = {
            GRPC: grpc_probe("127.0.0.1", port, None),
            HTTP: http_probe("127.0.0.1", port),
            "TLS": grpc_probe("127.0.0.1", port, with_tls(tmp_path)),
        }
        if is_reset:
            threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
            del probes["TLS"]  # a refusal is what it can't tell from that
        liveness = Liveness(probes, 0.3)
        assert liveness.silent() == ()
        wait_until(lambda: set(liveness.silent()) == set(probes))
        liveness.end()


def hang_up(listener: socket.socket) -> None:
    """Close what comes, until the listener is closed."""
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return


def test_time_that_passes_is_no_silence() -> None:
    """Only probes that ran count: a clock that jumps by an hour while one waits is one at most."""
    asked = threading.Semaphore(0)
    may_end = threading.Semaphore(0)

    def ask(timeout_s: float) -> bool:
        asked.release()
        may_end.acquire(timeout=PROBE_S)
        return False

    liveness = Liveness({"it": ask}, 0.003)  # a thousandth of a second for each
    for number in range(MISSED_PROBES):
        assert asked.acquire(timeout=PROBE_S)
        time.sleep(0.1)  # many times the limit
        assert liveness.silent() == (), number
        may_end.release()
    wait_until(lambda: liveness.silent() == ("it",))
    liveness.end()
    may_end.release()


def test_silence_ends_with_an_answer() -> None:
    """What was missed before an answer is forgotten."""
    answers_now = [False, False, True, False, False]
    is_over = threading.Event()

    def ask(timeout_s: float) -> bool:
        if answers_now:
            return answers_now.pop(0)
        is_over.set()
        return True

    liveness = Liveness({"it": ask}, 0.03)
    seen: set[tuple[str, ...]] = set()

    def look() -> bool:
        seen.add(liveness.silent())
        return is_over.is_set()

    wait_until(look)
    assert seen == {()}
    liveness.end()
