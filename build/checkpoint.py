"""What a folder holds: model family, sizes, quantisation and MTP head of a checkpoint.

Only config files and safetensors headers are read, never tensor data, so a checkpoint of
terabytes is inspected in a second.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.build.model_config import check_config, is_tied, layer_types_of, text_config_of
from trt_mtp.build.mtp_head import MtpHead, find_mtp_head
from trt_mtp.build.quantization import (
    Quantization,
    check_agreement,
    find_quantization,
    weights_in,
)
from trt_mtp.build.rope import Rope, rope_of, stretched_length
from trt_mtp.build.tensor_names import (
    MTP,
    foreign_prefixes,
    released_name,
    with_released_names,
)
from trt_mtp.build.tensors import (
    INDEX,
    TensorInfo,
    read_tensors,
    read_unlisted,
    safetensors_files,
    written_by_mlx,
)
from trt_mtp.build.text_files import TEXT_FILES, check_marks, named_templates
from trt_mtp.build.weights_check import check_tensors
from trt_mtp.errors import InputError
from trt_mtp.files import read_json

# The model_type of the text model -> family. Qwen3.6 and Qwen3.8 (27B, 2.4T) use the
# architectures of Qwen3.5; Qwen3.8-Flash-Next is its own (qwen4_exp). Those with an MTP class in
# TensorRT-LLM: tensorrt_llm/_torch/models/modeling_speculative.py, MTPForCausalLM.
FAMILIES = {
    "qwen3_next": "qwen3-next",
    "qwen3_5": "qwen3.5",
    "qwen3_5_text": "qwen3.5",
    "qwen3_5_moe": "qwen3.5-moe",
    "qwen3_5_moe_text": "qwen3.5-moe",
    "qwen4_exp": "qwen3.8-flash-next",
    "qwen4_exp_text": "qwen3.8-flash-next",
}
EXPERTS = frozenset(FAMILIES.values()) - {"qwen3.5"}  # families with mixtures of experts
FOR_IMAGES = "ForConditionalGeneration"  # how the classes for images and texts are named
ADAPTER = "adapter_model.safetensors"
SUPPORTED = "Qwen3-Next, Qwen3.5, Qwen3.6 and Qwen3.8"
ORIGINAL = "use the original safetensors checkpoint (`hf download ORG/NAME`)"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One Qwen MTP checkpoint on disk."""

    path: Path
    family: str  # a value of FAMILIES
    model_type: str  # of the text model, as in its config
    architecture: str
    config: Mapping[str, Any]  # config.json
    tensors: Mapping[str, TensorInfo]  # under the names of the released checkpoints
    foreign_prefixes: tuple[str, ...]  # that the tensors' names begin with in the files
    unlisted: tuple[str, ...]  # files with the MTP head that the index doesn't list
    quantization: Quantization | None
    mtp: MtpHead

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of config.json about the text model."""
        return text_config_of(self.config)

    @property
    def layer_types(self) -> tuple[str, ...]:
        """`linear_attention` or `full_attention`, per layer."""
        return layer_types_of(self.text_config)

    @property
    def rope(self) -> Rope:
        """The rotary embedding."""
        return rope_of(self.text_config)

    @property
    def is_tied(self) -> bool:
        """Whether config.json says that the output head is the embedding."""
        return is_tied(self.config)

    @property
    def num_layers(self) -> dict[str, int]:
        """Number of layers by kind, the MTP head's not counted."""
        return dict(Counter(self.layer_types))

    @property
    def num_parameters(self) -> int:
        """All weights, those of the MTP head and of a vision tower included; scales are none."""
        return sum(weights_in(name, info, self.quantization) for name, info in self.tensors.items())

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes on disk by safetensors dtype, most first."""
        sizes: Counter[str] = Counter()
        for info in self.tensors.values():
            sizes[info.dtype] += info.num_bytes
        return dict(sizes.most_common())

    @property
    def num_bytes(self) -> int:
        """Bytes on disk of all tensors."""
        return sum(self.bytes_by_dtype.values())

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.text_config["vocab_size"])

    @property
    def context_length(self) -> int:
        """The longest sequence the checkpoint was made for, in tokens."""
        return int(self.text_config["max_position_embeddings"])

    @property
    def unused_context(self) -> str:
        """What to do where YaRN stretches beyond `context_length`, as a clause; else empty."""
        reach = stretched_length(self.rope)
        if reach <= self.context_length:
            return ""
        return f"YaRN makes it {reach}: write that as max_position_embeddings into config.json"

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forward parts are mixtures of experts."""
        return self.family in EXPERTS

    @property
    def text_class(self) -> str:
        """What `architectures` should name, where it names a class that needs a text_config.

        Empty where it doesn't, or there is one. A text model that was cut out of one for images
        and texts may still have the name; TensorRT-LLM and vLLM choose their class by it.
        """
        if not self.architecture.endswith(FOR_IMAGES) or "text_config" in self.config:
            return ""
        return self.architecture.removesuffix(FOR_IMAGES) + "ForCausalLM"

    @property
    def prefix(self) -> str:
        """What precedes `layers.0.…` in the names of the text model's tensors."""
        nested = "model.language_model."
        return nested if f"{nested}embed_tokens.weight" in self.tensors else "model."


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; raises InputError, with what to do, when it is not a usable one.

    An MTP head that is there in part is not an error here: `Checkpoint.mtp.missing` lists it.
    """
    check_folder(folder)
    check_marks(folder)
    file = folder / "config.json"
    config = read_json(file)
    family, model_type = find_family(file, config)
    check_config(file, config, is_moe=family in EXPERTS)
    check_format(folder)
    quantization = find_quantization(folder, config)
    found = read_tensors(folder)
    head, unlisted = find_separate_head(folder, found)
    tensors = with_released_names({**found, **head})
    check_whole(tensors)
    if not any(name.startswith(MTP) for name in tensors):
        raise lost_head(folder, tensors)
    check_agreement(folder, tensors, quantization)
    check_tensors(file, config, tensors, is_quantized=quantization is not None)
    return Checkpoint(
        path=folder,
        family=family,
        model_type=model_type,
        architecture=architecture_of(config),
        config=config,
        tensors=tensors,
        foreign_prefixes=foreign_prefixes([*found, *head]),
        unlisted=unlisted,
        quantization=quantization,
        mtp=find_mtp_head(family, text_config_of(config), tensors),
    )


def find_separate_head(
    folder: Path, found: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """The MTP head in files that the index doesn't list, and their names; nothing if it lists one.

    Some exporters write the head, or put it back, as a file of its own.
    """
    if any(released_name(name).startswith(MTP) for name in found):
        return {}, ()
    unlisted = read_unlisted(folder, {info.file for info in found.values()})
    head = {name: info for name, info in unlisted if released_name(name).startswith(MTP)}
    return head, tuple(sorted({info.file.name for info in head.values()}))


def check_whole(tensors: Mapping[str, TensorInfo]) -> None:
    """Raise InputError for tensors that are no model's before they are put together or turned.

    MLX keeps convolutions channels-last, and quantised weights, 32 bits at a time, beside `scales`.
    It doesn't always say so in the file.
    """
    for name, info in tensors.items():
        if ".lora_" in name or ".base_layer." in name:
            raise InputError(
                f"{info.file}: {name} is of a LoRA adapter that is not merged into its base model: "
                f"do that (`merge_and_unload` of PEFT) and copy the base's mtp.* tensors to the "
                f"result"
            )
        if name.endswith("conv1d.weight") and len(info.shape) == 3:
            if info.shape[1] > info.shape[2] == 1:
                raise written_by_mlx(info.file)
        elif name.endswith(".scales"):
            weight = tensors.get(f"{name.removesuffix('scales')}weight")
            if weight is not None and weight.dtype == "U32":
                raise written_by_mlx(info.file)


def lost_head(folder: Path, tensors: Mapping[str, TensorInfo]) -> InputError:
    """The sentence for a checkpoint without an MTP head, with what might have been one."""
    like = next((name for name in sorted(tensors) if "mtp" in name or "nextn" in name), None)
    if like is not None:
        return InputError(
            f"{folder} has no mtp.* tensors, but {like} in {tensors[like].file.name}; rename the "
            f"tensors of the MTP head to mtp.*, as the released checkpoints have them"
        )
    names = {info.file for info in tensors.values()}
    files = [file.name for file in folder.glob("*mtp*.safetensors") if file not in names]
    beside = f" ({min(files)} is there, but has none either)" if files else ""
    return InputError(
        f"{folder} has no mtp.* tensors{beside}: its MTP head was lost, as happens when a model is "
        f"loaded and saved again with transformers; {ORIGINAL} or copy the mtp.* tensors back"
    )


def architecture_of(config: Mapping[str, Any]) -> str:
    """The first of `architectures`, empty where none is named."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def check_folder(folder: Path) -> None:
    """Raise InputError unless `folder` is a folder with a config.json."""
    if folder.suffix == ".gguf":
        raise gguf_error(folder)
    if not folder.exists():
        raise InputError(f"{folder} does not exist; give a checkpoint's folder or a model id")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder that has config.json")
    check_links(folder)
    if (folder / "config.json").is_file():
        return
    names = {file.name for file in folder.iterdir()}
    if not names:
        raise InputError(f"{folder} is empty; {ORIGINAL}")
    if any(name.endswith(".gguf") for name in names):
        raise gguf_error(folder)
    check_adapter(folder)
    raise InputError(f"{folder} has no config.json, so it is not a Hugging Face checkpoint")


