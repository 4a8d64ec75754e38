"""The policy file: what is read, what is refused."""

import json
from pathlib import Path

import pytest

from trt_mtp.controller.profile import Profile, parse_profile, read_profile, write_profile
from trt_mtp.errors import InputError


def test_round_trip(tmp_path: Path) -> None:
    """What is written is read back the same."""
    profile = Profile(fingerprint="abc", acceptance={"coding": 0.7}, shared_device=True)
    write_profile(tmp_path / "p.json", profile)
    assert read_profile(tmp_path / "p.json", "abc") == profile


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"fingerprnt": "x"}, "fingerprint"),
        ({"schema_version": 2}, "schema_version"),
        ({"acceptance": {"codng": 0.5}}, "did you mean coding"),
        ({"acceptance": {"coding": 1.5}}, "acceptance.coding"),
        ({"plain_step_s": {"1": float("nan")}}, "plain_step_s"),
        ({"plain_step_s": {}}, "plain_step_s"),
        ({"step_ratio": {"0": {"1": 1.0}}}, "step_ratio"),
        ({"step_ratio": {"1": {"0": 1.0}}}, "batch"),
        ([], "is not a profile: expected a JSON object"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_key(record: object, said: str) -> None:
    """Unknown keys, versions, tasks and numbers that can't be are named."""
    with pytest.raises(InputError, match=said):
        parse_profile(record, "p.json")


def test_a_profile_of_something_else_is_refused(tmp_path: Path) -> None:
    """The fingerprint has to be that of what is hosted; an empty one fits anything."""
    write_profile(tmp_path / "p.json", Profile(fingerprint="abc"))
    with pytest.raises(InputError, match="measured on abc"):
        read_profile(tmp_path / "p.json", "xyz")
    write_profile(tmp_path / "p.json", Profile())
    read_profile(tmp_path / "p.json", "xyz")


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    """A missing or broken file is one sentence."""
    with pytest.raises(InputError, match="does not exist"):
        read_profile(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_profile(tmp_path / "p.json")


def test_tasks_without_a_value_take_the_published_one() -> None:
    """A profile may hold a few tasks only."""
    priors = Profile(acceptance={"coding": 0.5}).priors()
    assert priors["coding"] == 0.5
    assert 0.5 < priors["writing"] < 0.8
    assert json.loads(Profile().model_dump_json())["schema_version"] == 1
