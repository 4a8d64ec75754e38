"""One tritonserver process: started, watched, started again when it dies, stopped for good."""

import contextlib
import http.client
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trt_mtp
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.processes import children, die_with_parent, free_ports, is_alive, undisturbed
from trt_mtp.serve.repository import LOADED_MODELS, loaded_models
from trt_mtp.serve.tls_files import TlsFiles
from trt_mtp.serve.triton_install import TritonInstall

HOST = "127.0.0.1"
MANAGEMENT = "model-repository,shared-memory,trace,logging"
DRAIN_TIMEOUT_S = 10.0  # for answers in flight when the server is stopped
START_ATTEMPTS = 3  # a free port can be taken between looking and binding
MAX_RESTARTS = 5  # within RESTART_WINDOW_S, then give up
RESTART_WINDOW_S = 120.0
LOG_LINES = 12
LOADED, PORT_TAKEN = "successfully loaded '", "already in use"  # in its log

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens on 127.0.0.1; 0 takes a free port."""

    grpc: int = 0
    http: int = 0
    metrics: int = 0


ANY_PORTS = Ports()


@dataclass(frozen=True, slots=True)
class GrpcAccess:
    """Who can reach Triton's gRPC; its HTTP and its metrics are for this machine alone."""

    host: str = HOST  # the address to listen on
    tls: TlsFiles | None = None  # with a CA, clients need a certificate
    admin_key: str = ""  # for the management calls; a random one where there is none

    def options(self) -> dict[str, object]:
        """Options of tritonserver."""
        options: dict[str, object] = {"grpc-address": self.host}
        if self.tls is not None:
            options |= {
                "grpc-use-ssl": "true",
                "grpc-server-cert": self.tls.cert,
                "grpc-server-key": self.tls.key,
            }
            if self.tls.ca is not None:
                options |= {"grpc-use-ssl-mutual": "true", "grpc-root-cert": self.tls.ca}
        return options


LOCAL = GrpcAccess()


