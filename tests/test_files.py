"""Files that others write, as trt_mtp.files watches them."""

import json
import os
import string
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import (
    FileWatch,
    open_in_group,
    open_private,
    open_shared,
    read_bounded,
    read_json,
    read_text,
    read_yaml,
    write_atomic,
)

LAUGHS = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


def test_a_change_is_told_once(tmp_path: Path) -> None:
    """A file that is written, replaced or removed has changed, until it is looked at."""
    one, other = tmp_path / "one", tmp_path / "other"
    watch = FileWatch(one, other)
    told = [watch.has_changed(), watch.has_changed()]
    for change in (
        lambda: one.write_text("first"),
        lambda: write_atomic(one, "other"),
        lambda: other.write_text(""),
        one.unlink,
    ):
        change()
        told += [watch.has_changed(), watch.has_changed()]
    assert told == [True, False] * 5


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_the_umask_holds_for_what_is_written(tmp_path: Path, umask: int, mode: int) -> None:
    """Who keeps files from others does so here, too."""
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    """Root could put a file in the place of /dev/null: a pipe stands for it here."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TrtMtpError, match=r"can't write .*pipe: No such device or address"):
        write_atomic(pipe, "nobody reads this")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_standard_output_by_its_name_is_added_to(tmp_path: Path) -> None:
    """As `-o /dev/stdout >> all.csv` means it; the link in /dev stays, too."""
    file = tmp_path / "all.csv"
    file.write_text("before\n")
    with file.open("a") as opened:
        write_atomic(Path(f"/dev/fd/{opened.fileno()}"), "after\n")
    assert file.read_text() == "before\nafter\n"


def test_a_copy_with_the_old_time_is_a_change(tmp_path: Path) -> None:
    """As `rsync --inplace --times` leaves one of the same length."""
    file = tmp_path / "file"
    file.write_text("one")
    watch, status = FileWatch(file), file.stat()
    assert watch.has_changed()
    with file.open("r+") as opened:
        opened.write("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert watch.has_changed()
    assert not watch.has_changed()


def test_what_was_of_no_use_is_looked_at_again(tmp_path: Path) -> None:
    """A reader that could not use a file is told of it until it can."""
    watch = FileWatch(tmp_path)
    watch.has_changed()
    watch.look_again()
    assert watch.has_changed()
    assert not watch.has_changed()


@pytest.mark.parametrize("opener", [open_private, open_in_group, open_shared])
@pytest.mark.parametrize("mode", ["w", "a", "a+", "r+"])
def test_a_pipe_is_never_written_to(tmp_path: Path, opener: Any, mode: str) -> None:
    """Whoever put it where a log or a journal is expected holds nobody up, read or not."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):  # noqa: PT011, by the mode it is another one
        FileIO(tmp_path / "pipe", mode, opener=opener)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="it is a pipe, expected a file"):
        FileIO(tmp_path / "pipe", mode, opener=opener)
    os.close(reader)


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to, a directory, an endless device, nothing at all."""
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in {
        tmp_path / "pipe": "is a pipe, a socket or a device",
        Path("/dev/zero"): "is a pipe, a socket or a device",
        tmp_path: "is a directory",
        tmp_path / "none": "does not exist",
        tmp_path / "pipe" / "below": "can't be read: Not a directory",
        Path("a\0b"): "can't be read",
    }.items():
        with pytest.raises(InputError, match=sentence):
            read_bounded(name)


def test_a_file_may_be_as_large_as_its_kind(tmp_path: Path) -> None:
    """One byte more is refused, before all of it is read."""
    file = tmp_path / "file"
    file.write_bytes(b"[1  ]")
    assert read_json(file, 5) == [1]
    file.write_bytes(b"[1   ]")
    with pytest.raises(InputError, match="more than 5 bytes"):
        read_json(file, 5)
    os.truncate(file, 1 << 40)  # takes no space on the disk
    with pytest.raises(InputError, match=r"more than 67,108,864 bytes"):
        read_json(file)


@given(st.text())
@example(LAUGHS)
@example("a: 2024-13-45")
@example("a: !!float x")
@example("a: !!bool x")
@example("a: !!timestamp x")
@example('a: !!int ""')
@example("a: " + "9" * 5000)
@example("[" * 100_000)
@example("? [a]")
@example("a: !!python/object/apply:os.system [id]")
def test_yaml_is_a_value_or_a_sentence(text: str) -> None:
    """Whatever a file holds; aliases, which make billions of values of a few lines, are refused."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.write_text(text, encoding="utf-8", errors="replace")
        problem = ""
        try:
            value = read_yaml(file)
        except InputError as error:
            value, problem = None, str(error)
        assert problem.startswith(str(file)) or not problem
        assert "\n" not in problem
        assert len(str(value)) <= 100 + 4 * len(text)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(string.printable[:95]), st.lists, max_leaves=20
    )
)
def test_json_is_read_as_yaml(value: object) -> None:
    """Tenants may be in either form."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.write_text(json.dumps(value))
        assert read_yaml(file) == value


@pytest.mark.parametrize(
    ("read", "content"), [(read_json, '"x"'), (read_yaml, "x"), (read_text, "x")]
)
def test_a_byte_order_mark_is_no_content(
    tmp_path: Path, read: Callable[[Path], Any], content: str
) -> None:
    """Windows' editors put one before a text; a password with one would be another password."""
    file = tmp_path / "file"
    file.write_bytes(BOM_UTF8 + content.encode())
    assert read(file) == "x"
