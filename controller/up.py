"""Build, serve and gateway as one foreground process, for trying things out."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trt_mtp
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.extras import require_engine
from trt_mtp.files import open_private
from trt_mtp.parent import die_with_parent
from trt_mtp.serve.processes import (
    free_ports,
    has_ended,
    kill_group,
    undisturbed,
)
from trt_mtp.serve.serving import describe, limits_for, resolve_variants, serving
from trt_mtp.serve.triton import Progress, TritonServer

TINY_CHECKPOINT = Path(trt_mtp.__file__).resolve().parents[1] / "assets" / "qwen-mtp-tiny"
GATEWAY_STOP_S = 10.0  # for answers in flight; Triton is asked to stop after it
GATEWAY_START_S = 120.0  # its own wait for the variants ends before


@dataclass(frozen=True, slots=True)
class GatewayPorts:
    """Where the gateway listens on 127.0.0.1; 0 takes a free port, None leaves it off."""

    grpc: int = 0
    http: int | None = None
    admin: int | None = None

    def taken(self) -> dict[str, int]:
        """Those that are wanted, as the options of `trt-mtp up` name them."""
        named = {"gateway": self.grpc, "http": self.http, "admin": self.admin}
        return {name: port for name, port in named.items() if port is not None}


@dataclass(frozen=True, slots=True)
class Stack:
    """The running stack."""

    server: TritonServer
    gateway: "subprocess.Popen[bytes]"
    ready: dict[str, Any]  # what `trt-mtp up --json` prints

    def check(self, on_progress: Progress) -> None:
        """Start Triton again if it died; raises TrtMtpError if that fails or the gateway died."""
        code = self.gateway.poll()
        if code is not None:
            raise TrtMtpError(f"the gateway ended with code {code}")
        self.server.check(on_progress)


def default_checkpoint() -> str:
    """The small checkpoint of a checkout; raises InputError if there is none."""
    if not (TINY_CHECKPOINT / "config.json").is_file():
        raise InputError(
            "name a CHECKPOINT; only a checkout of trt-mtp has a default, assets/qwen-mtp-tiny"
        )
    return str(TINY_CHECKPOINT)


@contextmanager
def running(
    checkpoint: str,
    draft_lengths: str,
    engines: Path,
    ports: GatewayPorts,
    on_progress: Progress,
    engine: str = "auto",
    vllm_python: Path | None = None,
) -> Iterator[Stack]:
    """A running stack for clients, stopped at the end of the context; call its `check` often.

    Raises InputError for wrong input, TrtMtpError if a step failed.
    """
    require_builder(engine)
    free_ports(ports.taken())
    variants = resolve_variants(build(checkpoint, draft_lengths, engines, engine, vllm_python))
    with serving(variants, on_progress=on_progress) as server:
        command = ["gateway", "--triton", server.grpc_url, "--json"]
        for name, port in ports.taken().items():
            command.append(f"--port={port}" if name == "gateway" else f"--{name}-port={port}")
        if variants[0].engine != "cpu":  # answers wait for a server that starts again for minutes
            command += ["--failover-wait-s", str(limits_for(variants).load_s)]
        with child(*command) as gateway:
            ready = read_ready_line(gateway)
            triton = describe(server, variants)
            del triton["schema_version"]
            yield Stack(
                server,
                gateway,
                {
                    "schema_version": 1,
                    "gateway": ready["gateway"],
                    "http": ready["http"],
                    "openai": ready["openai"],
                    "admin": ready["admin"],
                    "variants": triton.pop("variants"),
                    "triton": triton,
                },
            )


def require_builder(engine: str = "auto") -> None:
    """Raise InputError if the engine of `build` is not installed."""
    from trt_mtp.build.cli import choose_engine

    require_engine(choose_engine(engine))


def build(
    checkpoint: str,
    draft_lengths: str,
    engines: Path,
    engine: str = "auto",
    vllm_python: Path | None = None,
) -> Sequence[Path]:
    """Build missing variants; returns the directories of all. Messages go to stderr."""
    command = ["build", checkpoint, "--draft-lengths", draft_lengths, "-o", str(engines), "--json"]
    command += ["--engine", engine]
    if vllm_python is not None:
        command += ["--vllm-python", str(vllm_python)]
    with child(*command) as process:
        assert process.stdout is not None
        # no bound: a build takes what it takes, says on stderr where it is, and Ctrl-C ends it
        output = process.stdout.read()
        code = process.wait()
    if code:
        kind = InputError if code == InputError.exit_code else TrtMtpError
        raise kind(f"{checkpoint} could not be built")
    return [Path(variant["folder"]) for variant in json.loads(output)["variants"]]


@contextmanager
def child(*arguments: str, log: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """`trt-mtp` with `arguments`, its stdout a pipe; ended with the context.

    Its stderr is ours, or goes to the file `log`.
    """
    environment = dict(os.environ)
    here = str(Path(trt_mtp.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    with open(log, "ab", opener=open_private) if log else nullcontext() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trt_mtp", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us
            preexec_fn=die_with_parent(),
        )
    try:
        yield process
    finally:
        with undisturbed():
            process.terminate()
            has_ended(process, GATEWAY_STOP_S)
            kill_group(process)
            assert process.stdout is not None
            process.stdout.close()


def read_ready_line(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """The JSON line that a child prints when it is ready.

    Raises TrtMtpError if it ended, or printed nothing for GATEWAY_START_S.
    """
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], GATEWAY_START_S)[0]:
        raise TrtMtpError(f"the gateway was not ready within {GATEWAY_START_S:.0f} s")
    line = process.stdout.readline()  # written as a whole, or its pipe is closed
    if not line:
        has_ended(process, GATEWAY_STOP_S)
        raise TrtMtpError(f"the gateway ended with code {process.poll()} while starting")
    value: dict[str, Any] = json.loads(line)
    return value
