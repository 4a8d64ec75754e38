"""Does config.json describe the tensors: layers, kinds of layers, sizes, the output head."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trt_mtp.build.model_config import is_tied, layer_types_of, raise_problems, text_config_of
from trt_mtp.build.tensors import TensorInfo

Config = Mapping[str, Any]
Tensors = Mapping[str, TensorInfo]

HEAD = "lm_head.weight"
LAYER = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.(\w+)\.")
MIXERS = {"self_attn": "full_attention", "linear_attn": "linear_attention"}


def embedding_of(tensors: Tensors) -> str:
    """The name of the embedding."""
    nested = "model.language_model.embed_tokens.weight"
    return nested if nested in tensors else "model.embed_tokens.weight"


def check_tensors(file: Path, config: Config, tensors: Tensors, *, is_quantized: bool) -> None:
    """Raise InputError for a config, in `file`, that says other things than the tensors do."""
    text = text_config_of(config)
    problems = list(layer_problems(text, tensors))
    problems += head_problems(config, tensors)
    if not is_quantized:
        problems += embedding_problems(text, tensors)
    raise_problems(file, problems)


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
