"""A small kubelet: a rendered pod's containers as processes, its probes, its orderly end.

What it does as Kubernetes' page "Pod Lifecycle" says: init containers first; no other probe before
the startup probe has succeeded; a container that fails its liveness probe is killed; a pod that is
to end has its preStop pause, SIGTERM, and what is left of its grace period. What it does not:
images (the programs of this checkout run), cgroups, security contexts, network namespaces. A pod
has an address of its own among the loopback ones, to which is bound what a container binds to all.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from tests.programs import TIMEOUT_S, join

LOOKS = 10  # times as often as a probe's period has it, and as many more failures count
LOOK_S = 0.05
ANYWHERE = "0.0.0.0"
SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse
IMAGE = {"/opt/trt-mtp": str(Path(__file__).parents[1])}  # what the images have where
MAIN = """
import sys
from pathlib import Path
from trt_mtp.controller.gateway.servers import kubernetes
kubernetes.ACCOUNT = Path(sys.argv.pop(1))
from trt_mtp.cli import main
main()
"""  # `trt-mtp` with the account mounted elsewhere


def free_address(*ports: int) -> str:
    """A loopback address at which nobody listens on these ports."""
    while True:
        parts = [random.randrange(64, 250) for _ in range(3)]
        address = ".".join(map(str, (127, *parts)))
        try:
            for port in ports:
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return address


class Probe:
    """One rendered probe, and the failures since its last success."""

    def __init__(self, rendered: dict[str, Any], ports: dict[str, int], address: str) -> None:
        self._timeout_s = float(rendered.get("timeoutSeconds", 1))
        self.threshold = rendered.get("failureThreshold", 3) * LOOKS
        self._period_s = rendered.get("periodSeconds", 10) / LOOKS
        self._next_at = 0.0
        self.num_failures = 0
        self._ask: Callable[[], bool]
        if "grpc" in rendered:
            self._ask = partial(self._health, f"{address}:{rendered['grpc']['port']}")
        else:
            port = ports[rendered["httpGet"]["port"]]
            url = f"http://{address}:{port}{rendered['httpGet']['path']}"
            self._ask = partial(self._get, url)

    def look(self) -> bool | None:
        """Whether it succeeded; None while it isn't due."""
        if time.monotonic() < self._next_at:
            return None
        succeeded = self._ask()
        self._next_at = time.monotonic() + self._period_s
        self.num_failures = 0 if succeeded else self.num_failures + 1
        return succeeded

    def _get(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=self._timeout_s) as answer:
                return bool(200 <= answer.status < 400)
        except (OSError, urllib.error.URLError):
            return False

    def _health(self, target: str) -> bool:
        with grpc.insecure_channel(target) as channel:
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            try:
                answer = check(b"", timeout=self._timeout_s)
            except grpc.RpcError:
                return False
        return bool(answer == SERVING)


class Pod:
    """A pod that runs until `end`; `on_ready` is told when its readiness changes."""

    def __init__(
        self, name: str, spec: dict[str, Any], folder: Path, on_ready: Callable[[bool], None]
    ) -> None:
        """`folder` has its volumes and its log, and `account` of a pod that has one."""
        (self._container,) = spec["containers"]
        self.name, self._spec, self._folder = name, spec, folder
        self.ports = {p["name"]: p["containerPort"] for p in self._container["ports"]}
        self.address = free_address(*self.ports.values())
        self.num_restarts = 0
        self.is_ready = False
        self.was_cut = False  # it had to be killed at its end
        self._on_ready, self._is_ending = on_ready, threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def log(self) -> str:
        """What its containers wrote."""
        return (self._folder / "log").read_text(errors="backslashreplace")

    @property
    def exit_code(self) -> int | None:
        """Of its container; None while that runs."""
        return None if self._process is None else self._process.poll()

    def end(self) -> None:
        """What deleting it does."""
        grace_s = self._spec["terminationGracePeriodSeconds"]
        deadline = time.monotonic() + grace_s
        self._set_ready(False)
        self._is_ending.set()
        join(self._thread)
        time.sleep(self._container["lifecycle"]["preStop"]["sleep"]["seconds"])
        assert self._process is not None, self.log
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            self.was_cut = True
            self._kill_process()

    def kill(self) -> None:
        """Leave nothing of it."""
        self._is_ending.set()
        while self._thread.is_alive():
            self._kill_process()
            self._thread.join(LOOK_S)
        self._kill_process()

    def _kill_process(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(TIMEOUT_S)

    def _run(self) -> None:
        for container in self._spec.get("initContainers", ()):
            if self._start(container).wait(TIMEOUT_S):
                return  # its log says why
        while not self._is_ending.is_set():
            process = self._start(self._container)
            if self._probed(process):
                return
            self._set_ready(False)
            self._kill_process()
            self.num_restarts += 1

    def _probed(self, process: "subprocess.Popen[bytes]") -> bool:
        """True when the pod is to end; False when the container ended or is to be killed."""
        startup, readiness, liveness = (
            Probe(self._container[f"{kind}Probe"], self.ports, self.address)
            for kind in ("startup", "readiness", "liveness")
        )
        has_started = False
        while not self._is_ending.wait(LOOK_S):
            if process.poll() is not None:
                return False
            if not has_started:
                has_started = startup.look() is True
            elif readiness.look():
                self._set_ready(True)
            elif readiness.num_failures >= readiness.threshold:
                self._set_ready(False)
            if has_started:
                liveness.look()
            if any(probe.num_failures >= probe.threshold for probe in (startup, liveness)):
                return False
        return True

    def _set_ready(self, is_ready: bool) -> None:
        if is_ready != self.is_ready:
            self.is_ready = is_ready
            self._on_ready(is_ready)

    def _start(self, container: dict[str, Any]) -> "subprocess.Popen[bytes]":
        words: list[str] = [*container["command"], *container["args"]]
        assert words[0] == "trt-mtp"
        environment = {each["name"]: self._value(each) for each in container.get("env", ())}
        arguments = [self._here(each, container, environment) for each in words[1:]]
        command = [sys.executable, "-c", MAIN, str(self._folder / "account"), *arguments]
        environment["HOME"] = str(self._folder)
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, "XDG_CACHE_HOME": cache, **environment},
            )
        return self._process

    def _value(self, variable: dict[str, Any]) -> str:
        """A variable's value; of the fields of a pod, its name, and labels that it doesn't have."""
        if "value" in variable:
            return str(variable["value"])
        path = variable["valueFrom"]["fieldRef"]["fieldPath"]
        return self.name if path == "metadata.name" else ""

    def _here(self, text: str, container: dict[str, Any], environment: dict[str, str]) -> str:
        """An argument as it is on this machine."""
        for name, value in environment.items():
            text = text.replace(f"$({name})", value)
        mounts: dict[str, str] = {
            each["mountPath"]: str(self._folder / each["name"])
            for each in container.get("volumeMounts", ())
        }
        option, equals, value = text.rpartition("=")
        for there, here in (IMAGE | mounts).items():
            if value == there or value.startswith(f"{there}/"):
                return option + equals + here + value.removeprefix(there)
        return text.replace(ANYWHERE, self.address)
