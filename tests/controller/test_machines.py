"""`serve` and `gateway` on machines as people have them: paths, locales, proxies, signals."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_fixtures import wait_until
from tests.programs import TIMEOUT_S, read_line
from tests.triton_client import leaving, streaming
from trt_mtp.serve.engine.compiler import cache_folder
from trt_mtp.serve.processes import descendants
from trt_mtp.serve.triton import TritonServer

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "spaces": "a folder with spaces",
    "letters": "модели 模型 é",
    "quotes": 'it\'s (a) "folder"; $HOME & `x`',
}
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def reachable_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test's own stock clients go without proxies; the programs have what a test sets."""
    monkeypatch.setenv("no_grpc_proxy", "*")


def dead_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(**changes: str) -> dict[str, str]:
    """That of this process without proxies and locale, with changes."""
    path = os.pathsep.join(part for part in sys.path if part)
    unset = {*PROXIES, *map(str.upper, PROXIES), "no_proxy", "NO_PROXY", "no_grpc_proxy", "LC_ALL"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {**kept, "PYTHONPATH": path, **changes}


@contextlib.contextmanager
def started(
    *arguments: str | Path, env: dict[str, str], cwd: Path = ROOT, umask: int = -1
) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, Any]]]:
    """`trt-mtp` in a session of its own, and its ready line; ended with SIGTERM if it runs."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "trt_mtp", *map(str, arguments)],  # as the script has it
        stdout=subprocess.PIPE,
        cwd=cwd,
        env=env,
        umask=umask,
        start_new_session=True,
    )
    with process:
        line = read_line(process)
        try:
            yield process, json.loads(line)
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def require_answer(ready: dict[str, Any]) -> None:
    """The only variant answers a request."""
    with streaming(ready["grpc"]) as stream:
        inputs = {"text_input": "Ada", "sampling_param_max_tokens": 4}
        (*_, last) = stream.ask(ready["models"][0], **inputs)
    assert not last.error
    assert last.outputs["num_output_tokens"] == [4]


def moved(engines: Path, folder: Path) -> Path:
    """One variant of `engines`, in another folder."""
    shutil.copytree(engines / ".shared", folder / ".shared")
    shutil.copytree(engines / "k1", folder / "k1")
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_every_kind(small_engines: Path, tmp_path: Path, name: str) -> None:
    """Engines, repository, temporary and working folder may have any letters in their paths.

    Files in the working folder that are called as modules are no modules.
    """
    folder = tmp_path / FOLDERS[name]
    engines = moved(small_engines, folder / "engines")
    (folder / "tmp").mkdir()
    for name in ("secrets.py", "tokenizers.py"):
        (folder / name).write_text("raise SystemError('shadowed by the working folder')")
    env = environment(TMPDIR=str(folder / "tmp"))
    options = ["--repository", str(folder / "repository"), "--json"]
    with started("serve", engines, *options, env=env, cwd=folder) as (process, ready):
        require_answer(ready)
    assert process.returncode == 0


def test_letters_in_the_locale_c(small_engines: Path, tmp_path: Path) -> None:
    """A service has the locale C, and paths are UTF-8 all the same."""
    engines = moved(small_engines, tmp_path / FOLDERS["letters"])
    env = environment(LC_ALL="C", LANG="C", PYTHONCOERCECLOCALE="0")
    with started("serve", engines, "--json", env=env) as (process, ready):
        require_answer(ready)
    assert process.returncode == 0


def test_a_home_that_can_not_be_written(
    small_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are kept in the temporary folder where the home takes no files."""
    kernels = cache_folder()
    shutil.copytree(kernels, tmp_path / f"trt-mtp-{os.getuid()}" / kernels.name)
    (tmp_path / f"trt-mtp-{os.getuid()}").chmod(0o700)
    env = environment(HOME="/proc", TMPDIR=str(tmp_path))
    env.pop("XDG_CACHE_HOME", None)
    with started("serve", small_engines / "k1", "--json", env=env) as (process, ready):
        require_answer(ready)
    assert process.returncode == 0