class TritonServer:
    """Serves `models` of a model repository, on 127.0.0.1 unless `access` says otherwise.

    Start and watch it from a thread that lives as long as the server is needed: the kernel ends
    the server when that thread is gone.
    """

    def __init__(
        self,
        install: TritonInstall,
        repository: Path,
        models: Sequence[str],
        run_folder: Path,
        ports: Ports = ANY_PORTS,
        access: GrpcAccess = LOCAL,
    ) -> None:
        """`run_folder` takes the log and the backend links.

        A rollout changes what is loaded: the models it left in the repository win over `models`.
        """
        self._access = access
        self.models = tuple(models)
        self.log = run_folder / "triton.log"
        # for the management calls, see MANAGEMENT
        self.admin_key = access.admin_key or secrets.token_hex(16)
        self._install = install
        self._repository = repository
        self._backends = run_folder / "backends"
        self._wanted = ports
        self._ports = ports
        self.shm_prefix = f"trt_mtp_{os.getpid()}_{secrets.token_hex(4)}_"
        self._process: subprocess.Popen[bytes] | None = None
        self._stubs: dict[int, str] = {}  # process of a model -> its model
        self._loaded_at = 0  # when the repository's list of models was written, ns
        self._restarts: list[float] = []
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process id of tritonserver; 0 when it isn't running."""
        return self._process.pid if self._process else 0

    @property
    def stub_pids(self) -> tuple[int, ...]:
        """The python-backend processes, one for each model, in no particular order."""
        return tuple(self._stubs)

    @property
    def grpc_url(self) -> str:
        """host:port of KServe v2 gRPC."""
        return f"{self._access.host}:{self._ports.grpc}"

    @property
    def http_url(self) -> str:
        """host:port of KServe v2 HTTP."""
        return f"{HOST}:{self._ports.http}"

    @property
    def metrics_url(self) -> str:
        """host:port of the Prometheus metrics."""
        return f"{HOST}:{self._ports.metrics}"

    def start(self, on_progress: Progress = lambda text: None) -> None:
        """Start the server and return when all models are ready.

        Raises InputError for a wanted port that is in use, and TrtMtpError with the end of the
        server's log when it dies.
        """
        for attempt in range(1, START_ATTEMPTS + 1):
            wanted = {name: getattr(self._wanted, name) for name in Ports.__slots__}
            self._ports = Ports(**free_ports(wanted))
            try:
                self._launch(on_progress)
                return
            except TrtMtpError:
                if attempt == START_ATTEMPTS or PORT_TAKEN not in self._read_log():
                    raise

    def check(self, on_progress: Progress = lambda text: None) -> None:
        """Start the server again, on the same ports, when it or one of its models died.

        Call it often. Raises TrtMtpError when it dies too often.
        """
        if self._has_other_models():
            self._stubs = self._find_stubs()
        reason = self._failure()
        if not reason:
            return
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_WINDOW_S] + [now]
        self._kill()
        if len(self._restarts) > MAX_RESTARTS:
            raise TrtMtpError(
                f"{reason}, {len(self._restarts)} times in {RESTART_WINDOW_S:.0f} s; the end of "
                f"{self.log}:\n{log_excerpt(self._read_log())}"
            )
        on_progress(f"{reason}; starting again")
        time.sleep(2.0 ** (len(self._restarts) - 2) if len(self._restarts) > 1 else 0)
        try:
            self._launch(on_progress)
        except TrtMtpError as error:  # the next call tries again
            on_progress(str(error))

    def stop(self) -> None:
        """Let answers in flight finish, DRAIN_TIMEOUT_S at most, then leave nothing behind."""
        with undisturbed():
            # Triton's own exit takes seconds to unload models, its whole timeout while a client is
            # connected, and that too when it ever refused a request for its shape. Idle, there is
            # nothing in it worth waiting for.
            deadline = time.monotonic() + DRAIN_TIMEOUT_S
            while not self._failure() and not self._is_idle() and time.monotonic() < deadline:
                time.sleep(0.1)
            self._kill()

    def _is_idle(self) -> bool:
        """True when every model reports that no request runs or waits."""
        try:
            text = _get(self._ports.metrics, "/metrics").decode()
        except (OSError, http.client.HTTPException):
            return False
        counts = re.findall(r"^trt_mtp_requests_(?:running|waiting){.*} (\S+)$", text, re.MULTILINE)
        return len(counts) >= 2 * len(self.models) and not any(map(float, counts))

    def _has_other_models(self) -> bool:
        """True when a rollout changed which models are to be loaded, which are then known."""
        try:
            written_at = (self._repository / LOADED_MODELS).stat().st_mtime_ns
        except OSError:
            return False
        if written_at == self._loaded_at:
            return False
        self._loaded_at = written_at
        try:
            self.models = loaded_models(self._repository)
        except InputError:  # damaged while we run: what is loaded stays
            return False
        return True

    def _find_stubs(self) -> dict[int, str]:
        """The python-backend processes of the models that are to be loaded.

        Others are a rollout's: its canary may fail, and what it unloads ends.
        """
        assert self._process is not None
        found = {pid: _model_of(pid) for pid in children(self._process.pid)}
        return {pid: model for pid, model in found.items() if model in self.models}

    def _launch(self, on_progress: Progress) -> None:
        self._has_other_models()
        try:
            self._process = self._spawn()
        except OSError as error:
            raise TrtMtpError(f"tritonserver can't be started: {error}") from error
        try:
            self._wait_ready(on_progress)
            self._stubs = self._find_stubs()
        except BaseException:
            self._kill()
            raise

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self._install.link_backends(self._backends)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for us, and one kill reaches all
                preexec_fn=die_with_parent(),
            )

    def _wait_ready(self, on_progress: Progress) -> None:
        process, num_loaded = self._process, -1
        assert process is not None
        while not self._is_ready():
            log = self._read_log()
            # it would take seconds to end, and without its metrics port it wouldn't
            if PORT_TAKEN in log:
                raise TrtMtpError(f"tritonserver lost a port:\n{log_excerpt(log)}")
            if process.poll() is not None:
                raise TrtMtpError(
                    f"tritonserver ended with code {process.returncode} while starting"
                    f"{load_failure(log)}; the end of {self.log}:\n{log_excerpt(log)}"
                )
            if log.count(LOADED) != num_loaded:
                num_loaded = log.count(LOADED)
                on_progress(f"Triton: {num_loaded} of {len(self.models)} models loaded")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        is_up = _answers(self._ports.http, "/v2/health/ready")
        return is_up and _answers(self._ports.metrics, "/metrics")

    def _read_log(self) -> str:
        """Triton's log since it was last started."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def _failure(self) -> str:
        """What died, as the beginning of a sentence; empty when all is well."""
        process = self._process
        if process is None or process.poll() is not None:
            code = f" with code {process.returncode}" if process else ""
            return f"tritonserver ended{code}"
        # Triton goes on without a dead model, says that it is ready, and lets its clients hang
        dead = [pid for pid in self._stubs if not is_alive(pid)]
        return f"the process of a model ended (pid {dead[0]})" if dead else ""

    def _kill(self) -> None:
        """End the server and its models at once; remove their shared memory."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pid in self._stubs:
            while is_alive(pid):
                time.sleep(0.01)
        for region in Path("/dev/shm").glob(f"{self.shm_prefix}*"):
            region.unlink(missing_ok=True)
        self._process, self._stubs = None, {}

    def _command(self) -> list[str]:
        key = f"admin-key={self.admin_key}"
        options: dict[str, object] = {
            "model-repository": self._repository,
            "backend-directory": self._backends,
            "model-control-mode": "explicit",
            "http-address": HOST,
            "metrics-address": HOST,
            "http-port": self._ports.http,
            "grpc-port": self._ports.grpc,
            "metrics-port": self._ports.metrics,
            "http-restricted-api": f"{MANAGEMENT}:{key}",
            "grpc-restricted-protocol": f"{MANAGEMENT}:{key}",
            "backend-config": f"python,shm-region-prefix-name={self.shm_prefix}",
            "model-load-thread-count": max(len(self.models), 1),
            "pinned-memory-pool-byte-size": 0,
            "exit-timeout-secs": 5,  # where we are killed and the kernel sends SIGTERM
        }
        options |= self._access.options()
        command = [str(self._install.server), "--disable-auto-complete-config"]
        command += [f"--{name}={value}" for name, value in options.items()]
        return command + [f"--load-model={name}" for name in self.models]

    def _environment(self) -> dict[str, str]:
        """Ours, so that the models' processes run this Python with these packages.

        They find Python, and with it a virtual environment, as `python3` in PATH; model.py adds
        PYTHONPATH.
        """
        environment = dict(os.environ)
        here = str(Path(trt_mtp.__file__).resolve().parents[1])
        prepend(environment, "PYTHONPATH", [here])
        prepend(environment, "PATH", [str(Path(sys.executable).parent)])
        prepend(environment, "LD_LIBRARY_PATH", map(str, self._install.library_folders))
        # one answer at a time computes on one core; idle thread pools only cost memory
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.setdefault(name, "1")
        return environment


