"""Files that are never half-written, and readers that say what is wrong with them."""

import difflib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trt_mtp.errors import InputError, TrtMtpError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    Raises TrtMtpError when the disk is full or the folder can't be written.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise TrtMtpError(f"can't write {path}: {error.strerror or error}") from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the last rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """The JSON value in `path`; raises InputError when it is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{path} can't be read: it is nested too deeply, or has a number of thousands of digits"
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
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
