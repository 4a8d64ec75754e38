"""Rotary angles of the CPU engine: plain, linear and YaRN, as transformers computes them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trt_mtp.build.rope import Rope
from trt_mtp.serve.engine.kernels import Array


def rotary_tables(rope: Rope, width: int, length: int) -> tuple[Array, Array]:
    """cos and sin of the rotary angles, each [length, width / 2].

    `width` is the number of rotated dimensions of a head. Text positions are the same in all
    sections of Qwen's multimodal rope, which makes it the plain one.
    """
    inverse, factor = frequencies(rope, width)
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse
    scale = np.float32(factor)
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def frequencies(rope: Rope, width: int) -> tuple[Array, float]:
    """Angles per position [width / 2], and the factor on their sines and cosines.

    `rope` is of a kind that the CPU engine computes (`trt_mtp.build.rope.COMPUTED`).
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / width
    periods = (rope.theta**exponents).astype(np.float32)
    plain = (1.0 / periods).astype(np.float32)
    if rope.kind == "linear":
        return plain / np.float32(rope.keys["factor"]), 1.0
    if rope.kind == "yarn":
        kept = kept_share(rope, width)
        scaled = plain / np.float32(rope.keys["factor"])
        return scaled * (1 - kept) + plain * kept, attention_factor(rope.keys)
    return plain, 1.0


def kept_share(rope: Rope, width: int) -> Array:
    """Per frequency, how much of it YaRN leaves as it is: 1 for the fast ones, 0 for the slow."""
    original = rope.keys["original_max_position_embeddings"]

    def turns(count: float) -> float:
        """The dimension that makes `count` turns in the original length."""
        return width * math.log(original / (count * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = turns(rope.keys.get("beta_fast") or 32)
    high = turns(rope.keys.get("beta_slow") or 1)
    if rope.keys.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0
    ramp = (np.arange(width // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    return (1 - np.clip(ramp, 0, 1)).astype(np.float32)


def attention_factor(keys: Mapping[str, Any]) -> float:
    """YaRN's factor on sines and cosines."""
    if keys.get("attention_factor") is not None:
        return float(keys["attention_factor"])
    scale, one, all_ = keys["factor"], keys.get("mscale"), keys.get("mscale_all_dim")
    if one and all_:
        return float(magnitude(scale, one) / magnitude(scale, all_))
    return magnitude(scale, 1)


def magnitude(scale: float, weight: float) -> float:
    """How much a score grows with a context `scale` times as long."""
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0