def prepend(environment: dict[str, str], name: str, folders: "Sequence[str] | map[str]") -> None:
    """Put `folders` before those that a variable like PATH has."""
    parts = [*folders, *environment.get(name, "").split(os.pathsep)]
    environment[name] = os.pathsep.join(part for part in parts if part)


def _get(port: int, path: str) -> bytes:
    """GET from ourselves, whatever proxies there are; raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"status {response.status}")
        return response.read()
    finally:
        connection.close()


def _model_of(pid: int) -> str:
    """The model of a python-backend process: its second argument is MODEL/VERSION/model.py."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (OSError, UnicodeDecodeError):
        return ""
    return Path(arguments[1]).parent.parent.name if len(arguments) > 1 else ""


def _answers(port: int, path: str) -> bool:
    try:
        _get(port, path)
    except (OSError, http.client.HTTPException):
        return False
    return True


def load_failure(log: str) -> str:
    """Which model could not be loaded last, and why, to be appended to a sentence."""
    found = re.findall(r"failed to load '(\S+)' version \d+: (.+?)(?:\\n|\"$)", log, re.MULTILINE)
    if not found:
        return ""
    model, reason = found[-1]
    return f", because {model} can't be loaded: {reason.rpartition('Exception: ')[2]}"


def log_excerpt(log: str) -> str:
    """The last lines of Triton's log that matter: without tables, banners and CUDA's absence."""
    noise = re.compile(r"^\s*$|^[+|]|^I\d{4}|CudaDriverHelper|NVML|DCGM")
    lines = [line for line in log.splitlines() if not noise.search(line)]
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:]) or "  (empty)"
