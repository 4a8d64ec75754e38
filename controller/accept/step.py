"""A step of an acceptance, its budget, and how it ended."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trt_mtp.errors import TrtMtpError
from trt_mtp.progress import Meter

if TYPE_CHECKING:
    from trt_mtp.controller.accept.stack import Stack

Status = Literal["passed", "failed", "bad input", "over budget", "skipped", "not run"]
StepName = Literal["doctor", "build", "verify", "serve", "smoke", "calibrate"]
EngineName = Literal["cpu", "tensorrt-llm", "vllm"]
Facts = dict[str, Any]  # JSON-like

# What may be told of a failure to anybody: no other word of its sentence leaves this machine.
PHRASES = (
    "out of memory", "CUDA error", "illegal memory access", "NCCL", "MPI", "No space left",
    "Permission denied", "can't be started", "not ready", "not loaded", "timed out",
    "stopped answering", "sent nothing", "ended with code", "does not exist", "is not installed",
    "is not known here", "can't serve Qwen MTP", "needs about", "answered otherwise",
    "killed by signal", "no tritonserver", "libpython", "ptrace",
)  # fmt: skip


class OverBudgetError(TrtMtpError):
    """A step took longer than it may."""


class Budget:
    """The time that a step may take, from now on."""

    def __init__(self, seconds: float) -> None:
        """Begin."""
        self.seconds = seconds
        self._started_at = time.monotonic()

    @property
    def took_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started_at

    @property
    def left_s(self) -> float:
        """Seconds that are left; 0 when it is over."""
        return max(0.0, self.seconds - self.took_s)

    def require(self) -> None:
        """Raise OverBudgetError when it is over."""
        if not self.left_s:
            raise OverBudgetError(f"it was not done after its budget of {self.seconds:.0f} s")


@dataclass(frozen=True, slots=True)
class Options:
    """What is accepted, and where."""

    checkpoint: str
    engine: EngineName
    draft_lengths: tuple[int, ...]
    engines: Path  # the directory of the variants
    folder: Path  # of journal, logs and record
    skipped: frozenset[str] = frozenset()
    budgets: Mapping[str, float] = field(default_factory=dict)  # seconds, by step
    vllm_python: Path | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the engine gives the same tokens at every draft length."""
        return self.engine == "cpu"


@dataclass(slots=True)
class Acceptance:
    """What the steps of one run share."""

    options: Options
    meter: Meter
    live: ExitStack  # what a step leaves running for those after it
    facts: dict[str, Facts] = field(default_factory=dict)  # of the steps that ended, by name
    stack: "Stack | None" = None  # Triton and gateway, once they run

    def log(self, step: str) -> Path:
        """The log of a step's commands."""
        return self.options.folder / f"{step}.log"


@dataclass(frozen=True, slots=True)
class Result:
    """What a step found; with a problem, it failed."""

    facts: Facts
    problem: str = ""
    not_tried: str = ""  # why it can't be tried here, which is no failure


@dataclass(frozen=True, slots=True)
class Step:
    """One step: it runs when those it needs have passed."""

    name: StepName
    needs: tuple[StepName, ...]
    budget_s: Mapping[str, float]  # by engine
    run: Callable[[Acceptance, Budget], Result]
    # what its result depends on; None for a step that is quick when nothing changed, and always run
    inputs: Callable[[Acceptance], Any] | None = None
    is_live: bool = False  # its result is a running server: of use only for a step that runs too


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended."""

    step: StepName
    status: Status
    budget_s: float = 0.0
    took_s: float = 0.0
    facts: Facts = field(default_factory=dict)
    reason: str = ""  # for the terminal and the journal: it may name paths
    phrases: tuple[str, ...] = ()  # those of PHRASES that its failure has
    is_resumed: bool = False  # taken from the journal


def phrases_in(text: str) -> tuple[str, ...]:
    """Those of PHRASES that are in `text`.

    >>> phrases_in("/home/ada: RuntimeError: CUDA error: out of memory")
    ('out of memory', 'CUDA error')
    """
    return tuple(phrase for phrase in PHRASES if phrase in text)
