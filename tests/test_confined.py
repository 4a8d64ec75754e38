"""A process with limits: messages go in and answers come out, or it is known why none does."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_mtp.confined import ConfinedProcess, LostError

WORKER = """
import os, signal, time
from trt_mtp.confined import answer_messages

def answer(message):
    if message == b"memory":
        return bytes(1 << 30)
    if message == b"time":
        while True:
            pass
    if message == b"file":
        try:
            open("/etc/passwd")
        except OSError as error:
            return error.strerror.encode()
    if message == b"environment":
        return " ".join(sorted(os.environ)).encode()
    if message == b"stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    print("this is no answer")
    return message[::-1]

def main():
    answer_messages(lambda setup: answer)
"""
QUICK_S, LONG_S = 0.5, 60.0


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConfinedProcess]:
    """One with little of everything."""
    (tmp_path / "confined_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    process = ConfinedProcess("confined_worker", b"", 1 << 26, 1)
    yield process
    process.close()


@pytest.mark.parametrize("message", ["memory", "time"])
def test_what_takes_too_much_ends_it(process: ConfinedProcess, message: str) -> None:
    """The next message goes to another one."""
    assert process.ask(b"abc", LONG_S) == b"cba"
    with pytest.raises(LostError) as lost:
        process.ask(message.encode(), LONG_S)
    assert not lost.value.is_late
    assert process.ask(b"abc", LONG_S) == b"cba"


def test_it_opens_no_file(process: ConfinedProcess) -> None:
    """What gets out of a sandbox finds nothing to read."""
    assert process.ask(b"file", LONG_S) == b"Too many open files"


def test_one_that_is_stopped_is_not_waited_for(process: ConfinedProcess) -> None:
    """Neither for its answer nor for it to take a message, however long that is."""
    with pytest.raises(LostError) as lost:
        process.ask(b"stop", QUICK_S)
    assert lost.value.is_late
    assert process.ask(b"abc", LONG_S) == b"cba"
    child = process._process
    assert child is not None
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(LostError) as lost:
        process.ask(bytes(1 << 24), QUICK_S)  # more than a pipe holds
    assert lost.value.is_late


def test_long_messages_and_answers_are_whole(process: ConfinedProcess) -> None:
    """Whatever pieces they come in."""
    message = os.urandom(1 << 22)
    assert process.ask(message, LONG_S) == message[::-1]


def test_it_has_no_secrets(process: ConfinedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gets out of a sandbox finds no keys in its environment either."""
    for name in ("OPENAI_API_KEY", "TRT_MTP_OPTION_0", "AWS_SECRET_ACCESS_KEY", "TZ"):
        monkeypatch.setenv(name, "UTC")
    names = process.ask(b"environment", LONG_S).decode().split()
    assert "TZ" in names
    assert not {"OPENAI_API_KEY", "TRT_MTP_OPTION_0", "AWS_SECRET_ACCESS_KEY"} & set(names)


def test_the_working_folder_has_no_modules_of_its(
    process: ConfinedProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody set PYTHONSAFEPATH: it may be a stranger's checkpoint."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert process.ask(b"abc", LONG_S) == b"cba"
