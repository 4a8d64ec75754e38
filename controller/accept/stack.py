"""What an acceptance asks: Triton and a gateway, watched while something asks them."""

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from trt_mtp.build.variant import EngineVariant
from trt_mtp.controller.accept.step import Budget
from trt_mtp.controller.calibrate.beside import beside
from trt_mtp.controller.up import child, read_ready_line
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.serving import limits_for, serving
from trt_mtp.serve.triton import Progress, TritonServer

# A killed variant takes its Triton with it, and `serve` starts both again: answers wait for that.
FAILOVER_WAIT_S = 3600.0

Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class Stack:
    """The running servers."""

    server: TritonServer
    gateway: "subprocess.Popen[bytes]"
    address: str  # host:port of the gateway's gRPC
    metrics_port: int  # the gateway's HTTP, which has its metrics
    variants: tuple[EngineVariant, ...]  # hosted ones
    on_progress: Progress

    def check(self) -> None:
        """Start Triton again if it died; raises TrtMtpError if the gateway ended."""
        code = self.gateway.poll()
        if code is not None:
            raise TrtMtpError(f"the gateway ended with code {code}")
        self.server.check(self.on_progress)


@contextmanager
def running(
    variants: Sequence[EngineVariant], log: Path, budget: Budget, on_progress: Progress
) -> Iterator[Stack]:
    """Triton with `variants` and a gateway; raises OverBudgetError if they take too long."""

    def say(text: str) -> None:
        on_progress(text)
        budget.require()

    limits = limits_for(variants, load_s=max(budget.left_s, 1.0))
    with serving(variants, limits=limits, on_progress=say) as server:
        command = ["gateway", "--triton", server.grpc_url, "--port", "0", "--http-port", "0"]
        command += ["--failover-wait-s", str(FAILOVER_WAIT_S), "--json"]
        with child(*command, log=log) as gateway:
            ready = read_ready_line(gateway)
            port = int(str(ready["http"]).rpartition(":")[2])
            yield Stack(server, gateway, ready["gateway"], port, tuple(variants), on_progress)


def ask_beside(
    work: Callable[[threading.Event], Work], check: Callable[[], None], budget: Budget
) -> Work:
    """The result of `work`, which runs in a thread and ends soon when its event is set.

    Raises OverBudgetError, and what `work` and `check` raise.
    """
    over = threading.Event()

    def look() -> None:
        budget.require()
        check()

    return beside(partial(work, over), look, over.set)
