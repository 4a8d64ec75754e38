"""The Python API: what the page in the docs shows works as it stands there."""

import os
import re
from pathlib import Path

import pytest

import trt_mtp.api
from tests.calibration_fixtures import simulated_profile
from tests.policy_fixtures import outcome, request, variants
from trt_mtp.api import InputError, Policy, decide, load_profile, read_log, replay
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


def test_a_log_is_read_and_replayed(folder: Path) -> None:
    """By its path, as text or as a Path."""
    path = os.fspath(folder / "decisions.jsonl")
    assert sum(record.decision.task == "qa" for record in read_log(path)) == 20
    assert replay(path)["requests"] == 20
    with pytest.raises(InputError, match="policy 'best' is not one of"):
        replay(path, policy="best")
