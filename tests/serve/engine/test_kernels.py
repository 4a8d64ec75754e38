"""The kernels (serve/engine): right, and the same bit for bit at every number of rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.build.layout import TILE
from trt_mtp.serve.engine import kernels
from trt_mtp.serve.engine.compiler import COMPILED
from trt_mtp.serve.engine.kernels import Array
from trt_mtp.serve.engine.linear import linear

SIZES = st.integers(1, 20).map(lambda n: 4 * n)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Gaussian float32 values."""
    return rng.standard_normal(shape).astype(np.float32)


def bfloat16_bits(values: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """The upper halves of `values`."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@given(
    inputs=SIZES,
    outputs=st.integers(1, 140),
    rows=st.integers(1, 9),
    wider=st.integers(0, 5),
    is_bfloat16=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_linear_rows_do_not_depend_on_each_other(
    inputs: int, outputs: int, rows: int, wider: int, is_bfloat16: bool, seed: int
) -> None:
    """Each row of `linear` has the bits it has alone, and the value of the product."""
    rng = np.random.default_rng(seed)
    weight = normal(rng, inputs, outputs)
    stored = bfloat16_bits(weight) if is_bfloat16 else weight
    if is_bfloat16:
        weight = (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    tiles = np.pad(stored, ((0, 0), (0, -outputs % TILE))).reshape(inputs, -1, TILE)
    flat = np.concatenate([stored[0, :1], tiles.transpose(1, 0, 2).ravel()])  # starts at 1
    flat.flags.writeable = False  # as the engine's are, so that its compiled code serves here
    x = normal(rng, rows, inputs + wider)
    together = np.zeros((rows, outputs + wider), np.float32)
    linear(flat, 1, inputs, outputs, x, rows, together)
    for row in range(rows):
        alone = np.zeros((1, outputs + wider), np.float32)
        linear(flat, 1, inputs, outputs, x[row : row + 1].copy(), 1, alone)
        assert np.array_equal(alone[0], together[row])
    exact = x[:, :inputs].astype(np.float64) @ weight
    assert np.allclose(together[:, :outputs], exact, atol=1e-4)
    assert not together[:, outputs:].any()


def test_exp_is_accurate_and_never_overflows() -> None:
    """exp32 is within 3e-7 of e**x, relatively, and finite for every input."""
    x = np.linspace(-87, 88, 20001, dtype=np.float32)
    y = np.array([kernels.exp32(value) for value in x])
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    ends = [kernels.exp32(np.float32(value)) for value in (-np.inf, -1e30, 1e30, np.inf)]
    assert np.isfinite(ends).all()
    assert ends[0] >= 0


def test_rms_norm_is_zero_centred() -> None:
    """rms_norm scales by 1 + weight."""
    rng = np.random.default_rng(0)
    x, weight, y = normal(rng, 64), normal(rng, 64), np.empty(64, np.float32)
    kernels.rms_norm(x, weight, 1e-6, y)
    assert np.allclose(y, x / np.sqrt(np.mean(x**2) + 1e-6) * (1 + weight), atol=1e-5)


def test_gate_silu() -> None:
    """gate_silu is silu(gate) * up, for the first columns of wider buffers."""
    rng = np.random.default_rng(0)
    gate_up, y = normal(rng, 3, 50), np.zeros((3, 30), np.float32)
    kernels.gate_silu(gate_up, 20, 2, y)
    gate, up = gate_up[:2, :20], gate_up[:2, 20:40]
    assert np.allclose(y[:2, :20], gate / (1 + np.exp(-gate)) * up, atol=1e-5)
    assert not y[2].any()
    assert not y[:, 20:].any()


def test_rotate_turns_half_split_pairs() -> None:
    """rotate turns value i with value i + n, and leaves what is behind them."""
    x = np.arange(1, 7, dtype=np.float32)
    cos, sin = np.array([0, 1], np.float32), np.array([1, 0], np.float32)
    kernels.rotate(x, cos, sin)
    assert x.tolist() == [-3, 2, 1, 4, 5, 6]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 31, 64])
@pytest.mark.parametrize("group", [1, 3])
def test_attend_is_softmax_attention(length: int, group: int) -> None:
    """attend gives softmax(q k / sqrt(d)) v over the first positions, whatever lies behind."""
    rng, d, first = np.random.default_rng(length), 8, 1
    queries, out = normal(rng, group + 2, 2 * d), np.zeros((group + 2, d), np.float32)
    keys, values = normal(rng, d, 70), normal(rng, 70, d)
    keys[:, length:], values[length:] = np.nan, np.nan
    kernels.attend(queries, first, keys, values, length, np.full((group, 70), np.nan, "f4"), out)
    scores = queries[first : first + group, :d] @ keys[:, :length] / np.sqrt(d)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = weights / weights.sum(1, keepdims=True) @ values[:length]
    assert np.allclose(out[first : first + group], expected, atol=1e-5)
    assert not out[:first].any()
    assert not out[first + group :].any()


def test_delta_step_is_the_gated_delta_rule() -> None:
    """delta_step decays the state, corrects what it recalls for the key, and reads the query."""
    rng = np.random.default_rng(0)
    query, key, value = normal(rng, 8), normal(rng, 8), normal(rng, 12)
    before, after, out = normal(rng, 8, 12), np.empty((8, 12), "f4"), np.empty(12, "f4")
    kernels.delta_step(query, key, value, 0.9, 0.4, before, after, out, np.empty(12, "f4"))
    decayed = np.float32(0.9) * before
    expected = decayed + np.outer(key, np.float32(0.4) * (value - key @ decayed))
    assert np.allclose(after, expected, atol=1e-5)
    assert np.allclose(out, query @ expected, atol=1e-5)


def test_the_cache_knows_every_module_with_kernels() -> None:
    """compiler.COMPILED lists all modules that compile kernels, so that no old code is run."""
    folder = Path(kernels.__file__).parent
    found = {
        file.stem
        for file in folder.glob("*.py")
        if "@kernel" in file.read_text() or "@reduction" in file.read_text()
    }
    assert found | {"compiler"} == set(COMPILED)
