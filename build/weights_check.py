"""Does config.json describe the tensors: layers, kinds of layers, sizes, the output head."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trt_mtp.build.model_config import is_tied, layer_types_of, raise_problems, text_config_of
from trt_mtp.build.tensor_names import MTP
from trt_mtp.build.tensors import TensorInfo
from trt_mtp.errors import InputError

Config = Mapping[str, Any]
Tensors = Mapping[str, TensorInfo]

HEAD = "lm_head.weight"
NESTED = "language_model."
LAYER = re.compile(r"model\.(?:language_model\.)?layers\.(\d{1,9})\.(\w+)\.")
ANY_LAYER = re.compile(r"(?:^|\.)layers\.0\.")
EXPERTS, STACKED = "mlp.experts.", "mlp.experts.gate_up_proj"
WEIGHTS = ("weight", "qweight", "weight_packed")  # GPTQ's and AWQ's, compressed-tensors'
PARAMETERS = ("A_log", "dt_bias", "experts.gate_up_proj", "experts.down_proj")
MIXERS = {"self_attn": "full_attention", "linear_attn": "linear_attention"}
# what every released model has in all layers of a kind, quantised or not
REQUIRED = {
    "linear_attention": {"input_layernorm", "linear_attn.A_log", "linear_attn.dt_bias"},
    "full_attention": {"input_layernorm"},
}


def embedding_of(tensors: Tensors) -> str:
    """The name of the embedding."""
    nested = "model.language_model.embed_tokens.weight"
    return nested if nested in tensors else "model.embed_tokens.weight"


def check_tensors(file: Path, config: Config, tensors: Tensors, *, is_quantized: bool) -> None:
    """Raise InputError for a config, in `file`, that says other things than the tensors do."""
    text = text_config_of(config)
    if unknown := unknown_layer(tensors):
        raise InputError(
            f"{file.parent}: no tensor of a layer is named as in the released checkpoints "
            f"(model.layers.0.… or model.language_model.layers.0.…), but there is {unknown}; "
            f"rename them, or export the model again"
        )
    problems = list(layer_problems(text, tensors))
    problems += head_problems(config, tensors)
    if not is_quantized:
        problems += embedding_problems(text, tensors)
    raise_problems(file, problems)
    missing = missing_modules(text, tensors)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{file.parent} lacks {missing[0]}{more}, as when an exporter leaves out whole shards "
            f"or renames tensors; export it again, or copy the tensors from the model that it was "
            f"made from"
        )


def unknown_layer(tensors: Tensors) -> str | None:
    """The first layer's tensor under a name that nobody reads; None where layers are found."""
    if any(LAYER.match(name) for name in tensors):
        return None
    layers = (name for name in tensors if ANY_LAYER.search(name) and not name.startswith(MTP))
    return min(layers, default=None)


def layer_problems(text: Config, tensors: Tensors) -> Iterator[str]:
    """More or fewer layers than there are tensors of, or layers of another kind."""
    kinds: dict[int, set[str]] = {}
    for name in tensors:
        if match := LAYER.match(name):
            kinds.setdefault(int(match[1]), set()).add(MIXERS.get(match[2], ""))
    stated, found = text["num_hidden_layers"], max(kinds, default=-1) + 1
    if stated != found:
        yield f"num_hidden_layers is {stated}, but there are tensors of {found} layers"
        return
    for layer, kind in enumerate(layer_types_of(text)):
        there = kinds.get(layer, set()) - {""}
        if there and kind not in there:
            source = "layer_types" if text.get("layer_types") else "full_attention_interval"
            yield f"{source} makes layer {layer} {kind}, but its tensors are of {min(there)}"
            return


def missing_modules(text: Config, tensors: Tensors) -> list[str]:
    """What a model of these layers has to have, and `tensors` don't.

    A layer is held against the others of its kind: what half of them have, all have. What none
    of them has under its name is only noticed where it is REQUIRED.
    """
    prefix = "model." + NESTED * any(name.startswith(f"model.{NESTED}") for name in tensors)
    layers: dict[int, set[str | None]] = defaultdict(set)
    found = set()
    for name in tensors:
        if match := LAYER.match(name):
            layers[int(match[1])].add(module_of(name[match.start(2) :]))
        elif name.startswith(prefix):
            found.add(module_of(name.removeprefix(prefix)))
    missing = [prefix + part for part in ("embed_tokens", "norm") if part not in found]
    kinds = layer_types_of(text)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for layer, kind in enumerate(kinds):
        counts[kind].update(module for module in layers[layer] if module)
    number = Counter(kinds)
    for layer, kind in enumerate(kinds):
        usual = {module for module, count in counts[kind].items() if 2 * count >= number[kind]}
        lacking = (usual | REQUIRED.get(kind, set())) - layers[layer]
        if STACKED in layers[layer]:  # for all experts, which others have one by one
            lacking = {module for module in lacking if not module.startswith(EXPERTS)}
        missing += [f"{prefix}layers.{layer}.{module}" for module in sorted(lacking)]
    return missing


def module_of(name: str) -> str | None:
    """`mlp.up_proj.weight`, or what stands for it in a quantised checkpoint -> `mlp.up_proj`.

    A parameter without a module keeps its name; None for scales and the like, which a layer that
    was left as it is has none of.
    """
    if name.endswith(PARAMETERS):
        return name
    module, _, last = name.rpartition(".")
    return module if last in WEIGHTS else None


def head_problems(config: Config, tensors: Tensors) -> Iterator[str]:
    """An output head that neither is there nor is the embedding."""
    if HEAD in tensors or is_tied(config) or any(n.startswith("lm_head.") for n in tensors):
        return
    yield (
        "tie_word_embeddings is not true, but there is no lm_head.weight; expected one of the two"
    )


def embedding_problems(text: Config, tensors: Tensors) -> Iterator[str]:
    """An embedding or output head of another size."""
    expected = (text["vocab_size"], text["hidden_size"])
    for name in (embedding_of(tensors), HEAD):
        info = tensors.get(name)
        if info is not None and info.shape != expected:
            yield (
                f"vocab_size {expected[0]} and hidden_size {expected[1]} don't fit {name}, whose "
                f"shape is {list(info.shape)}"
            )
