"""config.json, read whole: all that is missing, malformed or contradictory is said at once."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trt_mtp.build.rope import rope_problems
from trt_mtp.errors import InputError

Config = Mapping[str, Any]

LAYER_KINDS = ("linear_attention", "full_attention")
SIZES = (
    "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings",
    "num_attention_heads", "num_key_value_heads", "head_dim", "linear_num_key_heads",
    "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim",
)  # fmt: skip
EXPERT_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
OPTIONAL_SIZES = (
    "full_attention_interval", "mtp_num_hidden_layers", "num_mtp_layers",
    "shared_expert_intermediate_size",
)  # fmt: skip
# far beyond any model; of each layer and expert the names of its tensors are written down
MOST = {
    "num_hidden_layers": 4_096, "mtp_num_hidden_layers": 64, "num_mtp_layers": 64,
    "num_experts": 8_192,
}  # fmt: skip
SWITCHES = (
    "attention_bias", "attn_output_gate", "mtp_use_dedicated_embeddings", "tie_word_embeddings",
)  # fmt: skip
WHOLE = (  # (a, b): a is a whole multiple of b
    ("num_attention_heads", "num_key_value_heads"),
    ("linear_num_value_heads", "linear_num_key_heads"),
)
SHOWN = 5  # problems in one sentence


def text_config_of(config: Config) -> Config:
    """The nested `text_config` of released Qwen3.5 checkpoints, or the config itself."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def layer_types_of(text: Config) -> tuple[str, ...]:
    """`linear_attention` or `full_attention`, per layer, of a config that was checked."""
    if text.get("layer_types") is not None:
        return tuple(text["layer_types"])
    interval = text.get("full_attention_interval") or 4
    return tuple(
        "linear_attention" if (layer + 1) % interval else "full_attention"
        for layer in range(text["num_hidden_layers"])
    )


def is_tied(config: Config) -> bool:
    """Whether the output head is the embedding, of a config that was checked."""
    outer = config.get("tie_word_embeddings")
    stated = outer if outer is not None else text_config_of(config).get("tie_word_embeddings")
    return bool(stated)


def check_config(file: Path, config: Config, *, is_moe: bool) -> None:
    """Raise InputError, which lists all that is wrong with it, for a config that no engine can run.

    `file` is named in the message.
    """
    raise_problems(file, config_problems(config, is_moe=is_moe))


def raise_problems(file: Path, problems: list[str]) -> None:
    """Raise InputError with all of `problems` in one sentence, if there are any."""
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{file}: {'; '.join(problems[:SHOWN])}{more}")


def config_problems(config: Config, *, is_moe: bool) -> list[str]:
    """What is wrong with the config, a clause with key and value for each."""
    text = text_config_of(config)
    problems = [*size_problems(text, is_moe=is_moe), *switch_problems(text)]
    if text is not config:
        problems += [*switch_problems(config), *nesting_problems(config, text)]
    problems += [*number_problems(text), *layer_problems(text)]
    return problems or [*division_problems(text), *rope_problems(text)]


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_size(value: Any) -> bool:
    """Whether it is a positive integer of 32 bits, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def size_problems(text: Config, *, is_moe: bool) -> Iterator[str]:
    """Sizes that are missing or no positive integer."""
    needed = (*SIZES, *(EXPERT_SIZES if is_moe else ("intermediate_size",)))
    for key in needed:
        if key not in text:
            yield f"{key} is missing, expected a positive integer"
        elif not is_size(text[key]):
            yield f"{key} is {shown(text[key])}, expected a positive integer"
    for key in OPTIONAL_SIZES:
        value = text.get(key)
        if value is not None and value != 0 and not is_size(value):
            yield f"{key} is {shown(value)}, expected a positive integer"
    for key, most in MOST.items():
        if is_size(text.get(key)) and text[key] > most:
            yield f"{key} is {text[key]:,}, expected {most:,} at most"
    if text.get("full_attention_interval") == 0:
        yield "full_attention_interval is 0, expected a positive integer"


def switch_problems(part: Config) -> Iterator[str]:
    """Switches that are neither true nor false."""
    for key in SWITCHES:
        if part.get(key) is not None and not isinstance(part[key], bool):
            yield f"{key} is {shown(part[key])}, expected true or false"


def nesting_problems(config: Config, text: Config) -> Iterator[str]:
    """Keys that text_config states otherwise than the config around it."""
    for key in (*SIZES, "intermediate_size", *EXPERT_SIZES, *SWITCHES):
        outer, inner = config.get(key), text.get(key)
        if outer is not None and inner is not None and outer != inner:
            yield f"{key} is {shown(outer)}, but text_config says {shown(inner)}"
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) and config[key] != text.get(key):
            yield f"{key} stands beside text_config, where nothing reads it; write it inside"


def number_problems(text: Config) -> Iterator[str]:
    """The norms' epsilon, which has to be a small positive number."""
    eps = text.get("rms_norm_eps", 1e-6)
    if not is_number(eps) or not 0 < eps < 1:
        yield f"rms_norm_eps is {shown(eps)}, expected a number such as 1e-06"


def is_number(value: Any) -> bool:
    """Whether it is a finite number, which True is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def layer_problems(text: Config) -> Iterator[str]:
    """layer_types that name no kind of layer, or fewer or more layers than there are."""
    types = text.get("layer_types")
    if types is None:
        return
    if not isinstance(types, list):
        yield f"layer_types is {shown(types)}, expected a list of {' and '.join(LAYER_KINDS)}"
        return
    unknown = next((kind for kind in types if kind not in LAYER_KINDS), None)
    if len(types) != len([kind for kind in types if kind in LAYER_KINDS]):
        yield f"layer_types has {shown(unknown)}, expected {' or '.join(LAYER_KINDS)}"
    number = text.get("num_hidden_layers")
    if is_size(number) and number != len(types):
        yield f"layer_types has {len(types)} entries, but num_hidden_layers is {number}"


def division_problems(text: Config) -> Iterator[str]:
    """Numbers of heads and experts that don't go into each other."""
    for whole, part in WHOLE:
        if text[whole] % text[part]:
            yield f"{whole} is {text[whole]}, which is not a multiple of {part}, {text[part]}"
    if text.get("num_experts_per_tok", 0) > text.get("num_experts", math.inf):
        yield (
            f"num_experts_per_tok is {text['num_experts_per_tok']}, "
            f"but num_experts is {text['num_experts']}"
        )
