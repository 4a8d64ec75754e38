"""One line per request, rotated; and what a replay makes of it."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lease_fixtures import call_of, lease_of
from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller import decision_log
from trt_mtp.controller.decision_log import (
    DecisionLog,
    LogRecord,
    prompt_text,
    read_log,
)
from trt_mtp.controller.gateway.observers import RequestLogger
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.replay import replay
from trt_mtp.errors import InputError, TrtMtpError


def records(lengths: list[int], acceptance: float = 0.8) -> list[LogRecord]:
    """Requests that named their draft lengths."""
    policy = Policy(Profile(exploration=0.0))
    found = []
    for k in lengths:
        features = request(hint_task="coding", hint_draft_length=None)
        hosted = variants(0, 1, 3)
        decision = policy.choose(features, hosted, now_s=0.0)
        decision = decision._replace(variant=f"k{k}", draft_length=k)
        found.append(LogRecord(decision, outcome(k, acceptance)))
    return found


def write(path: Path, items: list[LogRecord], **options: int) -> None:
    log = DecisionLog(path, **options)
    for item in items:
        log.append(*item)
    log.close()


def test_round_trip(tmp_path: Path) -> None:
    """What is written is read back, in order, and holds no prompt unless asked."""
    items = [*records([0, 3]), records([1])[0]._replace(prompt="hello")]
    write(tmp_path / "log", items)
    write(tmp_path / "log", items)
    assert list(read_log(tmp_path / "log")) == [*items, *items]
    assert next(read_log(tmp_path / "log")).prompt is None
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    """The last line may be half; any other broken line is an error with its number."""
    write(tmp_path / "log", records([0, 3]))
    whole = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(whole[:-20])
    assert len(list(read_log(tmp_path / "log"))) == 1
    (tmp_path / "log").write_bytes(b"{}\n" + whole)
    with pytest.raises(InputError, match="line 1 is not a decision record"):
        list(read_log(tmp_path / "log"))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be read into memory whole."""
    write(tmp_path / "log", records([0, 3]))
    whole = (tmp_path / "log").read_bytes()
    monkeypatch.setattr(decision_log, "MAX_LINE_BYTES", len(whole))
    (tmp_path / "log").write_bytes(whole + b"x" * 2 * len(whole))
    with pytest.raises(InputError, match="line 3 is too long for a decision record"):
        list(read_log(tmp_path / "log"))


def test_a_log_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and a file that isn't there, are one sentence."""
    (tmp_path / "log").write_bytes(b"\xff\xfe\n")
    for name, problem in {"log": "can't be read", "missing": "does not exist"}.items():
        with pytest.raises(InputError, match=f"{name} {problem}"):
            list(read_log(tmp_path / name))


def test_rotation_bounds_the_disk(tmp_path: Path) -> None:
    """A log never takes more than its files times their size, and keeps the newest records."""
    write(tmp_path / "log", records([0] * 40), max_bytes=8000, max_files=3)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", "log.1", "log.2"]
    assert all(file.stat().st_size <= 8000 for file in files)
    assert sum(len(list(read_log(file))) for file in files) < 40


def test_a_log_that_others_rotate_goes_on_under_its_name(tmp_path: Path) -> None:
    """It is moved, removed, or copied and emptied; no line is lost to the file of before."""
    first, second, third, fourth = records([0, 1, 3, 0])
    path = tmp_path / "log"
    log = DecisionLog(path)
    log.append(first.decision, first.outcome)
    path.rename(tmp_path / "log-20261130")
    log.append(second.decision, second.outcome)
    assert list(read_log(tmp_path / "log-20261130")) == [first]
    assert list(read_log(path)) == [second]
    path.unlink()
    log.append(third.decision, third.outcome)
    assert list(read_log(path)) == [third]
    os.truncate(path, 0)
    log.append(fourth.decision, fourth.outcome)
    assert list(read_log(path)) == [fourth]
    path.rename(tmp_path / "kept")
    path.write_text("notes of somebody")
    for _ in range(2):
        with pytest.raises(TrtMtpError, match="it is not a decision log"):
            log.append(first.decision, first.outcome)
    path.unlink()
    log.append(first.decision, first.outcome)
    log.close()
    assert list(read_log(path)) == [first]


