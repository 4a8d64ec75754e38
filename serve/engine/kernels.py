"""Row-invariant float32 kernels of the Qwen3.5 architecture for one CPU core, compiled by numba.

A row is one token. Each output row is computed by the same operations in the same order
whatever the number of rows beside it, so a token's logits are bit for bit the same in a plain
step, a verify step, a batch or a prefill: speculation is lossless by construction, not within
a tolerance. Two rules keep it so: sums over a matrix's input are taken in order and vectorised over
its output only (linear.py has that kernel); `reassoc` is allowed only in `dot`, whose callers fix
its length.

All arrays are float32 and C-contiguous unless said.
"""

import math

import numpy as np
import numpy.typing as npt

from trt_mtp.serve.engine.compiler import kernel, reduction

F32 = np.float32
Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32] | npt.NDArray[np.uint16]  # uint16: the bits of bfloat16


@reduction
def dot(a: Array, b: Array) -> np.float32:
    """The inner product of two rows."""
    total = F32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@kernel
def exp32(x: np.float32) -> np.float32:
    """e**x by the Cephes polynomial (netlib.org/cephes, expf), in a form that vectorises."""
    x = F32(-87.0) if x < F32(-87.0) else (F32(88.0) if x > F32(88.0) else x)
    # adding and subtracting 1.5 * 2**23 rounds to the nearest integer
    n = (x * F32(1.44269504) + F32(12582912.0)) - F32(12582912.0)
    r = x - n * F32(0.693359375) + n * F32(2.12194440e-4)
    p = F32(1.9875691500e-4)
    p = p * r + F32(1.3981999507e-3)
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    p = p * (r * r) + r + F32(1.0)
    return p * np.int32(np.int32(n * F32(8388608.0)) + np.int32(1065353216)).view(F32)


@kernel
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + e**-x)."""
    return F32(1) / (F32(1) + exp32(-x))


@kernel
def rms_norm(x: Array, weight: Array, eps: float, y: Array) -> None:
    """y = x / rms(x) * (1 + weight) for one row: Qwen3_5RMSNorm, zero-centred weights."""
    scale = F32(1.0 / math.sqrt(dot(x, x) / x.shape[0] + eps))
    for i in range(x.shape[0]):
        y[i] = x[i] * scale * (F32(1) + weight[i])


@kernel
def gate_silu(gate_up: Array, n: int, rows: int, y: Array) -> None:
    """y = silu(gate) * up for gate_up [rows, >=2*n], gate first, and y [rows, >=n]."""
    for row in range(rows):
        gate, up, out = gate_up[row, :n], gate_up[row, n : 2 * n], y[row, :n]
        for i in range(n):
            out[i] = gate[i] * sigmoid(gate[i]) * up[i]


@kernel
def rotate(x: Array, cos: Array, sin: Array) -> None:
    """Rotary embedding in place on the first 2 * len(cos) values of one head."""
    half = cos.shape[0]
    for i in range(half):
        a, b = x[i], x[half + i]
        x[i] = a * cos[i] - b * sin[i]
        x[half + i] = b * cos[i] + a * sin[i]


@kernel
def attend(
    queries: Array, first: int, keys: Array, values: Array, length: int, scores: Array, out: Array
) -> None:
    """Attention of the heads that share one key-value head, over the first `length` positions.

    queries [heads, >=D], of which `first` and the next G count; keys [D, L] (transposed, so that
    scores vectorise over positions); values [L, D]; scores [G, >=L] is scratch; out [heads, D]
    gets softmax(query . keys / sqrt(D)) . values. Keys and values are read from memory once.
    """
    group, d = scores.shape[0], values.shape[1]
    scale = F32(1.0 / math.sqrt(d))
    for g in range(group):
        for j in range(length):
            scores[g, j] = F32(0)
    for i in range(0, d, 4):
        for g in range(group):
            q0, q1 = queries[first + g, i] * scale, queries[first + g, i + 1] * scale
            q2, q3 = queries[first + g, i + 2] * scale, queries[first + g, i + 3] * scale
            for j in range(length):
                scores[g, j] = (
                    scores[g, j]
                    + q0 * keys[i, j]
                    + q1 * keys[i + 1, j]
                    + q2 * keys[i + 2, j]
                    + q3 * keys[i + 3, j]
                )
    for g in range(group):
        _softmax(scores[g, :length])
        out[first + g, :] = F32(0)
    whole = length - length % 4
    for j in range(0, whole, 4):
        for g in range(group):
            p0, p1, p2, p3 = scores[g, j], scores[g, j + 1], scores[g, j + 2], scores[g, j + 3]
            for i in range(d):
                out[first + g, i] = (
                    out[first + g, i]
                    + p0 * values[j, i]
                    + p1 * values[j + 1, i]
                    + p2 * values[j + 2, i]
                    + p3 * values[j + 3, i]
                )
    for j in range(whole, length):
        for g in range(group):
            for i in range(d):
                out[first + g, i] += scores[g, j] * values[j, i]


@kernel
def _softmax(s: Array) -> None:
    """Softmax of one row, in place."""
    top = s[0]
    for j in range(1, s.shape[0]):
        top = max(top, s[j])
    for j in range(s.shape[0]):
        s[j] = exp32(s[j] - top)
    total = F32(0)
    for j in range(s.shape[0]):
        total += s[j]
    scale = F32(1) / total
    for j in range(s.shape[0]):
        s[j] *= scale


@kernel
def delta_step(
    query: Array,
    key: Array,
    value: Array,
    decay: float,
    beta: float,
    before: Array,
    after: Array,
    out: Array,
    scratch: Array,
) -> None:
    """One gated delta rule step of one head: `after` and `out` from `before`.

    query, key [Dk] normalised; value, out, scratch [Dv]; before, after [Dk, Dv], not the same.
    S' = decay * S; S'' = S' + key (beta * (value - key S'))^T; out = query S''
    (Gated Delta Networks, arXiv:2412.06464, eq. 10).
    """
    # indexed in two dimensions, because a slice in a loop costs numba a reference count
    n = scratch.shape[0]
    scratch[:] = F32(0)
    for i in range(0, key.shape[0], 4):
        k0, k1, k2, k3 = key[i], key[i + 1], key[i + 2], key[i + 3]
        for j in range(n):
            scratch[j] = (
                scratch[j]
                + k0 * before[i, j]
                + k1 * before[i + 1, j]
                + k2 * before[i + 2, j]
                + k3 * before[i + 3, j]
            )
    f = F32(decay)
    for j in range(n):
        scratch[j] = (value[j] - f * scratch[j]) * F32(beta)
    out[:] = F32(0)
    for i in range(0, key.shape[0], 2):
        k0, k1, q0, q1 = key[i], key[i + 1], query[i], query[i + 1]
        for j in range(n):
            s0 = f * before[i, j] + k0 * scratch[j]
            s1 = f * before[i + 1, j] + k1 * scratch[j]
            after[i, j] = s0
            after[i + 1, j] = s1
            out[j] = out[j] + q0 * s0 + q1 * s1
