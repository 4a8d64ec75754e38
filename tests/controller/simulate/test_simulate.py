"""The simulator: queues, policies, regret, and the check against published measurements."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.decision_log import DecisionLog
from trt_mtp.controller.mix import parse_mix
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.simulate import regret
from trt_mtp.controller.simulate.arrivals import Trace, bursts, poisson
from trt_mtp.controller.simulate.cli import simulate as command
from trt_mtp.controller.simulate.fleet import Fleet, InFlight, split
from trt_mtp.controller.simulate.simulate import Settings, simulate
from trt_mtp.controller.simulate.workload import MIXES, Workload, published_cost
from trt_mtp.errors import InputError

COST = StepCost(((1, 0.02), (8, 0.04)), {1: ((1, 1.25),)})


def test_a_lone_request_takes_its_steps() -> None:
    """With nothing else running, n steps take n times T(K, 1)."""
    workload, fleet = Workload(COST), Fleet([0], COST)
    request = workload.draw({"coding": 1.0})
    fleet.submit(fleet.least_loaded(0), InFlight(request, 0.0, 0, None), 0.0)
    [(ended_at, _)] = fleet.finished_until(1e9)
    assert ended_at == pytest.approx(request.num_tokens * 0.02)


def test_requests_that_share_a_replica_slow_each_other() -> None:
    """Eight requests run at the step time of a batch of eight while all are there."""
    workload, fleet = Workload(COST), Fleet([0], COST)
    request = workload.draw({"coding": 1.0})
    for _ in range(8):
        fleet.submit(fleet.least_loaded(0), InFlight(request, 0.0, 0, None), 0.0)
    ended = [ended_at for ended_at, _ in fleet.finished_until(1e9)]
    assert len(ended) == 8
    assert ended[0] == pytest.approx(request.num_tokens * 0.04)


def test_a_full_batch_makes_others_wait() -> None:
    """The second of two requests on a batch of one starts when the first ends."""
    workload, fleet = Workload(COST), Fleet([0], COST, max_batch_size=1)
    request = workload.draw({"coding": 1.0})
    for _ in range(2):
        fleet.submit(fleet.least_loaded(0), InFlight(request, 0.0, 0, None), 0.0)
    ended = [ended_at for ended_at, _ in fleet.finished_until(1e9)]
    assert ended[1] == pytest.approx(2 * ended[0])


@hypothesis_settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 9000)), min_size=1, max_size=12),
    st.integers(0, 1),
)
def test_prompts_that_are_read_in_chunks_are_read_to_their_end(
    arrivals: list[tuple[float, int]], length: int
) -> None:
    """Every request ends, none before its prompt and its steps; a mean load is a possible one."""
    workload, fleet = Workload(COST), Fleet([length], COST, max_batch_size=4, chunk_s=1.0)
    ended, now = list[tuple[float, InFlight]](), 0.0
    for gap_s, tokens in arrivals:
        now += gap_s
        ended += fleet.finished_until(now)
        request = replace(workload.draw({"coding": 1.0}), prompt_tokens=tokens)
        flight = InFlight(request, now, length, None, prefill_s=tokens / 2048)
        fleet.submit(fleet.least_loaded(length), flight, now)
    ended += fleet.finished_until(1e9)
    assert len(ended) == len(arrivals)
    for end, flight in ended:
        tokens, request = flight.request.prompt_tokens or 0, flight.request
        assert flight.first_token_at >= flight.started_at + tokens / 2048 - 1e-6
        alone_s = request.num_tokens / request.lengths[length] * COST.step_s(length, 1)
        assert end >= flight.first_token_at + alone_s - 1e-6
        assert flight.mean_load is not None
        assert 1 <= flight.mean_load.requests <= 4 + 1e-6
        assert flight.mean_load.context_tokens >= tokens - 1e-3
    assert fleet.least_loaded(length).context_tokens == pytest.approx(0, abs=1e-6)


def test_long_prompts_slow_answers_beside_them() -> None:
    """What is read in chunks beside an answer makes its steps longer, and the answer later."""
    lone, beside = Fleet([1], COST, chunk_s=1.0), Fleet([1], COST, chunk_s=1.0)
    request = Workload(COST).draw({"coding": 1.0})
    for fleet in (lone, beside):
        fleet.submit(fleet.least_loaded(1), InFlight(request, 0.0, 1, None), 0.0)
    reader = replace(request, prompt_tokens=8192)
    late = InFlight(reader, 0.1, 1, None, prefill_s=4.0)
    beside.submit(beside.least_loaded(1), late, 0.1)
    alone_s, slowed_s = (next(iter(f.finished_until(1e9)))[0] for f in (lone, beside))
    assert alone_s + 3.5 < slowed_s < alone_s + 5.0


def test_a_fleet_with_prompts_is_simulated_through_the_command() -> None:
    """Prompts take time from every policy, and speculation still wins."""
    arguments = ["--requests", "300", "--rate", "2", "--replicas", "6", "--json", "--policy",
                 "none,static", "--fleet", "3=1"]  # fmt: skip
    speeds = []
    for more in ([], ["--prompt-tokens", "1500"]):
        result = CliRunner().invoke(command, [*arguments, *more])
        rows = json.loads(result.stdout)["results"]
        speeds.append([row["user_tokens_per_s"] for row in rows])
    (none, static), (none_with, static_with) = speeds
    assert none_with < 0.9 * none
    assert none_with < static_with < 0.9 * static


def test_a_draft_length_that_changes_keeps_the_tokens_that_are_made() -> None:
    """A batch schedule changes the steps that are left, never what was done nor what is asked."""
    schedule = BatchSchedule.of({1: 1, 2: 0})
    workload, fleet = Workload(COST), Fleet([1], COST, schedules={1: schedule})
    request = workload.draw({"coding": 1.0})
    alone_s, together_s = COST.step_s(1, 1), COST.step_s(0, 2)
    arrives_s = 20 * alone_s
    for at_s in (0.0, arrives_s):
        fleet.submit(fleet.least_loaded(1), InFlight(request, at_s, 1, None), at_s)
    (first_s, first), (second_s, second) = fleet.finished_until(1e9)
    left = request.num_tokens - 20 * request.lengths[1]
    assert first_s == pytest.approx(arrives_s + left * together_s)
    left = request.num_tokens - left
    assert second_s == pytest.approx(first_s + left / request.lengths[1] * alone_s)
    assert (first.draft_length, second.draft_length) == (1, 0)


def test_a_schedule_of_one_length_is_that_length() -> None:
    """Where the schedule never changes, it and a static length simulate the same."""
    settings = Settings(MIXES["chat"], num_requests=400, rate_per_s=30, num_replicas=6)
    static = simulate(replace(settings, policy="static", static_length=3))
    scheduled = simulate(replace(settings, policy="schedule", schedule={4: 3, 1024: 3}))
    assert scheduled._replace(policy="static-3") == static


def test_a_fleet_whose_replicas_follow_a_schedule_is_routed() -> None:
    """The policy learns where lengths follow the batch: each variant at most at its length."""
    settings = Settings(
        MIXES["code-creative"], num_requests=2000, num_replicas=6, rate_per_s=6,
        shares={0: 1, 3: 1, 5: 1}, schedule={2: 5, 4: 3, 1024: 1}, is_scheduled=True,
    )  # fmt: skip
    learned, oracle, none = (
        simulate(replace(settings, policy=policy)) for policy in ("learned", "oracle", "none")
    )
    assert {"1", "3", "5"} <= set(learned.chosen) <= {"0", "1", "3", "5"}
    assert learned.user_tokens_per_s > 0.95 * oracle.user_tokens_per_s
    assert learned.user_tokens_per_s > none.user_tokens_per_s


def test_what_ran_at_several_lengths_is_reported_as_such() -> None:
    """Steps add up over the lengths, and a position is accepted where it was drafted."""
    schedule = BatchSchedule.of({1: 3, 4: 1})
    workload, fleet = Workload(COST), Fleet([3], COST, schedules={3: schedule})
    request = workload.draw({"coding": 1.0})
    for at_s in (0.0, 0.5):
        fleet.submit(fleet.least_loaded(3), InFlight(request, at_s, 3, None), at_s)
    _, first = next(iter(fleet.finished_until(1e9)))
    assert [length for length, _ in first.parts] == [3, 1]
    tokens = sum(steps * request.lengths[length] for length, steps in first.parts)
    assert tokens == pytest.approx(request.num_tokens)
    told = workload.outcome(request, 3, 1.0, parts=first.parts)
    assert told.num_steps < told.num_draft_tokens < 3 * told.num_steps
    assert told.accepted_per_position[1] <= round(first.parts[0][1])


@given(
    st.dictionaries(st.integers(1, 12), st.integers(0, 5), min_size=1, max_size=4),
    st.floats(1, 60),
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_under_any_schedule_every_request_ends(schedule: dict[int, int], rate: float) -> None:
    """Nothing is lost or ends before it began, however the length jumps."""
    result = simulate(
        Settings(
            MIXES["chat"], "schedule", num_requests=60, num_replicas=2, rate_per_s=rate,
            schedule=schedule,
        )
    )  # fmt: skip
    assert result.num_requests == 60
    assert result.latency_p50_s > 0
    assert sum(result.chosen.values()) == pytest.approx(1, abs=1e-3)


def write_trace(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_trace_is_times_or_json_lines(tmp_path: Path) -> None:
    """Times count from the first arrival, in any order; a task is the request's own."""
    lines = '12.5\n{"time_s": 10, "task": "math"}\n\n{"time_s": 11.0}'
    trace = Trace(write_trace(tmp_path / "trace", lines))
    assert list(trace) == [(0.0, "math"), (1.0, None), (2.5, None)]
    settings = Settings(MIXES["chat"], "none", num_requests=len(trace), num_replicas=1, trace=trace)
    assert simulate(settings).num_requests == 3


