"""The rotary embedding that config.json states: where its keys lie, and what is wrong with them.

Keys and their order of precedence are those of transformers (modeling_rope_utils.py, 5.23).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

DEFAULT_THETA = 10000.0
DEFAULT_SHARE = 0.25  # of a head's dimensions that is rotated, in Qwen3-Next and Qwen3.5
SCALED = ("linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
COMPUTED = ("default", "linear", "yarn")  # by the cpu engine
SCALING_KEYS = (
    "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "original_max_position_embeddings", "truncate", "short_factor", "long_factor",
    "low_freq_factor", "high_freq_factor",
)  # fmt: skip
WHY_NOT = {
    "dynamic": "its frequencies change as a text grows, so answers would depend on how a prompt "
    "is cut into pieces",
}


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary embedding."""

    kind: str  # default, or one of SCALED
    theta: float
    share: float  # of a head's dimensions
    keys: Mapping[str, Any]  # what else the kind needs


def stated_rope(text: Config) -> Config:
    """The object with the keys: rope_scaling, which counts first, or rope_parameters."""
    stated = text.get("rope_scaling") or text.get("rope_parameters") or {}
    return stated if isinstance(stated, dict) else {}


def rope_of(text: Config) -> Rope:
    """The rotary embedding of a config that was checked."""
    stated = stated_rope(text)
    original = stated.get("original_max_position_embeddings")
    return Rope(
        kind=stated.get("rope_type", stated.get("type", "default")),
        theta=float(stated.get("rope_theta", text.get("rope_theta", DEFAULT_THETA))),
        share=stated.get("partial_rotary_factor", text.get("partial_rotary_factor", DEFAULT_SHARE)),
        keys=dict(stated)
        | {"original_max_position_embeddings": original or text["max_position_embeddings"]},
    )


def rope_problems(text: Config) -> Iterator[str]:
    """What is wrong with the rotary embedding, a clause for each."""
    for name in ("rope_scaling", "rope_parameters"):
        if text.get(name) is not None and not isinstance(text[name], dict):
            yield f"{name} is {text[name]!r:.60}, expected an object"
            return
    old, new = text.get("rope_scaling") or {}, text.get("rope_parameters") or {}
    if old and new and old != new:
        yield (
            "rope_scaling and rope_parameters say different things; write all of it into "
            "rope_parameters, rope_theta too, and remove rope_scaling"
        )
        return
    stated = stated_rope(text)
    yield from kind_problems(stated)
    yield from place_problems(text, stated)
    yield from value_problems(text, stated)


def kind_problems(stated: Config) -> Iterator[str]:
    """A kind that does not exist, is stated twice, or has the keys of another one."""
    kind, old = stated.get("rope_type"), stated.get("type")
    if kind is not None and old is not None and kind != old:
        yield f"rope_type is {kind!r:.60}, but type is {old!r:.60}"
    kind = kind if kind is not None else old
    if kind is None and "rope_type" not in stated and "type" not in stated:
        kind = "default"
    if kind not in ("default", *SCALED):
        yield f"rope_type is {kind!r:.60}, expected default or one of {', '.join(SCALED)}"
    scaling = [key for key in SCALING_KEYS if stated.get(key) is not None]
    if kind == "default" and scaling:
        yield (
            f"rope_type is default, but {scaling[0]} is {stated[scaling[0]]!r:.60}, "
            "which belongs to a scaled one"
        )
    nested = [key for key in ("full_attention", "linear_attention") if key in stated]
    if nested:
        yield f"rope_parameters has the key {nested[0]}; expected one embedding for all layers"


def place_problems(text: Config, stated: Config) -> Iterator[str]:
    """Keys that are stated inside and outside with different values, or only outside."""
    for key in ("rope_theta", "partial_rotary_factor"):
        inner, outer = stated.get(key), text.get(key)
        if inner is not None and outer is not None and inner != outer:
            yield f"{key} is {outer!r:.60}, but rope_parameters says {inner!r:.60}"
    original = text.get("original_max_position_embeddings")
    if original is not None and original != stated.get("original_max_position_embeddings"):
        yield (
            f"original_max_position_embeddings is {original!r:.60}; "
            "expected it in rope_parameters, with the same value"
        )


def value_problems(text: Config, stated: Config) -> Iterator[str]:
    """Numbers that are none, or out of range."""
    theta = stated.get("rope_theta", text.get("rope_theta", DEFAULT_THETA))
    if not is_real(theta) or theta <= 1:
        yield f"rope_theta is {theta!r:.60}, expected a number above 1"
    share = stated.get("partial_rotary_factor", text.get("partial_rotary_factor", DEFAULT_SHARE))
    if not is_real(share) or not 0 < share <= 1:
        yield f"partial_rotary_factor is {share!r:.60}, expected more than 0, at most 1"
    else:
        yield from width_problems(text["head_dim"], share, stated.get("mrope_section"))
    yield from scaling_problems(stated)


def width_problems(head_dim: int, share: float, sections: Any) -> Iterator[str]:
    """A rotated part that has no halves, or sections that are not its halves' width."""
    width = int(head_dim * share)
    if width < 2 or width % 2:
        yield (
            f"head_dim {head_dim} and partial_rotary_factor {share} make {width} rotated "
            "dimensions, expected an even number of them"
        )
        return
    if sections is None:
        return
    if (
        not isinstance(sections, list)
        or len(sections) != 3
        or not all(isinstance(size, int) and not isinstance(size, bool) for size in sections)
        or min(sections) < 0
        or sum(sections) != width // 2
    ):
        yield (
            f"mrope_section is {sections!r:.60}, expected three sizes that sum to "
            f"{width // 2}, half the rotated dimensions"
        )


def scaling_problems(stated: Config) -> Iterator[str]:
    """The numbers of a scaled embedding."""
    kind = stated.get("rope_type", stated.get("type", "default"))
    factor: Any = stated.get("factor")
    if kind in ("linear", "dynamic", "yarn") and not (is_real(factor) and factor >= 1):
        yield f"factor is {factor!r:.60}, expected a number of at least 1 for rope_type {kind}"
    for key in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        value = stated.get(key)
        if value is not None and (not is_real(value) or value < 0):
            yield f"{key} is {value!r:.60}, expected a number of at least 0"
    original = stated.get("original_max_position_embeddings")
    if original is not None and (
        not isinstance(original, int) or isinstance(original, bool) or original < 1
    ):
        yield f"original_max_position_embeddings is {original!r:.60}, expected a positive integer"
    if not isinstance(stated.get("truncate", True), bool):
        yield f"truncate is {stated['truncate']!r:.60}, expected true or false"


def is_real(value: Any) -> bool:
    """Whether it is a finite number that floats can hold, which True is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e30  # false for what is not a number


def stretched_length(rope: Rope) -> int:
    """How many positions YaRN stretches to; 0 for another embedding."""
    if rope.kind != "yarn":
        return 0
    return int(rope.keys["original_max_position_embeddings"] * rope.keys["factor"])


def unsupported_rope(rope: Rope) -> str | None:
    """Why the cpu engine doesn't compute `rope`, as a clause; None if it does."""
    if rope.kind in COMPUTED:
        return None
    reason = WHY_NOT.get(rope.kind, "no Qwen MTP checkpoint is known to have it")
    return f"rope_type is {rope.kind!r}, which the cpu engine doesn't compute: {reason}"
