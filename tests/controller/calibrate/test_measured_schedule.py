"""A measured profile becomes TensorRT-LLM's draft_len_schedule."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import CliResult
from tests.real_checkpoints import write_real
from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.calibrate.measured_schedule import best_schedule, schedules
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.profile import Profile, write_profile
from trt_mtp.errors import InputError

Cli = Callable[..., CliResult]
RATIOS = {1: {1: 1.1, 32: 1.3}, 2: {1: 1.2, 32: 1.9}, 4: {1: 1.5, 32: 3.5}}


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """R of three lengths at two loads; code is accepted more often than prose."""
    file = tmp_path / "profile.json"
    write_profile(file, Profile(step_ratio=RATIOS, acceptance={"coding": 0.95, "writing": 0.4}))
    return file


@given(
    st.floats(0.05, 0.99),
    st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4),
    st.integers(1, 4),
    st.integers(1, 64),
)
def test_every_batch_gets_the_fastest_length(
    p: float, steps: list[float], draft_length: int, max_batch_size: int
) -> None:
    """At each batch the scheduled length takes the least time per token of those up to K."""
    ratios = {k: ((1, 1 + sum(steps[:k])), (64, 1 + 3 * sum(steps[:k]))) for k in (1, 2, 3, 4)}
    cost = StepCost(((1, 0.02),), ratios)
    inverse = [1 / al for al in acceptance_lengths(prior_conditionals(p))]
    schedule = best_schedule(cost, inverse, draft_length, max_batch_size)
    assert max(schedule) == max_batch_size
    for batch in range(1, max_batch_size + 1):
        length = schedule[min(bound for bound in schedule if bound >= batch)]
        times = {k: cost.ratio(k, batch) * inverse[k] for k in range(1, draft_length + 1)}
        assert times[length] == min(times.values())


def test_the_mix_decides(profile: Path) -> None:
    """Code alone drafts deeper than prose alone; a bound is never above the largest batch."""
    code = schedules(profile, (0, 1, 4), 32, "coding=1")
    prose = schedules(profile, (0, 1, 4), 32, "writing=2")
    assert list(code) == [1, 4]
    assert code[1] == {32: 1}
    assert next(iter(code[4].values())) > next(iter(prose[4].values()))
    assert set(code[4]) | set(prose[4]) <= set(range(1, 33))


def test_a_profile_without_step_costs_is_refused(tmp_path: Path, profile: Path) -> None:
    """Published values are of other machines: without R there is no schedule; tasks are checked."""
    write_profile(tmp_path / "p.json", Profile(step_ratio={}))
    with pytest.raises(InputError, match="has no step_ratio"):
        schedules(tmp_path / "p.json", (1,), 8)
    with pytest.raises(InputError, match="'codng' is not a task; did you mean coding"):
        schedules(profile, (1,), 8, "codng=1")
    with pytest.raises(InputError, match="share of coding must be above 0"):
        schedules(profile, (1,), 8, "coding=0")


def test_build_writes_it(cli: Cli, tmp_path: Path, profile: Path) -> None:
    """`trt-mtp build --profile` gives each variant its schedule, which begins at its length."""
    checkpoint = write_real("qwen3.8-27b", tmp_path / "27b", "fp8")
    build: list[str | Path] = ["build", checkpoint, "--gpu", "h200-141gb", "--dry-run", "--json"]
    build += ["--trtllm-version", "1.3.0rc27", "--draft-lengths", "0,1,4"]
    build += ["-o", tmp_path / "engines"]
    result = cli(*build, "--profile", profile)
    assert result.code == 0, result.err
    variants = {v["draft_length"]: v["llm_args"] for v in json.loads(result.out)["variants"]}
    assert "speculative_config" not in variants[0]
    assert "draft_len_schedule" not in variants[1]["speculative_config"]
    schedule = variants[4]["speculative_config"]["draft_len_schedule"]
    assert next(iter(schedule.values())) == 4
    assert schedule["32"] == 1
    for options, said in (
        (("--mix", "coding=1"), "--mix is for --profile"),
        (("--profile", profile, "--draft-len-schedule", "4:1"), "both say when"),
        (("--profile", profile, "--mix", "coding"), "should be like coding=0.5"),
    ):
        assert said in cli(*build, *options).err
