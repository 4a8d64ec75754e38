"""The traffic file: who goes where, and gateways that go on when it is broken."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.gateway.canary.shadow import LONGEST_S, Shadow
from trt_mtp.controller.gateway.canary.traffic import (
    Side,
    Traffic,
    TrafficFile,
    confirmed_revisions,
    read_traffic,
    write_traffic,
)
from trt_mtp.controller.gateway.canary.traffic_policy import TrafficPolicy
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile, write_profile
from trt_mtp.errors import InputError

OLD, NEW = Side(variants=("k0", "k3")), Side(variants=("k0", "k5"))


def traffic(percent: float, **changes: Any) -> Traffic:
    """A canary with a share of the conversations."""
    return Traffic(rollout="r", stable=OLD, canary=NEW, canary_percent=percent, **changes)


@given(st.text(min_size=1), st.floats(0, 100), st.floats(0, 100))
def test_a_conversation_stays_where_it_is(session: str, one: float, other: float) -> None:
    """Always the same side, and who met the canary meets it at every higher share."""
    low, high = sorted((one, other))
    first = traffic(low).side(session)
    assert traffic(low).side(session) == first
    if first == "canary":
        assert traffic(high).side(session) == "canary"


def test_the_share_is_kept() -> None:
    """A quarter of many conversations is about a quarter; 0 and 100 are exact."""
    sides = [traffic(25).side(f"s{n}") for n in range(4000)]
    assert 900 < sides.count("canary") < 1100
    assert {traffic(0).side(f"s{n}") for n in range(100)} == {"stable"}
    assert {traffic(100).side(f"s{n}") for n in range(100)} == {"canary"}
    assert {Traffic(stable=OLD).side(None)} == {"stable"}


def test_each_rollout_meets_others_first() -> None:
    """The rollout's name is in the hash."""
    one = {n for n in range(2000) if traffic(10).side(f"s{n}") == "canary"}
    again = traffic(10).model_copy(update={"rollout": "r2"})
    other = {n for n in range(2000) if again.side(f"s{n}") == "canary"}
    assert len(one & other) < 50 < len(other)


def test_writing_twice_is_writing_once(tmp_path: Path) -> None:
    """The revision grows with changes alone, and with every one."""
    file = tmp_path / "traffic.json"
    first = write_traffic(file, traffic(1))
    assert write_traffic(file, traffic(1)) == first == read_traffic(file)
    second = write_traffic(file, traffic(5))
    assert second.revision > first.revision


def test_a_broken_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last good one is obeyed while the file is broken or gone; that is logged once."""
    file = tmp_path / "traffic.json"
    follower = TrafficFile(file)
    assert (follower.poll(), follower.traffic) == (False, None)
    good = write_traffic(file, traffic(5))
    assert (follower.poll(), follower.poll(), follower.traffic) == (True, False, good)
    file.write_text("{")
    for _ in range(3):
        assert (follower.poll(), follower.traffic) == (False, good)
    assert caplog.text.count("stays as it was") == 1
    file.unlink()
    os.mkfifo(file)  # nobody waits for what it might say
    assert (follower.poll(), follower.traffic) == (False, good)
    file.unlink()
    assert (follower.poll(), follower.traffic) == (False, good)
    better = write_traffic(file, traffic(25))
    assert (follower.poll(), follower.traffic) == (True, better)


def test_gateways_confirm_what_they_obey(tmp_path: Path) -> None:
    """A rollout sees the revision of each gateway that is alive, and not those that are gone."""
    file = tmp_path / "traffic.json"
    follower = TrafficFile(file)
    follower.confirm()
    assert confirmed_revisions(file) == []
    written = write_traffic(file, traffic(5))
    follower.poll()
    assert confirmed_revisions(file) == []
    follower.confirm()
    assert confirmed_revisions(file) == [written.revision]
    (seen,) = tmp_path.glob("traffic.json.seen-*")
    os.utime(seen, (1, 1))
    assert confirmed_revisions(file) == []
    follower.confirm()
    assert confirmed_revisions(file) == [written.revision]
    follower.close()
    assert confirmed_revisions(file) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"stable": {"variants": ["k0"]}, "canary_procent": 3}, "did you mean canary_percent"),
        ({"stable": {"variants": "k0"}}, "stable.variants"),
        ({}, "stable"),
        ({"stable": {"variants": ["k0"]}, "canary_percent": 101}, "canary_percent"),
    ],
)
def test_a_wrong_file_names_the_key(content: Any, message: str, tmp_path: Path) -> None:
    """What is read is checked."""
    file = tmp_path / "traffic.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_traffic(file)


def policy_with(tmp_path: Path, content: Traffic | None) -> TrafficPolicy:
    """A policy that obeys `content`."""
    follower = TrafficFile(tmp_path / "traffic.json")
    if content is not None:
        write_traffic(follower.path, content)
    follower.poll()
    return TrafficPolicy(Policy(), follower)


def test_each_side_sees_its_own_variants(tmp_path: Path) -> None:
    """Nobody is sent to the other side's variant, and the decision says the side."""
    policy = policy_with(tmp_path, traffic(50))
    for number in range(200):
        features = request("def f(x):", session_id=f"s{number}")
        decision = policy.choose(features, variants(0, 3, 5), now_s=0)
        assert decision.side == traffic(50).side(f"s{number}")
        named = NEW if decision.side == "canary" else OLD
        assert {c.variant for c in decision.candidates} == set(named.variants)
        policy.update(decision, outcome(decision.draft_length))


