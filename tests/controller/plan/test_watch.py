"""Plans beside a running gateway: said once, and not before two rounds agree."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.plan_fixtures import deployment, traffic
from tests.policy_fixtures import outcome, request, variants
from tests.programs import TIMEOUT_S
from trt_mtp.controller.decision_log import DecisionLog
from trt_mtp.controller.plan.modes import Targets
from trt_mtp.controller.plan.plan import Plan, Wishes, make_plan
from trt_mtp.controller.plan.watch import Watch, carried, recent_traffic
from trt_mtp.controller.policy import Policy
from trt_mtp.errors import InputError

PRESENT = {3: 2}


@pytest.fixture(scope="module")
def busy() -> Plan:
    """A plan for more traffic than two replicas carry."""
    return planned(60)


@pytest.fixture(scope="module")
def quiet() -> Plan:
    """A plan for what one replica carries."""
    return planned(2)


def planned(rate: float) -> Plan:
    demand = traffic(rate)
    wishes = Wishes(Targets(20), gpus=100, present=PRESENT)
    return make_plan(deployment(demand), demand, wishes)


def test_a_lasting_change_is_said_once(busy: Plan, quiet: Plan) -> None:
    """The second plan in a row brings the sentence, a third one nothing, another fleet another."""
    watch = Watch(PRESENT)
    assert watch.advice(busy) is None
    said = watch.advice(busy)
    assert said is not None
    assert said.startswith("The present fleet carries ")
    assert "From the present fleet: add " in said
    assert watch.advice(busy) is None
    assert watch.advice(quiet) is None
    said = watch.advice(quiet)
    assert said is not None
    assert said.startswith("A smaller fleet carries this traffic. From the present fleet: ")


def test_traffic_that_comes_and_goes_is_not_said(busy: Plan, quiet: Plan) -> None:
    """Plans that alternate say nothing."""
    watch = Watch(PRESENT)
    assert [watch.advice(plan) for _ in range(5) for plan in (busy, quiet)] == [None] * 10


def test_a_fleet_carries_what_its_lengths_can_hold() -> None:
    """More replicas carry as much more; a fleet whose lengths miss a target carries nothing."""
    demand = traffic(20)
    planned = deployment(demand)
    once = carried(planned, demand, Targets(20), {3: 4})
    assert carried(planned, demand, Targets(20), {3: 8}) == pytest.approx(2 * once)
    assert carried(planned, demand, Targets(10), {0: 8}) == 0


def log_of(folder: Path, age_s: float, count: int) -> Path:
    """A gateway's log of requests, a second apart, of which the last is `age_s` old."""
    policy, path = Policy(), folder / "decisions.jsonl"
    log, last = DecisionLog(path), time.time() - age_s
    for i in range(count):
        features = request("Why?" * 100, hint_task="qa")
        decision = policy.choose(features, variants(0, 3), now_s=last - count + i)
        log.append(decision, outcome(3))
    log.close()
    return path


def test_old_requests_dont_count(tmp_path: Path) -> None:
    """Only the requests since the last plan are planned for, rotated files included."""
    log = log_of(tmp_path, age_s=0, count=30)
    log.rename(tmp_path / "decisions.jsonl.1")
    log_of(tmp_path, age_s=5000, count=30)
    assert recent_traffic(log, time.time() - 3600)["qa"].requests_per_s == pytest.approx(1, rel=0.1)
    with pytest.raises(InputError, match="holds 0 answered requests"):
        recent_traffic(log, time.time() + 10)


def test_watching_ends_with_a_signal(tmp_path: Path) -> None:
    """It plans at once, says on stderr what it does, and ends with Ctrl-C."""
    log = log_of(tmp_path, age_s=1, count=30)
    command = f"-m trt_mtp plan published --traffic {log} --gpus 9 --fleet 3=1 --watch".split()
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("planned: ")
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130


def test_watching_needs_the_present_fleet(tmp_path: Path) -> None:
    """Without --fleet there is nothing to compare with."""
    (tmp_path / "traffic.json").write_text(json.dumps({"tasks": {}}))
    command = f"-m trt_mtp plan published --traffic {tmp_path}/traffic.json --gpus 9 --watch"
    ended = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ended.returncode == 2
    assert "--watch compares with what runs: give it as --fleet" in ended.stderr
