"""Server-sent events out of the timed pieces of a stream, wherever it was cut."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

DONE = "[DONE]"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """The data of one event, and when its last byte came."""

    arrived_s: float
    data: str


def events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[Event]:
    """The events that have data, in their order.

    As in section 9.2.6 of WHATWG's HTML: lines end in LF, CRLF or CR, comments and other fields are
    skipped. An event whose empty line was forgotten at the stream's end counts.
    """
    data: list[str] = []
    arrived_s = 0.0
    for arrived_s, line in _lines(pieces):
        if not line:
            if data:
                yield Event(arrived_s, "\n".join(data))
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" ").decode(errors="replace"))
    if data:
        yield Event(arrived_s, "\n".join(data))


def _lines(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    rest, ended_in_cr, is_first = list[bytes](), False, True  # joined once: a line may be long
    arrived_s = 0.0
    for arrived_s, piece in pieces:
        if not piece:
            continue
        new = piece[1:] if ended_in_cr and piece[:1] == b"\n" else piece
        ended_in_cr = piece[-1:] == b"\r"
        *whole, last = _LINE_END.split(new)
        if whole:
            whole[0] = b"".join([*rest, whole[0]])
            rest = []
        rest.append(last)
        for line in whole:
            yield arrived_s, line.removeprefix(_BOM) if is_first else line
            is_first = False
    if end := b"".join(rest):
        yield arrived_s, end
