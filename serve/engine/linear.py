"""Rows times a matrix, the bulk of all work: sums are kept in vector registers.

A matrix lies in tiles of 64 columns (trt_mtp.build.layout). For up to four rows at once, a tile's
columns are summed over the input, in order, in as many registers as the machine has; then the same
tile, still in the cache, takes the next four rows. So weights come from memory once for all rows of
a pass, and a row's sums are the same operations in the same order whatever stands beside it. numba
alone keeps no vector in a register over a loop, so that loop is written in LLVM's language.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from trt_mtp.build.layout import TILE
from trt_mtp.serve.engine.compiler import kernel
from trt_mtp.serve.engine.kernels import F32, Array, Matrix

MAX_ROWS = 4  # at once
# Values in a register, and registers for sums: with those of weights and inputs they fit into the
# 32 of AVX-512, or the 16 of AVX2.
LANES, NUM_SUMS = (16, 16) if binding.get_host_cpu_features().get("avx512f") else (8, 8)

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT32, LANES)
_FUSED = ("contract",)  # multiply and add are one operation, as in all kernels


def _load(b: ir.IRBuilder, weights: Any) -> Any:
    """LANES weights from a pointer to float32, or to the bits of bfloat16, as float32."""
    value = weights.type.pointee
    vector = b.bitcast(weights, ir.VectorType(value, LANES).as_pointer())
    if value == _FLOAT:
        return b.load(vector, align=4)
    bits = b.zext(b.load(vector, align=2), _INTS)
    return b.bitcast(b.shl(bits, _INTS([16] * LANES)), _FLOATS)


def _variable(b: ir.IRBuilder, value: Any) -> Any:
    """A place that begins as `value`; LLVM keeps it in a register."""
    return cgutils.alloca_once_value(b, value)  # type: ignore[no-untyped-call]


def _spread(b: ir.IRBuilder, value: Any) -> Any:
    """A vector of one value."""
    first = b.insert_element(_FLOATS(ir.Undefined), value, _INT32(0))
    return b.shuffle_vector(first, _FLOATS(ir.Undefined), _INTS([0] * LANES))


def _tile_kernel(num_rows: int) -> Callable[..., None]:
    """For compiled code: out[:num_rows] = x[row : row + num_rows] @ tile.

    Takes weights, flat, and where in it the tile [inputs, TILE] starts; its inputs; x [N, >=inputs]
    and the row; out [>=num_rows, TILE].
    """

    # a power of two, so that the columns of a tile come out even
    step = LANES * min(TILE // LANES, 1 << (NUM_SUMS // num_rows).bit_length() - 1)

    def generate(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        start, inputs, row = args[1], args[2], args[4]
        weights, x, out = (
            context.make_array(signature.args[i])(context, b, args[i]) for i in (0, 3, 5)
        )
        tile = b.gep(weights.data, [start])
        width = b.extract_value(x.shape, 1)
        rows = [b.gep(x.data, [b.mul(b.add(row, _INT64(r)), width)]) for r in range(num_rows)]
        for first in range(0, TILE, step):
            columns = range(first, first + step, LANES)
            zero = _FLOATS([0.0] * LANES)
            sums = [[_variable(b, zero) for _ in columns] for _ in rows]
            with cgutils.for_range(b, inputs, intp=_INT64) as loop:
                at = b.mul(loop.index, _INT64(TILE))
                loaded = [_load(b, b.gep(tile, [b.add(at, _INT64(c))])) for c in columns]
                for values, of_row in zip(rows, sums, strict=True):
                    factor = _spread(b, b.load(b.gep(values, [loop.index])))
                    for weight, place in zip(loaded, of_row, strict=True):
                        product = b.fmul(factor, weight, flags=_FUSED)
                        b.store(b.fadd(b.load(place), product, flags=_FUSED), place)
            for r, of_row in enumerate(sums):
                for c, place in zip(columns, of_row, strict=True):
                    target = b.gep(out.data, [_INT64(r * TILE + c)])
                    b.store(b.load(place), b.bitcast(target, _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    @intrinsic
    def multiply(
        typing: Any, weights: Any, start: Any, inputs: Any, x: Any, row: Any, out: Any
    ) -> Any:
        return types.void(weights, types.int64, types.int64, x, types.int64, out), generate

    return multiply


_one, _two, _three, _four = (_tile_kernel(num_rows) for num_rows in (1, 2, 3, 4))


@kernel
def linear(
    weights: Matrix, start: int, inputs: int, outputs: int, x: Array, rows: int, y: Array
) -> None:
    """y[:rows] = x[:rows] @ the matrix [inputs, outputs] at `start` of the flat weights.

    x and y may be wider. bfloat16 weights halve the memory traffic; drafting uses them.
    """
    sums = np.empty((MAX_ROWS, TILE), F32)
    for column in range(0, outputs, TILE):
        tile, width = start + column * inputs, min(TILE, outputs - column)
        for row in range(0, rows, MAX_ROWS):
            n = min(MAX_ROWS, rows - row)
            if n == 4:
                _four(weights, tile, inputs, x, row, sums)
            elif n == 3:
                _three(weights, tile, inputs, x, row, sums)
            elif n == 2:
                _two(weights, tile, inputs, x, row, sums)
            else:
                _one(weights, tile, inputs, x, row, sums)
            for r in range(n):
                for c in range(width):
                    y[row + r, column + c] = sums[r, c]
