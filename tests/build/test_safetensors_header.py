"""The headers of safetensors files: those of any content are read, or refused with a sentence."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.build.tensors import read_header
from trt_mtp.errors import InputError


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """A header of any bytes ends in tensors or in one sentence."""
    file = tmp_path_factory.mktemp("any") / "model.safetensors"
    file.write_bytes(data)
    with contextlib.suppress(InputError):
        list(read_header(file))


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["F32", "BF16"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3
                )
            ),
            max_leaves=8,
        ),
    )
)
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object]
) -> None:
    """A JSON header with any entries ends in tensors or in one sentence."""
    file = tmp_path_factory.mktemp("any") / "model.safetensors"
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with contextlib.suppress(InputError):
        list(read_header(file))


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ("[1]", "[0, 4]"),  # which is one
        ("[1.0]", "[0, 4]"),
        ("[1]", "[0.0, 4.0]"),
        ("[true]", "[0, 4]"),
        ("[-1, -1]", "[0, 4]"),
        (f"[{'1,' * 64}1]", "[0, 4]"),  # multiplying a million large ones takes hours
    ],
)
def test_sizes_of_a_tensor_are_numbers_that_can_be(
    tmp_path: Path, shape: str, offsets: str
) -> None:
    """Of the right kind, and no more dimensions than arrays have."""
    entry = f'{{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}'
    header = f'{{"t": {entry}}}'.encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    if (shape, offsets) == ("[1]", "[0, 4]"):
        assert [name for name, _ in read_header(file)] == ["t"]
        return
    with pytest.raises(InputError, match=r"the entry of t .* is not valid"):
        list(read_header(file))


@pytest.mark.parametrize(
    ("offsets", "num_bytes", "sentence"),
    [
        ([(0, 4), (4, 12)], 12, None),
        ([(4, 12), (0, 4)], 12, None),  # in any order
        ([(0, 4), (4, 4), (4, 12)], 12, None),  # one without elements
        ([(0, 4), (4, 12)], 112, "has 100 bytes behind its last tensor"),
        ([], 4, "has 4 bytes behind its last tensor"),
        ([(0, 4), (8, 12)], 12, r"has bytes that no tensor has \(4 of them\)"),
        ([(0, 8), (4, 12)], 12, r"has bytes that two tensors have \(4 of them\)"),
    ],
)
def test_every_byte_is_of_one_tensor(
    tmp_path: Path, offsets: list[tuple[int, int]], num_bytes: int, sentence: str | None
) -> None:
    """As the library asks that other engines read the file with."""
    entries = {
        str(at): {"dtype": "U8", "shape": [last - first], "data_offsets": [first, last]}
        for at, (first, last) in enumerate(offsets)
    }
    header = json.dumps(entries).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))
    if sentence is None:
        assert [name for name, _ in read_header(file)] == list(entries)
        return
    with pytest.raises(InputError, match=sentence):
        list(read_header(file))
