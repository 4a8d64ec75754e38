"""Build, serve and gateway as one foreground process, for trying things out."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trt_mtp
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.processes import die_with_parent, free_ports, undisturbed
from trt_mtp.serve.serving import describe, resolve_variants, serving
from trt_mtp.serve.triton import Progress, TritonServer

TINY_CHECKPOINT = Path(trt_mtp.__file__).resolve().parents[1] / "assets" / "qwen-mtp-tiny"
GATEWAY_STOP_S = 5.0  # for answers in flight; Triton is asked to stop after it


@dataclass(frozen=True, slots=True)
class Stack:
    """What is running."""

    server: TritonServer
    gateway: "subprocess.Popen[bytes]"
    ready: dict[str, Any]  # what `trt-mtp up --json` prints

    def check(self, on_progress: Progress) -> None:
        """Start Triton again if it died; raises TrtMtpError when that fails or the gateway died."""
        code = self.gateway.poll()
        if code is not None:
            raise TrtMtpError(f"the gateway ended with code {code}")
        self.server.check(on_progress)


def default_checkpoint() -> str:
    """The small checkpoint of a checkout; raises InputError where there is none."""
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
    gateway_port: int,
    on_progress: Progress,
) -> Iterator[Stack]:
    """Everything that a client needs, stopped at the end; call `check` of what it yields often.

    Raises InputError for what the user can set right, TrtMtpError for what failed.
    """
    free_ports({"gateway": gateway_port})
    variants = resolve_variants(build(checkpoint, draft_lengths, engines))
    with serving(variants, on_progress=on_progress) as server:
        command = ["gateway", "--triton", server.grpc_url, "--port", str(gateway_port), "--json"]
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
                    "variants": triton.pop("variants"),
                    "triton": triton,
                },
            )


def build(checkpoint: str, draft_lengths: str, engines: Path) -> Sequence[Path]:
    """Build what is missing; the variants' folders. What it has to say goes to stderr."""
    command = ["build", checkpoint, "--draft-lengths", draft_lengths, "-o", str(engines), "--json"]
    with child(*command) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        code = process.wait()
    if code:
        kind = InputError if code == InputError.exit_code else TrtMtpError
        raise kind(f"{checkpoint} could not be built")
    return [Path(variant["folder"]) for variant in json.loads(output)["variants"]]


@contextmanager
def child(*arguments: str, log: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """`trt-mtp` with `arguments`, its stdout a pipe; ended when the block is.

    Its stderr is ours, or goes to the file `log`.
    """
    environment = dict(os.environ)
    here = str(Path(trt_mtp.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    with log.open("ab") if log else nullcontext() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "trt_mtp", *arguments],
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
            with suppress(subprocess.TimeoutExpired):
                process.wait(GATEWAY_STOP_S)
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def read_ready_line(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """The JSON line that a child prints when it is ready; raises TrtMtpError when it ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise TrtMtpError(f"the gateway ended with code {process.wait()} while starting")
    value: dict[str, Any] = json.loads(line)
    return value
