"""The packed weights: every number of the checkpoint, where the CPU engine looks for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.tiny_model import (
    encode,
    make_checkpoint,
    random_tensors,
    text_config_of,
    write_safetensors,
)
from trt_mtp.build import pack
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.pack import from_bfloat16, pack_weights, to_bfloat16
from trt_mtp.errors import InputError

Floats = NDArray[np.float32]


def no_progress(label: str, done: int, total: int) -> None:
    """Nobody watches."""


def pack_tiny(folder: Path, **options: Any) -> tuple[Path, dict[str, Floats]]:
    """The folder and the packed tensors of a tiny checkpoint."""
    source = make_checkpoint(folder / "source", **options)
    packed = folder / "packed"
    packed.mkdir()
    pack_weights(read_checkpoint(source), packed, no_progress)
    return source, read_packed(packed)


def read_packed(folder: Path) -> dict[str, Floats]:
    """Every tensor of weights.bin as float32, matrices [in, out]."""
    data = (folder / "weights.bin").read_bytes()
    index = json.loads((folder / "weights.json").read_text())
    assert (index["schema_version"], index["num_bytes"]) == (3, len(data))
    tensors = {}
    for name, entry in index["tensors"].items():
        assert entry["offset"] % 64 == 0
        shape, offset = entry["shape"], entry["offset"]
        is_tiled = len(shape) == 2 and not name.endswith(("embed_tokens", "conv1d"))
        count = -(-shape[1] // 64) * 64 * shape[0] if is_tiled else int(np.prod(shape))
        if entry["dtype"] == "bfloat16":
            values = from_bfloat16(np.frombuffer(data, np.uint16, count, offset))
        else:
            assert entry["dtype"] == "float32"
            values = np.frombuffer(data, np.float32, count, offset)
        if is_tiled:
            tiles = values.reshape(-1, shape[0], 64)
            values = tiles.transpose(1, 0, 2).reshape(shape[0], -1)
            assert not values[:, shape[1] :].any()
            values = values[:, : shape[1]]
        tensors[name] = values.reshape(shape)
    return tensors


def bfloat16(values: Floats) -> Floats:
    """`values` rounded to bfloat16."""
    return from_bfloat16(to_bfloat16(np.ascontiguousarray(values)))


def test_every_weight_is_where_it_belongs(tmp_path: Path) -> None:
    """Matrices are [in, out], fused in order, drafting's rounded; vectors are as they were."""
    source, packed = pack_tiny(tmp_path)
    tensors = load_file(source / "model.safetensors")

    def fused(prefix: str, *names: str) -> Floats:
        parts: list[Floats] = [tensors[f"{prefix}{name}.weight"] for name in names]
        return np.concatenate(parts).T

    linear, full, head = "model.layers.0.", "model.layers.3.", "mtp.layers.0."
    expected = {
        "embed_tokens": tensors["model.embed_tokens.weight"],
        "lm_head": tensors["model.embed_tokens.weight"].T,
        "norm": tensors["model.norm.weight"],
        "layers.0.linear_attn.in_proj": fused(
            f"{linear}linear_attn.in_proj_", "qkv", "z", "b", "a"
        ),
        "layers.0.linear_attn.conv1d": tensors[f"{linear}linear_attn.conv1d.weight"][:, 0].T,
        "layers.0.linear_attn.A_log": tensors[f"{linear}linear_attn.A_log"],
        "layers.0.linear_attn.norm": tensors[f"{linear}linear_attn.norm.weight"],
        "layers.0.mlp.gate_up_proj": fused(f"{linear}mlp.", "gate_proj", "up_proj"),
        "layers.0.mlp.down_proj": tensors[f"{linear}mlp.down_proj.weight"].T,
        "layers.3.self_attn.qkv_proj": fused(f"{full}self_attn.", "q_proj", "k_proj", "v_proj"),
        "layers.3.self_attn.q_norm": tensors[f"{full}self_attn.q_norm.weight"],
        "mtp.fc": bfloat16(tensors["mtp.fc.weight"].T),
        "mtp.lm_head": bfloat16(tensors["model.embed_tokens.weight"].T),
        "mtp.norm": tensors["mtp.norm.weight"],
        "mtp.layers.0.self_attn.o_proj": bfloat16(tensors[f"{head}self_attn.o_proj.weight"].T),
        "mtp.layers.0.input_layernorm": tensors[f"{head}input_layernorm.weight"],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(packed[name], values, err_msg=name)
    assert len(packed) == 3 + 3 * 10 + 8 + 8 + 5


def test_an_output_head_of_its_own_is_used(tmp_path: Path) -> None:
    """Where embeddings are not tied, the logits come from lm_head.weight."""
    source, packed = pack_tiny(tmp_path, tie_word_embeddings=False)
    head = load_file(source / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(packed["lm_head"], head.T)
    np.testing.assert_array_equal(packed["mtp.lm_head"], bfloat16(head.T))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: str) -> None:
    """Released names, shards and 16-bit types give the numbers of the 16-bit checkpoint."""
    _, plain = pack_tiny(tmp_path / "plain")
    _, packed = pack_tiny(tmp_path / "half", dtype=dtype, multimodal=True, num_shards=3)
    for name in ("embed_tokens", "layers.1.linear_attn.in_proj", "layers.2.input_layernorm"):
        data = encode(plain[name], dtype)
        if dtype == "bfloat16":
            wide = from_bfloat16(np.frombuffer(data, np.uint16))
        else:
            wide = np.frombuffer(data, np.float16).astype(np.float32)
        np.testing.assert_array_equal(packed[name].ravel(), wide)
    assert packed.keys() == plain.keys()


def test_the_size_of_a_block_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that are converted in pieces come out as those converted at once."""
    _, whole = pack_tiny(tmp_path / "whole")
    monkeypatch.setattr(pack, "BLOCK_VALUES", 1000)
    _, pieces = pack_tiny(tmp_path / "pieces")
    for name, values in whole.items():
        np.testing.assert_array_equal(pieces[name], values, err_msg=name)


@given(st.lists(st.floats(width=32, allow_nan=False, max_value=2**100, min_value=-(2**100))))
def test_bfloat16_is_the_nearest(numbers: list[float]) -> None:
    """Rounding is to the nearest of the two neighbours, and exact where there is one."""
    values = np.array(numbers, np.float32)
    rounded = bfloat16(values)
    np.testing.assert_array_equal(bfloat16(rounded), rounded)
    below = from_bfloat16((values.view(np.uint32) >> 16).astype(np.uint16))
    above = from_bfloat16(((values.view(np.uint32) >> 16) + 1).astype(np.uint16))
    wide = values.astype(np.float64)
    nearest = np.minimum(abs(wide - below), abs(wide - above))
    np.testing.assert_array_equal(abs(wide - rounded), nearest)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_that_no_model_can_compute_with_are_named(
    tmp_path: Path, dtype: str, value: float
) -> None:
    """One such weight makes every answer the same token over and over; it is said at build."""
    folder = make_checkpoint(tmp_path / "c", dtype=dtype)
    tensors = random_tensors(text_config_of(dtype), np.random.default_rng(0))
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = value
    write_safetensors(folder / "model.safetensors", tensors, dtype)
    (tmp_path / "packed").mkdir()
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.down_proj\.weight has values"):
        pack_weights(read_checkpoint(folder), tmp_path / "packed", no_progress)
