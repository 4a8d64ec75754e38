"""Files that are never half-written, and readers that say what is wrong with them."""

import difflib
import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from trt_mtp.errors import InputError, TrtMtpError, UnreadableError

MAX_NAME_CHARS = 100  # of what is looked up among known names
# what a file system says that syncs no folders, as some on a network or in user space
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
OPEN_FILES = re.compile(r"/dev|/proc/[^/]+/fd")  # folders of links to what is open
PRIVATE = 0o600  # the mode of a file for its user alone


def open_private(path: str, flags: int) -> int:
    """The `opener` of a file that others can't read, if it is made now; see `open_shared`."""
    return _opened(path, flags, PRIVATE)


def open_in_group(path: str, flags: int) -> int:
    """The `opener` of a file to lock: who can open it can hold its lock."""
    return _opened(path, flags, 0o660)


def open_shared(path: str, flags: int) -> int:
    """The `opener` of a file to write; OSError for a pipe, whose reader may never come."""
    return _opened(path, flags, 0o666)


def _opened(path: str, flags: int, mode: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK, mode)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a pipe, expected a file", path)
    return descriptor


def allowed(mode: int) -> int:
    """`mode` without what this process's umask keeps from others.

    The call that tells the umask changes it, for all threads.
    """
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return mode & ~int(status.partition("\nUmask:")[2].split()[0], 8)
    return mode


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    A device, a pipe that somebody reads and /dev/stdout get it at once, and stay what they are.
    Raises TrtMtpError if the disk is full or the folder can't be written.
    """
    content = data.encode() if isinstance(data, str) else data
    try:
        if _is_stream(path):
            _write_through(path, content)
            return
        with folder_for(path):
            _write_beside(path, content, mode)
    except OSError as error:
        raise TrtMtpError(f"can't write {path}: {error.strerror or error}") from error
    sync_folder(path.parent)


def _is_stream(path: Path) -> bool:
    """Whether there is something in whose place no file may come."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return True
    # stdout and the like, sent to a file
    return path.is_symlink() and bool(OPEN_FILES.fullmatch(os.path.realpath(path.parent)))


def _write_through(path: Path, content: bytes) -> None:
    # a pipe that nobody reads is an error, not a wait; what is there already stays before it
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _write_beside(path: Path, content: bytes, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, allowed(mode))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """The folder of a file, made if need be, and gone again if the file can't be written."""
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # it isn't there, or another process put something into it
                folder.rmdir()
        raise


def sync_folder(folder: Path) -> None:
    """Make the last rename in `folder` survive a power cut, where the file system can do that.

    Raises TrtMtpError if the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise TrtMtpError(f"can't write {folder}: {error.strerror or error}") from None
    finally:
        os.close(descriptor)


class FileWatch:
    """Files that somebody else writes: have they changed since they were last looked at?"""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._stamps: list[tuple[int, ...] | None] = []

    def has_changed(self) -> bool:
        """True at the first look and once after each change; a file that is removed changes too."""
        before, self._stamps = self._stamps, [_stamp(path) for path in self._paths]
        return self._stamps != before

    def look_again(self) -> None:
        """Let the next look be as the first: what was read could not be used."""
        self._stamps = []


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes whenever the file, or who may read it, does; None if it does not exist.

    Programs that copy set the time of the change of what is in it back, but not that of its status.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


SMALL = 1 << 20  # bytes: what a person or a rollout writes
MAX_DEPTH = 100  # of lists and mappings in YAML
LARGE = 1 << 26  # what programs write: profiles, states, indexes, tokenizers


def open_regular(path: Path) -> BufferedReader:
    """A file opened for reading, which never waits for somebody to write to a pipe.

    Raises InputError when it does not exist, can't be opened, or is no regular file.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except IsADirectoryError:  # from fdopen
        raise InputError(f"{path} is a directory, expected a file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise UnreadableError(f"{path} can't be read: {reason}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(f"{path} is a pipe, a socket or a device, expected a file")
    return file


def read_bounded(path: Path, limit: int = LARGE) -> bytes:
    """The content of a regular file; raises InputError when it has more than `limit` bytes, too."""
    with open_regular(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise UnreadableError(f"{path} can't be read: {error.strerror or error}") from None
    if len(content) > limit:
        raise InputError(f"{path} has more than {limit:,} bytes, which is too much for its kind")
    return content


def read_text(path: Path, limit: int = LARGE) -> str:
    """The UTF-8 text in `path`, without the mark that Windows puts before it; raises InputError."""
    try:
        return read_bounded(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} can't be read: it is not UTF-8 text ({error.reason})") from None


def read_json(path: Path, limit: int = LARGE) -> Any:
    """The JSON value in `path`; raises InputError if it is missing, unreadable or not JSON."""
    text = read_text(path, limit)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None
    except UnicodeError as error:  # a path that this locale can't write
        raise InputError(f"{str(path)!a} can't be read: {error}") from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{path} can't be read: it is nested too deeply, or has a number of thousands of digits"
        ) from None


def read_yaml(path: Path, limit: int = SMALL) -> Any:
    """The YAML, or JSON, value in `path`; raises InputError.

    Aliases are refused: a few lines of them stand for billions of values.
    """
    return parse_yaml(read_text(path, limit), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of YAML text; raises InputError, which begins with `where`."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{where} has an alias (*name); write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # the parser's time grows with its square
                raise InputError(f"{where} is nested more than {MAX_DEPTH} deep")
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InputError(f"{where} is neither YAML nor JSON{place}") from None
    # what yaml makes of a value that isn't of its own kind: 2024-13-45, !!float x, !!bool x
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise InputError(
            f"{where} has a value that is not what it looks like, such as a date in month 13"
        ) from None


def to_json(value: Any) -> str:
    """`value` as indented JSON text with a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def to_compact_json(value: Any, width: int = 300) -> str:
    """`value` as JSON text in which lists and objects that fit in `width` are one line.

    >>> print(to_compact_json({"a": [1, 2], "b": {}}, width=12))
    {
     "a":[1,2],
     "b":{}
    }
    <BLANKLINE>
    """
    return _compact(value, width, 0) + "\n"


def _compact(value: Any, width: int, indent: int) -> str:
    line = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(line) <= width or not isinstance(value, dict | list):
        return line
    inner, outer = "\n" + " " * (indent + 1), "\n" + " " * indent
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(str(key), ensure_ascii=False)}:{_compact(part, width, indent + 1)}"
            for key, part in value.items()
        ]
        return "{" + inner + f",{inner}".join(parts) + outer + "}"
    parts = [_compact(part, width, indent + 1) for part in value]
    return "[" + inner + f",{inner}".join(parts) + outer + "]"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name nearest to `name`, or an empty string.

    >>> nearest("draft_lenght", ["draft_length", "task"])
    '; did you mean draft_length?'
    """
    if len(name) > MAX_NAME_CHARS:  # far from all, and the search takes its length squared
        return ""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
