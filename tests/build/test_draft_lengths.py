"""Lists of draft lengths as users write them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.build.draft_lengths import parse_draft_lengths
from trt_mtp.errors import InputError


@given(st.sets(st.integers(0, 15), min_size=1), st.randoms())
def test_draft_lengths_come_back_in_order(lengths: set[int], random: Any) -> None:
    """Any distinct lengths in range are accepted, in any order, with any spaces."""
    shuffled = sorted(lengths, key=lambda _: random.random())
    text = ",".join(f"{' ' * random.randrange(3)}{length}" for length in shuffled)
    assert parse_draft_lengths(text, largest=15) == tuple(sorted(lengths))


@given(st.text(max_size=12))
def test_any_text_is_a_list_or_refused(text: str) -> None:
    """Whatever is typed ends in draft lengths or in one sentence that quotes it."""
    try:
        lengths = parse_draft_lengths(text, largest=15)
    except InputError:
        return
    assert all(0 <= length <= 15 for length in lengths)
