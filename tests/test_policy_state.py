"""What is kept across restarts, and what happens to a file that can't be used."""

import json
from pathlib import Path

import pytest

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.state import load_state, save_state, state_to_json


def taught(fingerprint: str = "a", replica: str = "local") -> Policy:
    policy = Policy(Profile(fingerprint=fingerprint), replica=replica)
    for _ in range(20):
        decision = policy.choose(request(hint_task="coding"), variants(3), now_s=0.0)
        policy.update(decision, outcome(3, 0.5))
    return policy


def test_round_trip(tmp_path: Path) -> None:
    """A restarted gateway knows what it knew."""
    save_state(tmp_path / "s.json", taught())
    policy = Policy(Profile(fingerprint="a"))
    assert "20 answers learned" in load_state(tmp_path / "s.json", policy)
    assert state_to_json(policy) == state_to_json(taught())
    assert policy.cost.step_s(3, 1) == taught().cost.step_s(3, 1)


def test_no_file_is_a_start_from_the_profile(tmp_path: Path) -> None:
    """The first start is nothing unusual."""
    assert "does not exist yet" in load_state(tmp_path / "s.json", Policy())


GOOD = json.dumps(state_to_json(taught()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[]",
        GOOD[: len(GOOD) // 2].encode(),
        GOOD.replace('"schema_version": 1', '"schema_version": 9').encode(),
        GOOD.replace('"fingerprint": "a"', '"fingerprint": "b"').encode(),
        GOOD.replace('"common": ', '"common": NaN, "x": ').encode(),
        GOOD.replace('"trials": [', '"trials": [-1e9, ').encode(),
        GOOD.replace('"replicas": {', '"replicas": [{').encode(),
    ],
)
def test_a_file_that_cannot_be_used_is_set_aside(tmp_path: Path, content: bytes) -> None:
    """Corrupt, foreign and newer files are renamed unread, and the policy starts from its prior."""
    path = tmp_path / "s.json"
    for number in (1, 2):
        path.write_bytes(content)
        policy = Policy(Profile(fingerprint="a"))
        said = load_state(path, policy)
        assert f"moved to {path}.aside-{number}" in said
        assert not path.exists()
        assert (tmp_path / f"s.json.aside-{number}").read_bytes() == content
        assert policy.acceptance.version == 0


def test_two_gateways_share_one_truth(tmp_path: Path) -> None:
    """Each takes over the other's counts once, however often it reads them."""
    one, two = taught(replica="one"), Policy(Profile(fingerprint="a"), replica="two")
    for _ in range(3):
        two.acceptance.merge(one.acceptance.to_json())
    key = next(iter(one.acceptance.own))
    assert key
    a = one.choose(request(hint_task="coding"), variants(3), now_s=0.0).chosen
    b = two.choose(request(hint_task="coding"), variants(3), now_s=0.0).chosen
    assert a.acceptance_length == pytest.approx(b.acceptance_length)
