"""What is kept across restarts, and what happens to a file that can't be used."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.state import (
    default_replica,
    load_state,
    own_counts_to_json,
    read_own_counts,
    save_state,
    state_to_json,
)
from trt_mtp.errors import InputError


def taught(fingerprint: str = "a", replica: str = "local", acceptance: float = 0.5) -> Policy:
    policy = Policy(Profile(fingerprint=fingerprint), replica=replica)
    for _ in range(20):
        decision = policy.choose(request(hint_task="coding"), variants(3), now_s=0.0)
        policy.update(decision, outcome(3, acceptance))
    return policy


def test_round_trip(tmp_path: Path) -> None:
    """A restarted gateway knows what it knew."""
    save_state(tmp_path / "s.json", taught())
    assert (tmp_path / "s.json").stat().st_mode & 0o777 == 0o600
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
        re.sub(r'("covariance": \[)[^,]+', r"\1NaN", GOOD).encode(),
        re.sub(r'("covariance": \[)[^,]+', r"\1-5.0", GOOD).encode(),
        re.sub(r'("means": \[)[^,]+,', r"\1", GOOD).encode(),
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
        assert policy.acceptance.version == policy.cost.num_observed == 0


def test_what_was_learned_on_other_variants_is_set_aside(tmp_path: Path) -> None:
    """Without a profile the variants' own fingerprints tell; one in common is enough."""
    path, old = tmp_path / "s.json", frozenset({"old"})
    for hosted, is_kept in ((old, True), ({"old", "new"}, True), (set(), True), ({"new"}, False)):
        save_state(path, taught(), old)
        policy = Policy(Profile(fingerprint="a"))
        said = load_state(path, policy, frozenset(hosted))
        assert (policy.acceptance.version > 0) is is_kept
        assert ("was learned on variants old, and hosted are new; moved to" in said) is not is_kept


def test_two_gateways_share_one_truth(tmp_path: Path) -> None:
    """Each takes over the other's counts once, however often it reads them."""
    one, two = taught(replica="one"), Policy(Profile(fingerprint="a"), replica="two")
    for _ in range(3):
        two.acceptance.merge(one.acceptance.to_json())
    key = next(iter(one.acceptance.own))
    assert key
    assert expected_length(one) == pytest.approx(expected_length(two))


def expected_length(policy: Policy) -> float:
    decision = policy.choose(request(hint_task="coding"), variants(3), now_s=0.0)
    return decision.chosen.acceptance_length


def test_a_restart_keeps_what_others_taught(tmp_path: Path) -> None:
    """A gateway's file holds the others' counts, and its own come back under its name."""
    policy, other = taught(replica="one"), taught(replica="two").acceptance
    policy.acceptance.replace_others((other.version, other.own), {})
    save_state(tmp_path / "own", policy)
    again = Policy(Profile(fingerprint="a"), replica="one")
    assert "40 answers learned" in load_state(tmp_path / "own", again)
    assert again.acceptance.own
    assert set(again.acceptance.peers) == {"others"}
    renamed = Policy(Profile(fingerprint="a"), replica="three")
    load_state(tmp_path / "own", renamed)
    assert set(renamed.acceptance.peers) == {"one", "others"}


def test_what_is_told_to_others_is_the_own_acceptance_alone() -> None:
    """Its clock is not, nor are counts of others, which tell their own."""
    policy, other = taught(replica="one"), taught(replica="two", acceptance=0.9).acceptance
    told = own_counts_to_json(policy)
    policy.acceptance.replace_others((other.version, other.own), {})
    assert own_counts_to_json(policy) == told
    assert read_own_counts(told, Policy(Profile(fingerprint="a"))) == (20, policy.acceptance.own)
    assert "cost" not in told


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fingerprint": "b"}, "was learned with a profile of 'b', and this is a profile of 'a'"),
        ({"learned_on": ["other"]}, "was learned on variants other, and hosted are v"),
        ({"schema_version": 2}, "has schema_version 2, not 1"),
        ({"counted": {}}, "is not a gateway's state: 'counts' is missing"),
        ({"counted": []}, "what is in it has another form"),
    ],
)
def test_counts_of_another_kind_are_refused(change: dict[str, Any], sentence: str) -> None:
    """With a sentence that says what is wrong."""
    told = own_counts_to_json(taught(), frozenset({"v"})) | change
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_own_counts(told, Policy(Profile(fingerprint="a")), frozenset({"v"}))


def test_gateways_have_names_of_their_own(tmp_path: Path) -> None:
    """Unless it is named, a gateway is its machine and its file: not another's, and not `local`."""
    names = {default_replica(path) for path in (tmp_path / "a", tmp_path / "b", None)}
    assert len(names | {"local"}) == 4
    assert default_replica(tmp_path / "a") in names
