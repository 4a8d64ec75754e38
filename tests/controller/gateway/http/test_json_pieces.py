"""JSON read and written in pieces is what it is in one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.gateway.http.json_pieces import dumped, loaded_list

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.booleans())
def test_what_is_written_is_the_value(value: Any, in_pieces: bool) -> None:
    """Down to the last character, however deep it is."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert dumped(value, in_pieces=in_pieces) == text.encode()


@given(st.lists(VALUES), st.sampled_from([None, 1]))
def test_what_is_read_is_the_list(values: list[Any], indent: int | None) -> None:
    """However it is spaced."""
    assert loaded_list(json.dumps(values, indent=indent)) == values


@pytest.mark.parametrize("text", ["", "5", "[1", "[1,", "[}"])
def test_what_is_no_list_is_an_error(text: str) -> None:
    """As json.loads has it."""
    with pytest.raises(ValueError, match=r"."):
        loaded_list(text)
