"""One tritonserver process: started, watched, restarted if it dies, stopped."""

import http.client
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.interrupts import time_left
from trt_mtp.serve.grpc_access import LOCAL, GrpcAccess
from trt_mtp.serve.held_ports import HeldPorts, with_free_metrics
from trt_mtp.serve.hosts import host_and_port
from trt_mtp.serve.limits import USUAL, Limits
from trt_mtp.serve.liveness import GRPC, HTTP, Ask, Liveness, grpc_probe, http_probe
from trt_mtp.serve.ports import ANY_PORTS, GET_S, HOST, Ports, answers, get
from trt_mtp.serve.private_child import start_private
from trt_mtp.serve.processes import (
    children,
    is_alive,
    kill_group,
    shielded,
    started_at,
    undisturbed,
)
from trt_mtp.serve.repository import LOADED_MODELS, loaded_models
from trt_mtp.serve.restarts import Failure, Reason, Restarts, pause_s_before
from trt_mtp.serve.triton_command import TritonCommand, environment
from trt_mtp.serve.triton_install import TritonInstall
from trt_mtp.serve.triton_log import TritonLog, load_failure

DRAIN_TIMEOUT_S = 10.0  # for answers in flight when the server is stopped
START_ATTEMPTS = 3  # a port can be taken before it is bound; a load can hang; Triton can crash
RESTART_WINDOW_S = 120.0  # of service: with each restart within it, the next one waits longer
FAILED_LOAD_S = 2.0  # for Triton's log to say of a process that ended that its model isn't loaded
LOOK_S = 0.05
IDLE_LOOKS = 3  # in a row: a request that began just now is on the metrics a moment later
LONGEST_LOOK_S = 3.0  # what a longer one takes, as when this process is stopped, isn't waiting

Progress = Callable[[str], None]


class CrashError(TrtMtpError):
    """A signal ended the server while it started."""


class LoadTimeoutError(TrtMtpError):
    """Triton started, but a model was not ready in time."""