def test_replay_of_the_best_choices_has_no_regret() -> None:
    """Where every request went to the best length, nothing was lost and much gained on none."""
    report = replay(records([3] * 60))
    assert report["regret"] == pytest.approx(0, abs=1e-6)
    assert report["over_none"]["ratio"] > 1.5
    assert report["over_none"]["low"] <= report["over_none"]["ratio"] <= report["over_none"]["high"]


def test_replay_of_bad_choices_says_what_they_cost() -> None:
    """Requests that went to none lose what drafts would have gained."""
    report = replay(records([3] * 60 + [0] * 60))
    assert report["regret"] > 0.15
    assert report["over_best_static"]["ratio"] < 0.9
    assert report["tasks"][0]["chosen"] == {"0": 0.5, "3": 0.5}


def test_another_policy_can_be_replayed() -> None:
    """A learning policy over the same log finds the length that the log's didn't."""
    items = records([3] * 30 + [0] * 30)
    assert replay(items, policy="learned")["regret"] < replay(items)["regret"]
    with pytest.raises(InputError, match="not one of"):
        replay(items, policy="best")


def test_failed_requests_are_counted_and_left_out() -> None:
    """An outcome that can't be true teaches a replay nothing."""
    bad = records([3])[0]
    items = [*records([3] * 5), bad._replace(outcome=replace(bad.outcome, num_steps=-1))]
    report = replay(items)
    assert (report["requests"], report["requests_skipped"]) == (5, 1)
    with pytest.raises(InputError, match="no finished request"):
        replay([])


def test_lines_that_a_full_disk_cut_off_leave_no_trace(tmp_path: Path) -> None:
    """However often a line didn't fit, those before and after it are whole."""
    first, second = records([0, 3])
    log = DecisionLog(tmp_path / "log")
    log.append(*first)
    size = (tmp_path / "log").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for room in (10, 20, 15):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
            with pytest.raises(TrtMtpError, match="can't write"):
                log.append(*second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.append(*second)
    log.close()
    assert list(read_log(tmp_path / "log")) == [first, second]


def test_a_log_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    """What a kill left of a line is removed when the log is opened again."""
    items = records([0, 3])
    for item in items:
        write(tmp_path / "log", [item])
        with (tmp_path / "log").open("a") as file:
            file.write('{"decision":{"dec')
    write(tmp_path / "log", [])
    assert list(read_log(tmp_path / "log")) == items


def test_a_lease_that_was_closed_is_one_line_and_a_full_disk_only_a_count(tmp_path: Path) -> None:
    """The logger adds a line for each; a log that can't be written costs a count, no answer."""
    lease = lease_of(call_of())
    lease.close()
    log = DecisionLog(tmp_path / "log")
    RequestLogger(log)(lease)
    [record] = read_log(tmp_path / "log")
    assert (record.decision, record.outcome) == (lease.decision, lease.outcome)
    log.close()
    full_log = DecisionLog(Path("/dev/full"))
    full = RequestLogger(full_log)
    full(lease)
    assert full.num_lost == 1
    full_log.close()


def test_prompts_are_logged_only_when_asked_for(tmp_path: Path) -> None:
    """A record has the prompt with `log_prompts` and never without it."""
    lease = lease_of(call_of(prompt="Sort a list"))
    lease.close()
    for wanted in (False, True):
        path = tmp_path / f"log-{wanted}"
        log = DecisionLog(path)
        RequestLogger(log, log_prompts=wanted)(lease)
        log.close()
        assert [record.prompt for record in read_log(path)] == ["Sort a list" if wanted else None]
        assert (b"Sort a list" in path.read_bytes()) is wanted


@given(st.text(min_size=1, max_size=50), st.integers(0, 120))
def test_a_logged_prompt_is_whole_or_both_ends(piece: str, repeats: int) -> None:
    """Up to 4,000 characters the prompt itself, beyond them its ends and a mark between."""
    text = piece * repeats
    logged = prompt_text(request(text))
    if len(text) <= 4000:
        assert logged == text
    else:
        assert logged == f"{text[:2000]}\n…\n{text[-2000:]}"


@pytest.mark.parametrize("content", [b"weights\n\0\1\2", b"no line at all", b'{"other": 1}\n{"a'])
def test_a_file_that_is_no_log_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    """A wrong path costs nobody the end of a file."""
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(TrtMtpError, match="not a decision log"):
        DecisionLog(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
