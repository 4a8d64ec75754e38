"""How tritonserver is called: its options and its environment."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trt_mtp
from trt_mtp.serve.grpc_access import GrpcAccess
from trt_mtp.serve.ports import HOST, Ports
from trt_mtp.serve.repository import STUB_VARIABLE

MANAGEMENT = "model-repository,shared-memory,trace,logging"


@dataclass(frozen=True, slots=True)
class TritonCommand:
    """What a start of tritonserver is told."""

    server: Path  # the program
    repository: Path
    backends: Path  # the folder of backends
    models: Sequence[str]
    ports: Ports  # each a number, or None where it is off
    access: GrpcAccess
    admin_key: str  # for the calls of MANAGEMENT
    shm_prefix: str  # of its files in /dev/shm

    def arguments(self) -> list[str]:
        """The program and those of its options that everybody may read."""
        options: dict[str, object] = {
            "model-repository": self.repository,
            "backend-directory": self.backends,
            "model-control-mode": "explicit",
            "metrics-address": HOST,
            "grpc-port": self.ports.grpc,
            "metrics-port": self.ports.metrics,
            "reuse-grpc-port": "true",  # `serve` holds it (held_ports.py)
            "backend-config": f"python,shm-region-prefix-name={self.shm_prefix}",
            "model-load-thread-count": max(len(self.models), 1),
            "pinned-memory-pool-byte-size": 0,
            # as the gateway has it (controller/gateway/grpc_server.py)
            "grpc-keepalive-permit-without-calls": 1,
            "grpc-http2-min-recv-ping-interval-without-data": 1000,  # ms
            "exit-timeout-secs": 5,  # for when we are killed and the kernel sends SIGINT
        }
        if self.ports.http is None:
            options["allow-http"] = "false"
        else:
            options |= {
                "http-address": HOST,
                "http-port": self.ports.http,
                "reuse-http-port": "true",
            }
        options |= self.access.options()
        command = [str(self.server), "--disable-auto-complete-config"]
        command += [f"--{name}={value}" for name, value in options.items()]
        return command + [f"--load-model={name}" for name in self.models]

    def hidden_arguments(self) -> list[str]:
        """Further options, which hold the key."""
        rule = f"{MANAGEMENT}:admin-key={self.admin_key}"
        options = [f"--grpc-restricted-protocol={rule}"]
        if self.ports.http is not None:
            options.append(f"--http-restricted-api={rule}")
        return options


def environment(
    ours: Mapping[str, str], libraries: Iterable[Path], temporary: Path, stub: Path
) -> dict[str, str]:
    """Our environment, so that the models' processes run this Python with its packages.

    They find Python and its virtual environment through `python3` in PATH; model.py adds
    PYTHONPATH. `libraries` are folders of what Triton is linked with; `temporary` is the folder for
    temporary files where ours has a name that is not ASCII; `stub` is the program of a model that
    has an environment of its own.
    """
    theirs = {**ours, STUB_VARIABLE: str(stub)}
    here = str(Path(trt_mtp.__file__).resolve().parents[1])
    _prepend(theirs, "PYTHONPATH", [here])
    # Triton starts models through bash, which a service without a PATH would not find
    _prepend(theirs, "PATH", [str(Path(sys.executable).parent)])
    theirs["PATH"] += os.pathsep + os.defpath
    _prepend(theirs, "LD_LIBRARY_PATH", map(str, libraries))
    if not theirs.get("TMPDIR", "").isascii():  # as ASCII is how they read it
        theirs["TMPDIR"] = str(temporary)
    # one answer at a time computes on one core; idle thread pools only cost memory
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        theirs.setdefault(name, "1")
    return theirs


def _prepend(variables: dict[str, str], name: str, folders: Iterable[str]) -> None:
    """Put `folders` at the front of a variable such as PATH."""
    parts = [*folders, *variables.get(name, "").split(os.pathsep)]
    variables[name] = os.pathsep.join(part for part in parts if part)
