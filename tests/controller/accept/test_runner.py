"""Steps in order: needs, budgets, resuming by what a step depends on, and exit codes."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.variants import make_variant
from trt_mtp.controller.accept.journal import Journal
from trt_mtp.controller.accept.plan import device_of, hosted, in_order_of_use
from trt_mtp.controller.accept.runner import exit_code, run_steps
from trt_mtp.controller.accept.step import (
    Acceptance,
    Budget,
    Options,
    Outcome,
    Result,
    Step,
    StepName,
)
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.progress import PlainMeter

BUDGET = {"cpu": 60.0}


@dataclass
class World:
    """Steps without a server behind them: what they depend on, what they do, and which ran."""

    folder: Path
    inputs: dict[str, Any] = field(default_factory=dict)
    fails: dict[str, BaseException | str] = field(default_factory=dict)  # by step
    ran: list[str] = field(default_factory=list)

    def step(self, name: StepName, *needs: StepName, is_live: bool = False) -> Step:
        """A step that does what `fails` says."""

        def run(acceptance: Acceptance, budget: Budget) -> Result:
            self.ran.append(name)
            fault = self.fails.get(name, "")
            if isinstance(fault, BaseException):
                raise fault
            budget.require()
            return Result({"name": name}, fault)

        return Step(name, needs, BUDGET, run, lambda _: self.inputs.get(name), is_live)

    @property
    def steps(self) -> tuple[Step, ...]:
        """A table like the real one."""
        return (
            self.step("build"),
            self.step("verify", "build"),
            self.step("serve", "build", is_live=True),
            self.step("smoke", "serve"),
            self.step("calibrate", "serve"),
        )

    def run(self, *, skip: tuple[str, ...] = (), **budgets: float) -> dict[str, Outcome]:
        """All steps, in a new process's place."""
        self.ran = []
        options = Options(
            checkpoint="",
            engine="cpu",
            draft_lengths=(0, 3),
            engines=self.folder,
            folder=self.folder,
            skipped=frozenset(skip),
            budgets=budgets,
        )
        with Journal(self.folder / "journal.jsonl") as journal, ExitStack() as live:
            acceptance = Acceptance(options, PlainMeter("s", 1.0), live)
            return {one.step: one for one in run_steps(self.steps, acceptance, journal)}


def statuses(outcomes: Mapping[str, Outcome]) -> list[str]:
    """How each ended."""
    return [outcome.status for outcome in outcomes.values()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world in which all goes well."""
    return World(tmp_path)


def test_resumes(world: World) -> None:
    """What passed is not run again; a changed input runs its step again, and a server for it."""
    assert statuses(world.run()) == ["passed"] * 5
    assert world.ran == ["build", "verify", "serve", "smoke", "calibrate"]
    outcomes = world.run()
    assert world.ran == []
    assert all(outcome.is_resumed for outcome in outcomes.values())
    world.inputs["verify"] = "another driver"
    world.run()
    assert world.ran == ["verify"]
    world.inputs["calibrate"] = "other prompts"
    outcomes = world.run()
    assert world.ran == ["serve", "calibrate"]
    assert outcomes["smoke"].is_resumed


def test_a_server_is_started_for_nothing_that_is_skipped(world: World) -> None:
    """A skipped step wants no server."""
    world.run(skip=("calibrate",))
    assert world.ran == ["build", "verify", "serve", "smoke"]
    outcomes = world.run(skip=("calibrate",))
    assert world.ran == []
    assert statuses(outcomes) == ["passed"] * 4 + ["skipped"]
    assert exit_code(list(outcomes.values())) == 0


def test_what_failed_runs_again(world: World) -> None:
    """A failure is not resumed, and steps that don't need it run."""
    world.fails = {"verify": "k3 answered otherwise"}
    outcomes = world.run()
    assert statuses(outcomes) == ["passed", "failed", "passed", "passed", "passed"]
    assert outcomes["verify"].reason == "k3 answered otherwise"
    assert outcomes["verify"].phrases == ("answered otherwise",)
    assert exit_code(list(outcomes.values())) == 1
    world.fails = {}
    assert statuses(world.run()) == ["passed"] * 5
    assert world.ran == ["verify"]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (TrtMtpError("/home/ada: CUDA error"), "failed", 1),
        (InputError("/home/ada is not a checkpoint"), "bad input", 2),
    ],
)
def test_needs(world: World, fault: Exception, status: str, code: int) -> None:
    """What needs a step that did not pass is not run."""
    world.fails = {"build": fault}
    outcomes = world.run()
    assert statuses(outcomes) == [status] + ["not run"] * 4
    assert outcomes["smoke"].reason == "serve not run"
    assert exit_code(list(outcomes.values())) == code


def test_over_budget(world: World) -> None:
    """A step that takes too long is told so, fails the whole, and runs again."""
    outcomes = world.run(smoke=1e-9)
    assert outcomes["smoke"].status == "over budget"
    assert outcomes["calibrate"].status == "passed"
    assert exit_code(list(outcomes.values())) == 1
    assert statuses(world.run()) == ["passed"] * 5
    assert world.ran == ["serve", "smoke"]


def test_an_interruption(world: World) -> None:
    """What ended before it is resumed."""
    world.fails = {"smoke": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        world.run()
    world.fails = {}
    world.run()
    assert world.ran == ["serve", "smoke", "calibrate"]


def test_a_line_that_was_cut_off(world: World) -> None:
    """A crash while a line is written costs that step."""
    world.run()
    file = world.folder / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    world.run()
    assert world.ran == ["serve", "calibrate"]
    world.run()
    assert world.ran == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"schema_version":2,"kind":"trt-mtp accept"}\n', "version 2, expected"),
        ('{"schema_version":1,"settings":{}}\n', "line 1 is not of an acceptance's journal"),
        ("[]\n", "line 1 is not of an acceptance's journal"),
        ('{"schema_version":1,"kind":"trt-mtp accept"}\n{"fingerprint":1}\n', "line 2 is not"),
    ],
)
def test_a_journal_that_is_none(world: World, content: str, sentence: str) -> None:
    """Another version's and other files are refused, and stay as they are."""
    file = world.folder / "journal.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=sentence):
        world.run()
    assert file.read_text() == content


def test_two_at_once(world: World) -> None:
    """A second run in the same directory is refused."""
    with (
        Journal(world.folder / "journal.jsonl"),
        pytest.raises(InputError, match="another `trt-mtp` is writing"),
    ):
        world.run()


@pytest.mark.parametrize(
    ("num_gpus", "names"),
    [(0, "k0 k1 k3"), (1, "k3"), (2, "k0 k3"), (3, "k0 k1 k3"), (8, "k0 k1 k3")],
)
def test_hosted_variants(tmp_path: Path, num_gpus: int, names: str) -> None:
    """As many as GPUs, each on its own; all of them where somebody else built them."""
    variants = [make_variant(tmp_path, length) for length in (0, 1, 3)]
    chosen = hosted(variants, num_gpus, is_planned=True)
    assert " ".join(variant.name for variant in chosen) == names
    assert hosted(variants, num_gpus, is_planned=False) == tuple(variants)
    if num_gpus:
        devices = [device_of(one.draft_length, (0, 1, 3), num_gpus) for one in chosen]
        assert len(set(devices)) == len(devices)
        assert sorted(in_order_of_use((0, 1, 3), num_gpus)) == [0, 1, 3]