class TritonServer:
    """Serves `models` of a model repository, on 127.0.0.1 unless `access` names another host.

    Start and check it from a thread that outlives the server: when that thread ends, the kernel
    ends the server.
    """

    def __init__(
        self,
        install: TritonInstall,
        repository: Path,
        models: Sequence[str],
        run_folder: Path,
        ports: Ports = ANY_PORTS,
        access: GrpcAccess = LOCAL,
        limits: Limits = USUAL,
        restore: Callable[[Sequence[str]], object] = lambda models: None,
    ) -> None:
        """Puts log and backend links into `run_folder`; `restore` mends that before a restart.

        A rollout may change the models: those that it wrote into the repository replace `models`.
        """
        self._access = access
        self._limits = limits
        self._restore = restore
        self.models = tuple(models)
        self.log = run_folder / "triton.log"
        # for the management calls
        self.admin_key = access.admin_key or secrets.token_hex(16)
        self._install = install
        self._repository = repository
        self._backends = run_folder / "backends"
        self._wanted = ports
        self._ports = ports
        self._held = HeldPorts()
        self.shm_prefix = f"trt_mtp_{os.getpid()}_{secrets.token_hex(4)}_"
        self._process: subprocess.Popen[bytes] | None = None
        self._stubs: dict[int, str] = {}  # process of a model -> its model
        self._num_loads = 0  # by the log, when they were looked for
        self._unsure_of, self._unsure_since = 0, 0.0  # a process that ended; monotonic time
        self._loaded_at = 0  # when the repository's list of models was written, ns
        self._restarts = Restarts(RESTART_WINDOW_S)
        self._written = TritonLog(self.log)
        self._liveness: Liveness | None = None  # while it serves
        self._ready_at = 0.0  # monotonic time
        self._down: Failure | None = None  # why it isn't running, where a start failed
        self.was_cut = False  # when it was stopped, answers were in flight

    @property
    def pid(self) -> int:
        """The process id of tritonserver; 0 if it is not running."""
        return self._process.pid if self._process else 0

    @property
    def stub_pids(self) -> tuple[int, ...]:
        """The python-backend processes, one for each model, in no particular order."""
        return tuple(self._stubs)

    def pid_of(self, model: str) -> int | None:
        """The process of a model; None while it has none."""
        return next((pid for pid, name in self._stubs.items() if name == model), None)

    @property
    def grpc_url(self) -> str:
        """host:port of KServe v2 gRPC."""
        return host_and_port(self._access.host, self._ports.grpc)

    @property
    def http_url(self) -> str:
        """host:port of KServe v2 HTTP; empty if that is off."""
        return "" if self._ports.http is None else f"{HOST}:{self._ports.http}"

    @property
    def metrics_url(self) -> str:
        """host:port of the Prometheus metrics."""
        return f"{HOST}:{self._ports.metrics}"

    def start(self, on_progress: Progress = lambda text: None) -> None:
        """Start the server and return when all models are ready.

        Restarts if a model is not ready after `load_s`. Raises InputError if a wanted port is in
        use. Raises TrtMtpError with the end of the server's log if it dies, or after START_ATTEMPTS
        starts.
        """
        for attempt in range(1, START_ATTEMPTS + 1):
            self._ports = self._held.choose(self._wanted, self._access.host)
            try:
                self._launch(on_progress)
                return
            except LoadTimeoutError as error:
                if attempt == START_ATTEMPTS:
                    raise TrtMtpError(
                        f"{error}, {attempt} times in a row; a larger --load-timeout-s gives it "
                        f"more time; {self._written.end_of_it()}"
                    ) from None
                self._restarts.note(Reason.LOAD_TIMEOUT, 0)
                on_progress(f"{error}; starting again")
            except TrtMtpError as error:
                # Triton 2.51 aborts at times while it starts on a busy machine
                # (boost::interprocess::lock_exception, in its python backend)
                is_chance = self._written.has_lost_port or isinstance(error, CrashError)
                if attempt == START_ATTEMPTS or not is_chance:
                    raise
                on_progress(f"{str(error).partition(';')[0]}; starting again")

    def check(self, on_progress: Progress = lambda text: None) -> None:
        """Restart the server on the same ports if it or one of its models died or hangs.

        Call it often: it waits only for a start and, after recent restarts, for a pause of
        LONGEST_PAUSE_S at most before it. The next call retries a start that failed.
        """
        if self._has_other_models() and self._process is not None:
            self._stubs = self._find_stubs()
        failure = self._failure()
        if failure is not None:
            self._restart(failure, on_progress)

    def _restart(self, failure: Failure, on_progress: Progress) -> None:
        served_s = time.monotonic() - self._ready_at if self._liveness else 0.0
        num = self._restarts.note(failure.reason, served_s)
        self._kill()
        pause_s = pause_s_before(num)
        on_progress(f"{failure.text}; starting again" + (f" in {pause_s:g} s" if pause_s else ""))
        time.sleep(pause_s)
        try:
            self._restore(self.models)
            self._launch(on_progress)
        except LoadTimeoutError as error:
            self._down = Failure(Reason.LOAD_TIMEOUT, str(error))
        except TrtMtpError as error:
            on_progress(str(error))
            what, _, _ = str(error).partition(";")  # what follows is the log's end
            self._down = Failure(Reason.ENDED, f"the last start failed: {what}")
            if self._written.has_lost_port:
                self._ports = with_free_metrics(self._ports, on_progress)

    def stop(self) -> None:
        """Wait for answers in flight, DRAIN_TIMEOUT_S at most, then kill all processes."""
        with undisturbed():
            # Triton's own exit takes seconds to unload models. It takes its whole timeout while a
            # client is connected, or if it ever refused a request for its shape. An idle server
            # has nothing worth waiting for.
            deadline = time.monotonic() + DRAIN_TIMEOUT_S
            num_idle = 0
            while (
                num_idle < IDLE_LOOKS
                and time_left(deadline - time.monotonic())
                and self._failure() is None
            ):
                num_idle = num_idle + 1 if self._is_idle() else 0
                time.sleep(LOOK_S)
            self.was_cut = num_idle < IDLE_LOOKS and self.pid != 0 and not self._is_idle()
            self._kill()
            self._held.release()

    def _is_idle(self) -> bool:
        """True if every model reports that no request is running or waiting."""
        try:
            text = get(self._ports.metrics, "/metrics").decode()
        except (OSError, http.client.HTTPException):
            return False
        counts = re.findall(r"^trt_mtp_requests_(?:running|waiting){.*} (\S+)$", text, re.MULTILINE)
        return len(counts) >= 2 * len(self.models) and not any(map(float, counts))

    def _has_other_models(self) -> bool:
        """True if a rollout changed the models to load; updates `models`."""
        try:
            written_at = (self._repository / LOADED_MODELS).stat().st_mtime_ns
        except OSError:
            return False
        if written_at == self._loaded_at:
            return False
        self._loaded_at = written_at
        try:
            self.models = loaded_models(self._repository)
        except InputError:  # damaged while the server runs: keep the loaded models
            return False
        return True

    def _find_stubs(self) -> dict[int, str]:
        """The python-backend processes of `models`, the newest of each.

        Others belong to a rollout, whose canary may fail, or end soon: of a model that was loaded
        again Triton keeps the old one while streams are open on which it answered.
        """
        assert self._process is not None
        self._num_loads = self._written.num_loads
        pids = sorted(children(self._process.pid), key=lambda pid: started_at(pid) or 0)
        newest = {_model_of(pid): pid for pid in pids}
        return {pid: model for model, pid in newest.items() if model in self.models}

    def _dead_stubs(self) -> list[int]:
        return [pid for pid in self._stubs if not is_alive(pid)]

    def _is_certain(self, dead: int) -> bool:
        """Whether the end of a process is its model's.

        Where the model has another one, it may be that of a version that failed to load, which
        Triton's log says soon.
        """
        assert self._process is not None
        others = filter(is_alive, children(self._process.pid))
        if self._stubs[dead] not in map(_model_of, others):
            return True
        if self._unsure_of != dead:
            self._unsure_of, self._unsure_since = dead, time.monotonic()
        return time.monotonic() - self._unsure_since > FAILED_LOAD_S

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
        self._down, self._ready_at = None, time.monotonic()
        probes = {GRPC: self._grpc_probe()}
        if self._ports.http is not None:
            probes[HTTP] = http_probe(HOST, self._ports.http)
        self._liveness = Liveness(probes, self._limits.answer_s)

    def _grpc_probe(self) -> Ask:
        return grpc_probe(self._access.host, self._ports.grpc, self._access.tls)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self._install.link_backends(self._backends)
        command = TritonCommand(
            server=self._install.server,
            repository=self._repository,
            backends=self._backends,
            models=self.models,
            ports=self._ports,
            access=self._access,
            admin_key=self.admin_key,
            shm_prefix=self.shm_prefix,
        )
        self._written.begin()
        with self.log.open("ab") as log:
            return start_private(
                command.arguments(),
                command.hidden_arguments(),
                environment(
                    os.environ | self._restarts.environment(),
                    self._install.library_folders,
                    self.log.parent,
                    self._install.stub,
                ),
                shielded(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, and one kill reaches all
            )

    def _wait_ready(self, on_progress: Progress) -> None:
        process, written, num_loaded = self._process, self._written, -1
        assert process is not None
        waited_s, looked_at = 0.0, time.monotonic()
        while not self._is_ready():
            written.read()
            written.require_start()
            if process.poll() is not None or written.signal:
                how = written.signal or f"ended with code {process.returncode}"
                is_crash = written.signal or process.returncode < 0
                raise (CrashError if is_crash else TrtMtpError)(
                    f"tritonserver {how} while starting{load_failure(written.tail())}; "
                    f"{written.end_of_it()}"
                )
            now = time.monotonic()
            waited_s, looked_at = waited_s + min(now - looked_at, LONGEST_LOOK_S), now
            if waited_s > self._limits.load_s:
                raise self._load_timeout()
            if len(written.loaded) != num_loaded:
                num_loaded = len(written.loaded)
                on_progress(f"Triton: {num_loaded} of {len(self.models)} models loaded")
            time.sleep(LOOK_S)

    def _load_timeout(self) -> LoadTimeoutError:
        missing = [model for model in self.models if model not in self._written.loaded]
        what = f"{', '.join(missing)} not loaded" if missing else "Triton not ready"
        return LoadTimeoutError(f"{what} {self._limits.load_s:g} s after the start of tritonserver")

    def _is_ready(self) -> bool:
        """True if it listens, which it does when all models are loaded; metrics come last."""
        if not answers(self._ports.metrics, "/metrics"):
            return False
        try:
            return self._grpc_probe()(max(time_left(GET_S), LOOK_S))
        except OSError:
            return False

    def _failure(self) -> Failure | None:
        """The part that died or hangs; None if there is none."""
        process = self._process
        if process is None or process.poll() is not None:
            code = f" with code {process.returncode}" if process else ""
            return self._down or Failure(Reason.ENDED, f"tritonserver ended{code}")
        self._written.read()
        # the handler that wrote this may hang forever, and with it the process: it waits for a lock
        # of the thread that it interrupted
        if self._written.signal:
            return Failure(Reason.ABORTED, f"tritonserver aborted ({self._written.signal})")
        if self._written.num_loads != self._num_loads:  # a model may have another process
            self._stubs = self._find_stubs()
        # after a model died, Triton runs on, says that it is ready, and lets its clients hang
        dead = self._dead_stubs()
        if dead and self._has_other_models():  # it may have been unloaded
            self._stubs = self._find_stubs()
            dead = self._dead_stubs()
        if dead and self._is_certain(dead[0]):
            text = f"the process of a model ended (pid {dead[0]})"
            return Failure(Reason.MODEL_ENDED, text)
        silent = self._liveness.silent() if self._liveness else ()
        if silent:
            text = f"tritonserver gave no answer over {' and '.join(silent)}"
            return Failure(Reason.SILENT, f"{text} for {self._limits.answer_s:g} s")
        return None

    def _kill(self) -> None:
        """Kill the server and its models; remove their shared memory.

        Raises TrtMtpError if a process is still there afterwards.
        """
        if self._liveness is not None:
            self._liveness.end()
        if self._process is not None:
            kill_group(self._process, self.stub_pids)
        for region in Path("/dev/shm").glob(f"{self.shm_prefix}*"):
            region.unlink(missing_ok=True)
        self._process, self._stubs, self._liveness = None, {}, None


def _model_of(pid: int) -> str:
    """The model of a python-backend process: its second argument is MODEL/VERSION/model.py."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (OSError, UnicodeDecodeError):
        return ""
    return Path(arguments[1]).parent.parent.name if len(arguments) > 1 else ""
