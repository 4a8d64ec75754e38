"""Server-sent events are the same however their stream is cut."""

from itertools import pairwise, repeat

from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.calibrate.openai.sse import Event, events

LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
TEXTS = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]))


@given(
    st.lists(TEXTS.filter(lambda text: not text.startswith(" ")), min_size=1, max_size=6),
    LINE_ENDS,
    st.lists(st.integers(0, 400), max_size=12),
    st.booleans(),
)
def test_every_cut_gives_the_same_events(
    texts: list[str], end: str, cuts: list[int], is_ended: bool
) -> None:
    """Comments, ids and the missing end of the last event change nothing."""
    stream = "".join(f": ping{end}{end}id: 3{end}data: {text}{end}{end}" for text in texts)
    content = stream.encode() if is_ended else stream.removesuffix(end).encode()
    bounds = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    pieces = [
        (float(number), content[start:stop])
        for number, (start, stop) in enumerate(pairwise(bounds))
    ]
    found = list(events([*pieces, (99.0, b"")]))
    assert [event.data for event in found] == texts
    assert [event.arrived_s for event in found] == sorted(event.arrived_s for event in found)


def test_an_event_comes_when_its_last_byte_does() -> None:
    """Lines of data are joined; the time is that of the empty line after them."""
    pieces = [(1.0, b"\xef\xbb\xbfdata: a\ndata:b"), (2.0, b"\n"), (3.0, b"\n"), (4.0, b"x: y\n\n")]
    assert list(events(pieces)) == [Event(3.0, "a\nb")]
    assert list(events([(1.0, b"data: \xff\n\n")])) == [Event(1.0, "�")]


def test_a_long_line_is_put_together_once() -> None:
    """A line of 8 MiB in 262,144 pieces; to join and search it again for each would take hours."""
    pieces = [(1.0, b"data:"), *repeat((1.0, b"x" * 32), 2**18), (2.0, b"\n\n")]
    [event] = events(pieces)
    assert (event.arrived_s, len(event.data)) == (2.0, 2**23)
