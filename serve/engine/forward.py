"""The model's forward passes: trunk and MTP head, over rows of any mix of requests.

Every cache is indexed by position: keys and values, the last inputs of each convolution, and
the Gated DeltaNet states (the last few of each). A rejected draft therefore needs no rollback:
the next step starts at an earlier position and overwrites what the draft left.

Names in shapes: S slots, L positions, N rows, d hidden, V vocabulary, K draft length.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trt_mtp.serve.engine import kernels
from trt_mtp.serve.engine.compiler import kernel
from trt_mtp.serve.engine.kernels import F32, Array
from trt_mtp.serve.engine.linear import linear

Ints = npt.NDArray[np.int64]

# Columns of Weights.table; a row is a layer, the one before last the MTP layer, the last global.
IN_NORM, POST_NORM, GATE_UP, DOWN, STATE = 0, 1, 2, 3, 4
IS_LINEAR, PROJ, OUT = 5, 6, 7
CONV, DT_BIAS, A_LOG, GDN_NORM = 8, 9, 10, 11
Q_NORM, K_NORM = 8, 9
FC, LM_HEAD = 10, 11  # of the MTP layer's row, in bfloat16 as its projections; LM_HEAD global too
EMBED, NORM, MTP_NORM, PRE_EMBEDDING, PRE_HIDDEN = 0, 1, 2, 3, 4
NUM_FIELDS = 12


class Shape(NamedTuple):
    """Sizes of the model, all counts; `rope_dim` values of each head are rotated."""

    num_layers: int
    hidden: int
    vocab: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_dim: int
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    eps: float


class Weights(NamedTuple):
    """All weights as one flat array and where each lies in it (offsets in values
    of its own type)."""

    flat: Array
    flat16: npt.NDArray[np.uint16]  # the same memory as bfloat16 bits: what drafting reads
    table: Ints  # [num_layers + 2, NUM_FIELDS]
    cos: Array  # [L + 1, rope_dim / 2]
    sin: Array


class State(NamedTuple):
    """What the engine remembers of the requests in flight."""

    tokens: npt.NDArray[np.int32]  # [S, L] prompt and answer
    done: Ints  # [S] positions that went through the trunk
    pending: Ints  # [S] of these, the last ones that did not go through the MTP head
    hidden: Array  # [S, K + 1, d] trunk output of the pending positions
    keys: Array  # [S, attention layers (+ MTP), kv heads, head_dim, L]
    values: Array  # [S, attention layers (+ MTP), kv heads, L, head_dim]
    conv: Array  # [S, linear layers, ring, channels], position p at p % ring
    delta: Array  # [S, linear layers, ring, value heads, key_dim, value_dim], after p at p % ring
    temperature: npt.NDArray[np.float64]  # [S]
    top_k: Ints  # [S]
    top_p: npt.NDArray[np.float64]  # [S]
    seed: npt.NDArray[np.uint64]  # [S]
    end_from: Ints  # [S] the first position that an end token may have
    end_ids: Ints  # [E] the end tokens
    answer_from: Ints  # [S] the first position of the answer
    frequency: Array  # [S] what each occurrence in the answer takes from a token's logit
    presence: Array  # [S] what the first one takes


class Rows(NamedTuple):
    """The rows of one pass, in the order of their positions within each slot."""

    token: Ints  # [N]
    slot: Ints  # [N]
    position: Ints  # [N]


class Scratch(NamedTuple):
    """Buffers of one pass."""

    x: Array  # [N, d] residual stream
    normed: Array  # [N, d]; after a pass, the hidden states
    wide: Array  # [N, max(2 * d, projections)]
    mixed: Array  # [N, max(attention, value, intermediate)]
    added: Array  # [N, d]
    logits: Array  # [N', V], N' the rows of a verify step
    scores: Array  # [heads per kv head, L]
    probabilities: Array  # [V]
    channels: Array  # [conv channels]
    delta: Array  # [value_dim]
    draft: Array  # [S, d] hidden states that the MTP head feeds back
    seen: npt.NDArray[np.bool_]  # [V] false between two uses


@kernel
def _matrix(weights: Weights, layer: int, field: int, rows: int, columns: int) -> Array:
    start = weights.table[layer, field]
    return weights.flat[start : start + rows * columns].reshape((rows, columns))


@kernel
def _multiply(
    weights: Weights, layer: int, field: int, size: tuple[int, int], x: Array, n: int, y: Array
) -> None:
    """y = x[:n] @ a matrix of `size` (in, out); drafting's are in bfloat16."""
    start = weights.table[layer, field]
    if layer == weights.table.shape[0] - 2:
        linear(weights.flat16, start, size[0], size[1], x, n, y)
    else:
        linear(weights.flat, start, size[0], size[1], x, n, y)


@kernel
def _vector(weights: Weights, layer: int, field: int, size: int) -> Array:
    start = weights.table[layer, field]
    return weights.flat[start : start + size]


