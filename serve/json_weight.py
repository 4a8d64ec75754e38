"""JSON that takes too long to read: told by its marks, before anybody reads it.

Reading can't be interrupted, so that it holds up all else in a process, threads too. It takes as
long as there are values, objects and above all keys.
"""

MAX_SHORT = 64 * 1024  # bytes of JSON that are read at once, whatever is in them
MAX_WEIGHT = 2**18  # of longer JSON, by its marks
MAX_TEXTS = 2**16  # of JSON that is long, if marks inside them are not to count
_MARKS = ((b",", 1), (b"[", 1), (b"{", 3), (b":", 12))


def is_heavy(raw: bytes) -> bool:
    """Whether there are too many values in a JSON text."""
    if len(raw) <= MAX_SHORT:
        return False
    return _weight(raw) > MAX_WEIGHT and _weight(_without_texts(raw)) > MAX_WEIGHT


def _weight(raw: bytes) -> int:
    return sum(raw.count(mark) * cost for mark, cost in _MARKS) + raw.count(b"\\") // 6


def _without_texts(raw: bytes) -> bytes:
    """`raw` without what is in its texts but the escapes, if these are few enough to part it."""
    if raw.count(b'"') > MAX_TEXTS * 2:
        return raw
    outside = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    return outside + b"\\" * raw.count(b"\\")
