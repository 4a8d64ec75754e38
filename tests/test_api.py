"""The Python API: what the page in the docs shows works as it stands there."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import trt_mtp.api
from tests.calibration_fixtures import simulated_profile
from tests.policy_fixtures import outcome, request, variants
from trt_mtp.api import InputError, Policy, decide, load_profile, read_log, replay, simulate
from trt_mtp.controller.decision_log import DecisionLog
from trt_mtp.controller.profile import write_profile

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a profile and a log are, as the page calls them."""
    write_profile(tmp_path / "profile.json", simulated_profile(["qa"], [0, 1], [1]))
    policy, log = Policy(), DecisionLog(tmp_path / "decisions.jsonl")
    for i in range(20):
        features = request("Why?", hint_task="qa")
        log.append(policy.choose(features, variants(0, 3), now_s=float(i)), outcome(3))
    log.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its example, line by line."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("coding ")


def test_all_names_are_there_and_on_the_page() -> None:
    """What is promised can be imported, and is explained."""
    text = PAGE.read_text("utf-8")
    for name in trt_mtp.api.__all__:
        assert hasattr(trt_mtp.api, name)
        assert name in text


def test_a_request_may_be_an_object(folder: Path) -> None:
    """OpenAI's body, with a hint; a wrong one is one sentence."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "task": "qa", "draft_length": 3}
    assert decide(body, draft_lengths=(3, 0)).draft_length == 3
    with pytest.raises(InputError, match="unknown key 'promt'; did you mean prompt"):
        decide({"promt": "Hi"})
    with pytest.raises(InputError, match="does not exist"):
        load_profile(folder / "none.json")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: simulate({"codin": 1.0}), "'codin' is not a task; did you mean coding"),
        (lambda: simulate({}), "mix: expected shares above 0"),
        (lambda: simulate({"qa": 1.0}, fleet={}), "fleet: expected shares above 0"),
        (lambda: simulate({"qa": 1.0}, num_requests=0), "num_requests is 0: expected at least 1"),
        (lambda: simulate({"qa": 1.0}, rate_per_s=0.0), "rate_per_s is 0: expected"),
        (lambda: simulate({"qa": 1.0}, ["best"]), "policy 'best' is not one of"),
        (lambda: decide("Hi", draft_lengths=()), "expected numbers from 0 to"),
        (lambda: decide("Hi", draft_lengths=(0, 99)), "expected numbers from 0 to"),
        (lambda: decide("Hi", load=-1), "load is -1"),
        (lambda: decide("Hi", load_profile(), policy=Policy()), "a policy has its own profile"),
        (lambda: decide(["Hi"]), "a request is a JSON object"),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_are_sentences(wrong: Callable[[], object], says: str) -> None:
    """In a notebook too, a mistake is an InputError that names the value."""
    with pytest.raises(InputError, match=re.escape(says)):
        wrong()


def test_a_policy_that_learned_decides_otherwise() -> None:
    """`decide` asks the policy it is given: after many rejected drafts it drafts less."""
    policy = Policy()
    before = decide("Why?", draft_lengths=(0, 5), policy=policy)
    for _ in range(300):
        policy.update(before, outcome(5, 0.0) if before.draft_length else outcome(0))
    assert before.draft_length == 5
    assert decide("Why?", draft_lengths=(0, 5), policy=policy).draft_length == 0


def test_a_log_is_read_and_replayed(folder: Path) -> None:
    """By its path, as text or as a Path."""
    path = os.fspath(folder / "decisions.jsonl")
    assert sum(record.decision.task == "qa" for record in read_log(path)) == 20
    assert replay(path)["requests"] == 20
    with pytest.raises(InputError, match="policy 'best' is not one of"):
        replay(path, policy="best")