def test_an_environment_without_anything(
    small_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No PATH and no home, as `env -i` leaves it, and a variable that numba's users debug with."""
    kernels = cache_folder()
    shutil.copytree(kernels, tmp_path / f"trt-mtp-{os.getuid()}" / kernels.name)
    (tmp_path / f"trt-mtp-{os.getuid()}").chmod(0o700)
    path = os.pathsep.join(part for part in sys.path if part)
    env = {"PYTHONPATH": path, "TMPDIR": str(tmp_path), "NUMBA_DISABLE_JIT": "1", "HOME": "/proc"}
    ports = ("--grpc-port", "0", "--metrics-port", "0")
    with started("serve", small_engines / "k1", *ports, "--json", env=env) as (process, ready):
        require_answer(ready)
    assert process.returncode == 0


def ignoring_children() -> None:
    """As some parents leave it to the programs that they start."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def test_a_parent_that_ignores_its_children(tmp_path: Path) -> None:
    """How a child of ours ended is known all the same: `up` sees that its build failed."""
    (tmp_path / "config.json").write_text("{")
    run = subprocess.run(
        [sys.executable, "-m", "trt_mtp", "up", str(tmp_path), "-o", str(tmp_path / "e")],
        preexec_fn=ignoring_children,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert "config.json is not JSON" in run.stderr


def test_a_umask_that_hides_files(small_engines: Path, tmp_path: Path) -> None:
    """What is written can be read by who needs it."""
    engines = moved(small_engines, tmp_path / "engines")
    env = environment()
    with started("serve", engines, "--json", env=env, umask=0o077) as (process, ready):
        require_answer(ready)
    assert process.returncode == 0


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_in_both_spellings(small_engines: Path, host: str) -> None:
    """serve, gateway and bench take an IPv6 address with and without brackets."""
    env = environment()
    options = ["--grpc-host", host, "--json"]
    with started("serve", small_engines / "k1", *options, env=env) as (_, triton):
        assert triton["grpc"].startswith("[::1]:")
        require_answer(triton)
        port = triton["grpc"].rpartition(":")[2]
        options = ["--triton", f"{host}:{port}", "--host", host, "--json"]
        with started("gateway", *options, env=env) as (_, gateway):
            assert gateway["gateway"].startswith("[::1]:")
            require_answer({"grpc": gateway["gateway"], "models": ["qwen_mtp"]})


@pytest.mark.parametrize("exempt", [None, "localhost"])
def test_proxies_are_not_for_this_machine(
    small_triton: TritonServer, tmp_path: Path, exempt: str | None
) -> None:
    """gateway and bench reach 127.0.0.1 although $http_proxy names a proxy that isn't there."""
    proxy = f"http://127.0.0.1:{dead_port()}"
    env = environment(**dict.fromkeys(PROXIES, proxy))
    if exempt is not None:
        env |= {"no_proxy": exempt}
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"task": "coding", "prompt": "Ada", "max_tokens": 4}) + "\n")
    bench = ["bench", "--model", "qwen_mtp", "--prompts", str(prompts), "--json"]
    with started("gateway", "--triton", small_triton.grpc_url, "--json", env=env) as (_, ready):
        run = subprocess.run(
            [sys.executable, "-m", "trt_mtp", *bench, "--url", ready["gateway"]],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert run.returncode == 0, run.stderr


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM for every process of it, as systemd sends it."""
    for pid in (*descendants(process.pid), process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def answers_while(address: str, model: str, number: int, end: Callable[[], None]) -> list[int]:
    """Tokens of `number` answers at once, during which `end` is called."""
    counts: list[int] = []
    begun = threading.Barrier(number + 1)

    def ask() -> None:
        with streaming(address) as stream:
            stream.send(
                model,
                text_input="Ada",
                streaming=True,
                sampling_param_max_tokens=300,
                outputs=["text_output", "output_ids", "num_output_tokens"],
            )
            first = stream.receive()
            begun.wait(TIMEOUT_S)
            last = first if first.is_final else stream.receive_all()[-1]
            assert not last.error, last.error
            counts.append(last.outputs["num_output_tokens"][0])

    threads = [threading.Thread(target=ask) for _ in range(number)]
    for thread in threads:
        thread.start()
    begun.wait(TIMEOUT_S)
    end()
    for thread in threads:
        thread.join(TIMEOUT_S)
    return counts


def test_sigterm_for_all_processes_cuts_no_answer_of_serve(small_engines: Path) -> None:
    """Whoever sends SIGTERM, and to however many processes, answers are finished."""
    with started("serve", small_engines / "k1", "--json", env=environment()) as (process, ready):
        counts = answers_while(ready["grpc"], ready["models"][0], 2, lambda: end_group(process))
        assert process.wait(TIMEOUT_S) == 0
    assert counts == [300, 300]


def test_sigterm_for_all_processes_cuts_no_answer_of_workers(small_triton: TritonServer) -> None:
    """A worker that gets SIGTERM from systemd and from its parent takes it for one."""
    options = ["--triton", small_triton.grpc_url, "--workers", "2", "--json"]
    with started("gateway", *options, env=environment()) as (process, ready):
        counts = answers_while(ready["gateway"], "qwen_mtp", 6, lambda: end_group(process))
        assert process.wait(TIMEOUT_S) == 0
    assert counts == [300] * 6


def num_running(metrics: str) -> float:
    """Requests that a Triton's variants say they answer now."""
    with contextlib.closing(http.client.HTTPConnection(metrics, timeout=TIMEOUT_S)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    lines = [line for line in text.splitlines() if line.startswith("trt_mtp_requests_running{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_an_answer_that_is_cut_is_no_success(small_engines: Path) -> None:
    """A model that hangs doesn't finish; serve waits for ten seconds and ends with code 1."""
    with (
        started("serve", small_engines / "k1", "--json", env=environment()) as (process, ready),
        contextlib.suppress(AssertionError),
        leaving(ready["grpc"]) as stream,
    ):
        inputs: dict[str, Any] = {"text_input": "Ada", "streaming": True}
        for _ in range(40):  # of which two run at a time
            stream.send(ready["models"][0], sampling_param_max_tokens=4000, **inputs)
        stream.receive()
        wait_until(lambda: num_running(ready["metrics"]) > 0)  # which serve asks for
        for pid in descendants(ready["pid"]):
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT_S)
    assert process.returncode == 1
