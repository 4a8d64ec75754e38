"""JSON that takes too long to read: told by its marks, before anybody reads it.

Reading can't be interrupted, so that it holds up all else in a process, threads too. It takes as
long as there are values, objects and above all keys; and a number as the square of its digits.
"""

MAX_SHORT = 64 * 1024  # bytes of JSON that are read at once, whatever is in them
MAX_WEIGHT = 2**18  # of longer JSON, by its marks
MAX_TEXTS = 2**16  # of JSON that is long, if marks inside them are not to count
MAX_DIGITS = 320  # of a number in longer JSON, one after the other; the largest there is has 309
_MARKS = ((b",", 1), (b"[", 1), (b"{", 3), (b":", 12))
_DIGITS_AS_ONE = bytes(b"0"[0] if chr(byte) in "0123456789" else b" "[0] for byte in range(256))


def is_heavy(raw: bytes) -> bool:
    """Whether there are too many values in a JSON text, or too many digits in one."""
    if len(raw) <= MAX_SHORT:
        return False
    return _is_too_much(raw) and _is_too_much(_without_texts(raw))


def _is_too_much(raw: bytes) -> bool:
    return _has_long_number(raw) or _weight(raw) > MAX_WEIGHT


def _has_long_number(raw: bytes) -> bool:
    return b"0" * (MAX_DIGITS + 1) in raw.translate(_DIGITS_AS_ONE)


def _weight(raw: bytes) -> int:
    return sum(raw.count(mark) * cost for mark, cost in _MARKS) + raw.count(b"\\") // 6


def _without_texts(raw: bytes) -> bytes:
    """`raw` without what is in its texts but the escapes, if these are few enough to part it."""
    if raw.count(b'"') > MAX_TEXTS * 2:
        return raw
    outside = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    return outside + b"\\" * raw.count(b"\\")