def check_links(folder: Path) -> None:
    """Raise InputError for a link to nowhere in place of a file that is read.

    `cp -a` of a snapshot in the Hugging Face cache makes such links; a file that can do without
    would go unnoticed.
    """
    found = (*folder.glob("*.safetensors"), *named_templates(folder))
    for file in (*(folder / name for name in (*TEXT_FILES, INDEX)), *sorted(found)):
        if file.is_symlink() and not file.exists():
            raise InputError(
                f"{file} is a link to {os.readlink(file)}, which is not there; copy the files "
                f"themselves, as `cp -L` does"
            )


def check_adapter(folder: Path) -> None:
    """Raise InputError for a LoRA adapter, as PEFT saves one."""
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} is a LoRA adapter, not a model: merge it into its base model "
            f"(`merge_and_unload` of PEFT) and copy the base's mtp.* tensors to the result"
        )


def gguf_error(path: Path) -> InputError:
    """The sentence for llama.cpp's format."""
    return InputError(f"{path} is GGUF, llama.cpp's format, which is not read; {ORIGINAL}")


def check_format(folder: Path) -> None:
    """Raise InputError when the weights are missing or in another format than safetensors."""
    names = {file.name for file in safetensors_files(folder)} - {ADAPTER}
    if names or any(folder.glob("*.safetensors.index.json")):
        return
    check_adapter(folder)
    if any(folder.glob("*.gguf")):
        raise gguf_error(folder)
    pickles = sorted(
        file.name for kind in ("bin", "pt", "pth", "ckpt") for file in folder.glob(f"*.{kind}")
    )
    if pickles:
        raise InputError(
            f"{folder} has its weights as a pickle ({pickles[0]}), which is not read because "
            f"loading one can run any code; {ORIGINAL}"
        )
    raise InputError(f"{folder} has a config.json but no *.safetensors; {ORIGINAL}")


def find_family(file: Path, config: Any) -> tuple[str, str]:
    """Family and model_type of the text model; raises InputError for what has no MTP head."""
    if not isinstance(config, dict) or not config.get("model_type"):
        raise InputError(f"{file} has no model_type, so it is not a Hugging Face model config")
    nested = config.get("text_config")
    if nested is not None and not isinstance(nested, dict):
        raise InputError(f"{file}: text_config is {nested!r:.60}, expected an object")
    model_type = str(text_config_of(config).get("model_type", config["model_type"]))
    if model_type in FAMILIES:
        return FAMILIES[model_type], model_type
    if model_type in ("qwen3", "qwen3_moe"):
        raise InputError(
            f"{file}: model_type {model_type} is Qwen3, whose checkpoints have no MTP head; "
            f"use one of {SUPPORTED}"
        )
    raise InputError(
        f"{file}: model_type {model_type} is not a Qwen MTP model; use one of {SUPPORTED}"
    )
