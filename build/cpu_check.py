"""What the CPU engine can't run, said before anything is built."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.build.model_config import raise_problems
from trt_mtp.build.pack import Packed, open_values
from trt_mtp.build.rope import rope_of, unsupported_rope
from trt_mtp.build.tensor_names import MTP
from trt_mtp.build.weights_check import HEAD, embedding_of
from trt_mtp.errors import InputError

TRTLLM = "use --engine tensorrt-llm"
# the only values that the engine has code for; a key that is not there means the first one
EXPECTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attn_output_gate": True,
    "mtp_use_dedicated_embeddings": False,
    "mtp_num_hidden_layers": 1,
    "num_mtp_layers": 1,
    "mtp_layer_types": ["full_attention"],
}
# the kernels take four rows of a matrix at a time
MULTIPLES_OF_4 = (
    "hidden_size", "intermediate_size", "head_dim", "linear_key_head_dim", "linear_value_head_dim",
)  # fmt: skip
UNREAD = ("model.visual.", "visual.")  # tensors of other inputs than text
BUFFERS = ("rotary_emb.inv_freq",)  # what old exporters write and nothing reads


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Raise InputError for what the CPU engine can't run, by its config and its files."""
    where = checkpoint.path
    if checkpoint.is_moe:
        raise InputError(
            f"{where} is {checkpoint.family}: the cpu engine runs dense Qwen3.5, 3.6 and 3.8 "
            f"only; {TRTLLM}"
        )
    if checkpoint.quantization is not None:
        raise InputError(
            f"{where} is quantised ({checkpoint.quantization.method}): the cpu engine reads F32, "
            f"F16 and BF16 only; use the unquantised checkpoint{other_engine(checkpoint)}"
        )
    if checkpoint.mtp.missing:
        raise InputError(
            f"{where} lacks {len(checkpoint.mtp.missing)} tensors of its MTP head, the first is "
            f"{checkpoint.mtp.missing[0]}; download the checkpoint again"
        )
    raise_problems(where / "config.json", list(config_problems(checkpoint.text_config)))
    if not (where / "tokenizer.json").is_file():
        raise InputError(f"{where} has no tokenizer.json, which the cpu engine needs")


def other_engine(checkpoint: Checkpoint) -> str:
    """What to do instead, where TensorRT-LLM loads the format."""
    quantization = checkpoint.quantization
    loads = quantization is not None and not quantization.unloadable
    return " or --engine tensorrt-llm" if loads else ", which TensorRT-LLM needs as well"


def config_problems(text: Mapping[str, Any]) -> Iterator[str]:
    """What a config states that was checked and the engine has no code for, a clause for each."""
    for key, value in EXPECTED.items():
        if text.get(key) is not None and text[key] != value:
            yield f"{key} is {text[key]!r:.60}; the cpu engine needs {value!r}"
    for key in MULTIPLES_OF_4:
        if text[key] % 4:
            yield f"{key} is {text[key]}; the cpu engine needs a multiple of 4"
    reason = unsupported_rope(rope_of(text))
    if reason is not None:
        yield reason


def check_all_read(checkpoint: Checkpoint, plan: list[Packed]) -> None:
    """Raise InputError for tensors of the text model or the head that `plan` leaves out.

    A checkpoint with a bias or a norm more is another model.
    """
    read = {source for packed in plan for source in packed.sources}
    left = sorted(
        name
        for name in checkpoint.tensors.keys() - read
        if not name.startswith(UNREAD) and not name.endswith(BUFFERS)
    )
    if HEAD in left:
        left.remove(HEAD)  # judged by check_head
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        part = "MTP head" if left[0].startswith(MTP) else "model"
        raise InputError(
            f"{checkpoint.tensors[left[0]].file}: {left[0]}{more} is not part of a Qwen3.5 {part}; "
            f"the cpu engine can't run this one; {TRTLLM}"
        )


def check_head(checkpoint: Checkpoint) -> None:
    """Raise InputError for an output head that config.json says is the embedding, and is not."""
    head = checkpoint.tensors.get(HEAD)
    if head is None or not checkpoint.is_tied:
        return
    embedding = checkpoint.tensors[embedding_of(checkpoint.tensors)]
    if head.dtype == embedding.dtype:
        first, second = (open_values(info, "u1") for info in (head, embedding))
        if np.array_equal(first, second):
            return
    raise InputError(
        f"{checkpoint.path / 'config.json'}: tie_word_embeddings is True, but {HEAD} differs from "
        f"the embedding; set it to false, or remove the tensor"
    )