def test_without_a_file_all_variants_are_used(tmp_path: Path) -> None:
    """A gateway that no rollout ever spoke to decides as always."""
    decision = policy_with(tmp_path, None).choose(request(), variants(0, 3, 5), now_s=0)
    assert (decision.side, len(decision.candidates)) == ("", 3)


def test_a_canary_that_is_not_there_costs_no_answer(tmp_path: Path) -> None:
    """Its requests go to the stable side, as do those that ask for a length it lacks."""
    policy = policy_with(
        tmp_path, traffic(100).model_copy(update={"canary": Side(variants=("k5",))})
    )
    sick = [*variants(0, 3), *variants(5, is_healthy=False)]
    assert policy.choose(request(), sick, now_s=0).side == "stable"
    asked = request(hint_draft_length=3)
    assert policy.choose(asked, variants(0, 3, 5), now_s=0).side == "stable"
    assert policy.choose(request(), variants(0, 3, 5), now_s=0).side == "canary"
    # nothing of what the file names is left: better any variant than none
    assert policy.choose(request(), variants(1), now_s=0).variant == "k1"


def test_a_profile_is_the_canarys_alone(tmp_path: Path) -> None:
    """With a profile in which drafts are for nothing, the canary's side drafts nothing."""
    useless = tmp_path / "useless.json"
    hopeless = dict.fromkeys(Profile().acceptance, 0.01)
    write_profile(useless, Profile(acceptance=hopeless, exploration=0.0))
    canary = Side(variants=OLD.variants, profile=str(useless))
    policy = policy_with(tmp_path, traffic(50).model_copy(update={"canary": canary}))
    lengths: dict[str, set[int]] = {"stable": set(), "canary": set()}
    for number in range(60):
        features = request("def f(x):", session_id=f"s{number}", hint_task="coding")
        decision = policy.choose(features, variants(0, 3), now_s=0)
        lengths[decision.side].add(decision.draft_length)
    assert lengths["canary"] == {0}
    assert 3 in lengths["stable"]


@pytest.mark.parametrize(("seconds", "is_copied"), [(LONGEST_S - 1, True), (LONGEST_S + 1, False)])
def test_answers_that_take_too_long_are_not_copied(
    tmp_path: Path, seconds: float, is_copied: bool
) -> None:
    """Their copies would be cut, and so the canary's errors, whoever sends many of them."""
    looked: list[bool] = []

    class Pool:
        @property
        def variants(self) -> dict[str, Any]:
            looked.append(True)
            return {}

    write_traffic(tmp_path / "t.json", traffic(0, shadow_percent=100))
    file = TrafficFile(tmp_path / "t.json")
    assert file.poll()
    router: Any = SimpleNamespace(pool=Pool())
    live: Any = SimpleNamespace(is_answered=True, outcome=SimpleNamespace(duration_s=seconds))
    Shadow(file, router).offer(live)
    assert bool(looked) is is_copied