@kernel
def _norm_rows(x: Array, weight: Array, rows: int, eps: float, y: Array) -> None:
    for row in range(rows):
        kernels.rms_norm(x[row], weight, eps, y[row])


@kernel
def _attention_rows(
    weights: Weights, layer: int, m: Shape, state: State, s: Scratch, rows: Rows, n: int, ahead: int
) -> None:
    """Gated attention: s.wide [n, q+gate | k | v] -> s.mixed [n, heads * head_dim]."""
    index, d = weights.table[layer, STATE], m.head_dim
    q_norm = _vector(weights, layer, Q_NORM, d)
    k_norm = _vector(weights, layer, K_NORM, d)
    group = m.num_heads // m.num_kv_heads
    k_start = 2 * m.num_heads * d
    v_start = k_start + m.num_kv_heads * d
    for row in range(n):
        slot, position, proj = rows.slot[row], rows.position[row], s.wide[row]
        cos, sin = weights.cos[position + ahead], weights.sin[position + ahead]
        queries = proj[:k_start].reshape((m.num_heads, 2 * d))  # each head's query, then its gate
        out = s.mixed[row, : m.num_heads * d].reshape((m.num_heads, d))
        for head in range(m.num_heads):
            kernels.rms_norm(queries[head, :d], q_norm, m.eps, queries[head, :d])
            kernels.rotate(queries[head, :d], cos, sin)
        for head in range(m.num_kv_heads):
            k = proj[k_start + head * d : k_start + (head + 1) * d]
            kernels.rms_norm(k, k_norm, m.eps, k)
            kernels.rotate(k, cos, sin)
            keys, values = state.keys[slot, index, head], state.values[slot, index, head]
            for i in range(d):
                keys[i, position] = k[i]
                values[position, i] = proj[v_start + head * d + i]
            kernels.attend(queries, head * group, keys, values, position + 1, s.scores, out)
        for head in range(m.num_heads):
            for i in range(d):
                out[head, i] *= kernels.sigmoid(queries[head, d + i])


@kernel
def _causal_conv(
    weights: Weights, layer: int, m: Shape, ring: Array, position: int, x: Array, y: Array
) -> None:
    """y = silu(causal depthwise convolution) at `position`; x [channels] joins the ring."""
    filters = _matrix(weights, layer, CONV, m.conv_kernel, x.shape[0])
    size = ring.shape[0]
    ring[position % size, :] = x
    y[:] = F32(0)
    for tap in range(m.conv_kernel):
        f, past = filters[tap], ring[(position - m.conv_kernel + 1 + tap) % size]
        for i in range(y.shape[0]):
            y[i] += f[i] * past[i]
    for i in range(y.shape[0]):
        y[i] = y[i] * kernels.sigmoid(y[i])


@kernel
def _normalise(x: Array, scale: float) -> None:
    factor = F32(scale / np.sqrt(kernels.dot(x, x) + 1e-6))
    for i in range(x.shape[0]):
        x[i] *= factor


@kernel
def _delta_rows(
    weights: Weights, layer: int, m: Shape, state: State, s: Scratch, rows: Rows, n: int
) -> None:
    """Gated DeltaNet: s.wide [n, qkv | z | b | a] -> s.mixed [n, value_heads * value_dim]."""
    index = weights.table[layer, STATE]
    dt_bias = _vector(weights, layer, DT_BIAS, m.num_value_heads)
    a_log = _vector(weights, layer, A_LOG, m.num_value_heads)
    norm = _vector(weights, layer, GDN_NORM, m.value_dim)
    dk, dv, group = m.key_dim, m.value_dim, m.num_value_heads // m.num_key_heads
    k_start = m.num_key_heads * dk
    v_start = 2 * k_start
    z_start = v_start + m.num_value_heads * dv
    b_start = z_start + m.num_value_heads * dv
    a_start = b_start + m.num_value_heads
    ring = state.delta.shape[2]
    for row in range(n):
        slot, position, proj = rows.slot[row], rows.position[row], s.wide[row]
        u = s.channels
        _causal_conv(weights, layer, m, state.conv[slot, index], position, proj[:z_start], u)
        for head in range(m.num_key_heads):
            _normalise(u[head * dk : (head + 1) * dk], 1.0 / np.sqrt(float(dk)))
            _normalise(u[k_start + head * dk : k_start + (head + 1) * dk], 1.0)
        before = state.delta[slot, index, (position - 1) % ring]
        after = state.delta[slot, index, position % ring]
        for head in range(m.num_value_heads):
            key = head // group
            raw = float(proj[a_start + head] + dt_bias[head])
            softplus = raw if raw > 20.0 else np.log1p(np.exp(raw))
            out = s.mixed[row, head * dv : (head + 1) * dv]
            kernels.delta_step(
                u[key * dk : (key + 1) * dk],
                u[k_start + key * dk : k_start + (key + 1) * dk],
                u[v_start + head * dv : v_start + (head + 1) * dv],
                np.exp(-np.exp(float(a_log[head])) * softplus),
                1.0 / (1.0 + np.exp(-float(proj[b_start + head]))),
                before[head],
                after[head],
                out,
                s.delta,
            )
            z = proj[z_start + head * dv : z_start + (head + 1) * dv]
            scale = F32(1.0 / np.sqrt(kernels.dot(out, out) / dv + m.eps))
            for i in range(dv):
                out[i] = out[i] * scale * norm[i] * z[i] * kernels.sigmoid(z[i])