def test_a_trace_may_have_lengths(tmp_path: Path) -> None:
    """A trace that `trt-mtp plan` reads is one for the simulator."""
    line = '{"time_s": 1, "task": "qa", "prompt_tokens": 5, "output_tokens": 7}\n'
    assert list(Trace(write_trace(tmp_path / "trace", line))) == [(0.0, "qa")]


def test_a_decision_log_is_a_trace(tmp_path: Path) -> None:
    """Requests arrive when they were decided, as the task they were taken for."""
    log = DecisionLog(tmp_path / "log")
    policy = Policy()
    for now_s, task in ((1e9 + 3, "coding"), (1e9, "writing")):
        decision = policy.choose(request(hint_task=task), variants(3), now_s=now_s)
        log.append(decision, outcome(3))
    log.close()
    assert list(Trace(tmp_path / "log")) == [(0.0, "writing"), (3.0, "coding")]
    whole = (tmp_path / "log").read_text()
    cut = Trace(write_trace(tmp_path / "cut", whole[:-20]))
    assert list(cut) == [(0.0, "coding")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("soon", "'soon': expected a time"),
        ("-1", "expected a time"),
        ("NaN", "expected a time"),
        ("1e999", "expected a time"),
        ("9" * 400, "expected a time"),
        ("[1]", "expected a time"),
        ("true", "expected a time"),
        ('{"task": "math"}', "time_s is None"),
        ('{"time_s": "1"}', "time_s is '1'"),
        ('{"time_s": 1, "tsk": "math"}', "unknown key 'tsk'; did you mean task"),
        ('{"time_s": 1, "task": "maths"}', "did you mean math"),
        ('{"decision": {"now_s": null}}', "time_s is None"),
    ],
)
def test_a_line_that_is_no_arrival_is_named(tmp_path: Path, line: str, said: str) -> None:
    """File, line and what was expected."""
    path = write_trace(tmp_path / "trace", f"1.0\n{line}\n")
    with pytest.raises(InputError, match=r"trace, line 2.*" + re.escape(said)):
        Trace(path)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    """Empty, missing, or not text."""
    with pytest.raises(InputError, match="holds no arrival"):
        Trace(write_trace(tmp_path / "trace", "\n"))
    with pytest.raises(InputError, match="does not exist"):
        Trace(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe1")
    with pytest.raises(InputError, match="can't be read"):
        Trace(tmp_path / "binary")


def test_every_request_ends_and_the_same_seed_repeats() -> None:
    """Nothing is lost, and a simulation is its seed."""
    settings = Settings(MIXES["chat"], num_requests=400, rate_per_s=30, num_replicas=6)
    first = simulate(settings)
    assert first.num_requests == 400
    assert simulate(settings) == first
    assert simulate(replace(settings, seed=1)) != first


def test_speculation_pays_when_idle_and_costs_when_overloaded() -> None:
    """K = 3 is faster than none at low load, and the learning policy is never far from the best."""
    low = Settings(MIXES["agent"], num_requests=600, rate_per_s=1, num_replicas=9)
    none, static, learned, oracle = (
        simulate(replace(low, policy=policy)) for policy in ("none", "static", "learned", "oracle")
    )
    assert static.user_tokens_per_s > 1.7 * none.user_tokens_per_s
    assert learned.user_tokens_per_s > 0.9 * oracle.user_tokens_per_s


def test_arrivals_have_their_rate() -> None:
    """Poisson and bursty arrivals both come at the rate asked for."""
    for process in (poisson, bursts):
        times = process(10.0, random.Random(0))
        last = [next(times).at for _ in range(20_000)][-1]
        assert 20_000 / last == pytest.approx(10, rel=0.05)


def test_every_length_gets_a_replica() -> None:
    """A fleet is divided by shares with no length left out."""
    assert split(10, {0: 0.01, 3: 0.99}).count(0) == 1
    assert len(split(17, {0: 1, 1: 1, 3: 1})) == 17


@pytest.mark.parametrize("text", ["cod", "coding", "coding=x", "coding=-1", "coding=inf", ""])
def test_a_wrong_mix_is_refused(text: str) -> None:
    """A mix is a known name or shares of known tasks."""
    with pytest.raises(InputError, match="mix"):
        parse_mix(text, MIXES)


def test_regret_is_small_and_nothing_loses_against_none() -> None:
    """On a mixed load the learned policy is near the oracle and no task is slower than none."""
    scenario = regret.Scenario("x", "low", (MIXES["code-creative"],), 1, 1000)
    overall, tasks = regret.run(scenario)
    assert overall.over("oracle") > 0.96
    assert min(times.over("none") for times in tasks.values()) > 0.98


def test_wrong_priors_are_unlearned() -> None:
    """Five hundred requests after a start from reversed priors little is lost."""
    assert regret.recovery(1000)["agent"] > 0.96


def test_the_command_prints_tables_and_json() -> None:
    """`simulate` compares policies; its JSON has one result each."""
    runner = CliRunner()
    arguments = ["--requests", "200", "--policy", "none,learned"]
    result = runner.invoke(command, [*arguments, "--json"])
    assert [r["policy"] for r in json.loads(result.stdout)["results"]] == ["none", "learned"]
    assert "fleet tok/s" in runner.invoke(command, arguments).output
    wrong = runner.invoke(command, ["--policy", "leaned"])
    assert isinstance(wrong.exception, InputError)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arrivals", "trace"], "--trace FILE"),
        (["--arrivals", "bursts", "--trace", "x"], "give one of them"),
        (["--rate", "2", "--trace", "x"], "its own rate"),
        (["--schedule", "4"], "--schedule '4': expected pairs"),
        (["--schedule", "4:0"], "start at 1"),
        (["--schedule", "4:9"], "at most 8"),
        (["--rate", "nan"], "a finite number"),
        (["--rate", "inf"], "a finite number"),
        (["--mix", "coding=1,coding=2"], "coding is given twice"),
        (["--mix", "chta"], "did you mean chat"),
        (["--fleet", "3=1,3=2"], "length 3 is given twice"),
        (["--replicas", "2"], "2 replicas can't host 3 draft lengths"),
    ],
)
def test_options_that_contradict_are_refused(arguments: list[str], said: str) -> None:
    """The sentence names the option."""
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)


def test_the_command_replays_a_trace_under_a_schedule(tmp_path: Path) -> None:
    """All of a trace's requests arrive, and `schedule` begins as the batch says."""
    trace = write_trace(tmp_path / "trace", "".join(f"{i}\n" for i in range(50)))
    arguments = ["--policy", "schedule", "--replicas", "2", "--trace", str(trace), "--json"]
    result = CliRunner().invoke(command, [*arguments, "--schedule", "1:5,2:2,1024:1"])
    [row] = json.loads(result.stdout)["results"]
    assert (row["policy"], row["num_requests"]) == ("schedule", 50)
    assert set(row["chosen"]) <= {"5", "2", "1"}


def test_the_shipped_table_has_loads_up_to_overload() -> None:
    """The simulated rig has a load at which every length loses."""
    cost = published_cost()
    assert cost.ratio(1, 1) < 1.3
    assert cost.ratio(1, 128) == pytest.approx(2.0)