@kernel
def _add_rows(x: Array, added: Array, rows: int) -> None:
    for row in range(rows):
        for i in range(x.shape[1]):
            x[row, i] += added[row, i]


@kernel
def _layer(
    weights: Weights, layer: int, m: Shape, state: State, s: Scratch, rows: Rows, n: int, ahead: int
) -> None:
    """One decoder layer over s.x [n, d] in place; `ahead` shifts the rotary positions."""
    d = m.hidden
    _norm_rows(s.x, _vector(weights, layer, IN_NORM, d), n, m.eps, s.normed)
    if weights.table[layer, IS_LINEAR]:
        mixed = m.num_value_heads * m.value_dim
        channels = 2 * m.num_key_heads * m.key_dim + mixed
        width = channels + mixed + 2 * m.num_value_heads
        _multiply(weights, layer, PROJ, (d, width), s.normed, n, s.wide)
        _delta_rows(weights, layer, m, state, s, rows, n)
    else:
        mixed = m.num_heads * m.head_dim
        width = 2 * mixed + 2 * m.num_kv_heads * m.head_dim
        _multiply(weights, layer, PROJ, (d, width), s.normed, n, s.wide)
        _attention_rows(weights, layer, m, state, s, rows, n, ahead)
    _multiply(weights, layer, OUT, (mixed, d), s.mixed, n, s.added)
    _add_rows(s.x, s.added, n)
    _norm_rows(s.x, _vector(weights, layer, POST_NORM, d), n, m.eps, s.normed)
    _multiply(weights, layer, GATE_UP, (d, 2 * m.intermediate), s.normed, n, s.wide)
    kernels.gate_silu(s.wide, m.intermediate, n, s.mixed)
    _multiply(weights, layer, DOWN, (m.intermediate, d), s.mixed, n, s.added)
    _add_rows(s.x, s.added, n)


@kernel
def trunk(weights: Weights, m: Shape, state: State, s: Scratch, rows: Rows, n: int) -> None:
    """Run n rows through all layers; s.normed [n, d] then holds the hidden states."""
    last = m.num_layers + 1
    embed = _matrix(weights, last, EMBED, m.vocab, m.hidden)
    for row in range(n):
        s.x[row, :] = embed[rows.token[row]]
    for layer in range(m.num_layers):
        _layer(weights, layer, m, state, s, rows, n, 0)
    _norm_rows(s.x, _vector(weights, last, NORM, m.hidden), n, m.eps, s.normed)


@kernel
def mtp_head(weights: Weights, m: Shape, state: State, s: Scratch, rows: Rows, n: int) -> None:
    """Run n rows through the MTP head; s.normed [n, d] then holds its hidden states.

    Row i pairs the hidden state of position p, given in s.added [n, d], with the token at p + 1;
    its cache row is p and its rotary position p + 1.
    """
    last, d = m.num_layers + 1, m.hidden
    embed = _matrix(weights, last, EMBED, m.vocab, d)
    pre_embedding = _vector(weights, last, PRE_EMBEDDING, d)
    pre_hidden = _vector(weights, last, PRE_HIDDEN, d)
    for row in range(n):
        kernels.rms_norm(embed[rows.token[row]], pre_embedding, m.eps, s.wide[row, :d])
        kernels.rms_norm(s.added[row], pre_hidden, m.eps, s.wide[row, d : 2 * d])
    _multiply(weights, m.num_layers, FC, (2 * d, d), s.wide, n, s.x)
    _layer(weights, m.num_layers, m, state, s, rows, n, 1)
    _norm_rows(s.x, _vector(weights, last, MTP_NORM, d), n, m.eps, s.normed)


@kernel
def logits(weights: Weights, m: Shape, x: Array, n: int, out: Array) -> None:
    """out [n, V] for the hidden states x [n, d]."""
    _multiply(weights, m.num_layers + 1, LM_HEAD, (m.hidden, m.vocab), x, n, out)


@kernel
def draft_logits(weights: Weights, m: Shape, x: Array, n: int, out: Array) -> None:
    """Like `logits`, from the bfloat16 copy of the head."""
    _multiply(weights, m.num_layers, LM_HEAD, (m.hidden, m.vocab), x, n, out)
