"""The one sentence for each folder that is no usable checkpoint."""

import codecs
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CliResult
from tests.tiny_model import (
    Tensors,
    change_config,
    make_checkpoint,
    random_tensors,
    rename_tensor,
    text_config_of,
    write_json,
    write_safetensors,
)
from trt_mtp.build.tensors import INDEX

Cli = Callable[..., CliResult]


def keep_only(folder: Path, *names: str) -> None:
    """Remove every other file."""
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()


def missing_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def empty(folder: Path) -> None:
    keep_only(folder)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_not_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def no_sizes(folder: Path) -> None:
    change_config(folder, hidden_size="64")


def plain_qwen3(folder: Path) -> None:
    change_config(folder, model_type="qwen3")


def llama(folder: Path) -> None:
    change_config(folder, model_type="llama")


def saved_again(folder: Path) -> None:
    shutil.rmtree(folder)
    make_checkpoint(folder, with_mtp=False)


def cut_short(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def cut_in_the_header(folder: Path) -> None:
    os.truncate(folder / "model-00002-of-00002.safetensors", 50)


def empty_file(folder: Path) -> None:
    os.truncate(folder / "model-00002-of-00002.safetensors", 0)


def lfs_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (folder / "model-00001-of-00002.safetensors").write_text(text)


def shard_missing(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def shard_missing_without_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()


def shards_of_many_models(folder: Path) -> None:
    (folder / INDEX).unlink()
    for stem in "ab":
        (folder / f"{stem}-00001-of-60000.safetensors").touch()


def tensor_missing(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes().replace(b"mtp.fc.weight", b"mtp.ff.weight"))
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes().replace(b"mtp.fc.weight", b"mtp.ff.weight"))


def index_without_map(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def index_outside(folder: Path) -> None:
    index = (folder / INDEX).read_text()
    (folder / INDEX).write_text(index.replace("model-00001-", "../model-00001-"))


def pickles_only(folder: Path) -> None:
    keep_only(folder, "config.json")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")


def gguf(folder: Path) -> None:
    keep_only(folder)
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF")


def gguf_with_config(folder: Path) -> None:
    keep_only(folder, "config.json")
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF")


def no_weights(folder: Path) -> None:
    keep_only(folder, "config.json")


def adapter(folder: Path) -> None:
    keep_only(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    write_safetensors(folder / "adapter_model.safetensors", {})


def adapter_with_config(folder: Path) -> None:
    keep_only(folder, "config.json")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    write_safetensors(folder / "adapter_model.safetensors", {})


def whole_model_beside_shards(folder: Path) -> None:
    make_checkpoint(folder.with_name("other"), seed=1)
    shutil.copy(folder.with_name("other") / "model.safetensors", folder)


def two_models_without_index(folder: Path) -> None:
    whole_model_beside_shards(folder)
    (folder / INDEX).unlink()


def written_by_mlx(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        file.write_bytes(content.replace(b'"format": "pt"', b'"format":"mlx"', 1))


def changed(folder: Path, change: Callable[[Tensors], None]) -> None:
    """Write the tensors again as one file, changed."""
    for file in folder.glob("model*"):
        file.unlink()
    tensors = random_tensors(text_config_of("float32"), np.random.default_rng(0))
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


def mlx_without_metadata(folder: Path) -> None:
    def turn(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("conv1d.weight"):
                tensors[name] = tensors[name].transpose(0, 2, 1)

    changed(folder, turn)


def mlx_quantized(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj"

    def quantize(tensors: Tensors) -> None:
        rows, columns = tensors[f"{name}.weight"].shape
        tensors[f"{name}.weight"] = np.zeros((rows, columns // 8), np.float32)
        for part in ("scales", "biases"):
            tensors[f"{name}.{part}"] = np.zeros((rows, columns // 64), np.float32)

    changed(folder, quantize)
    file, entry = folder / "model.safetensors", f'"{name}.weight": {{"dtype": "'.encode()
    file.write_bytes(file.read_bytes().replace(entry + b"F32", entry + b"U32"))


def adapter_beside_its_base(folder: Path) -> None:
    def add(tensors: Tensors) -> None:
        name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
        tensors[name] = np.zeros((4, 64), np.float32)

    changed(folder, add)


def tensor_of_a_layer_missing(folder: Path) -> None:
    rename_tensor(folder, b"layers.1.mlp.up_proj", b"layers.1.mlp.up_xxxx")


def parameter_of_all_layers_renamed(folder: Path) -> None:
    """As by a wrapper that nobody knows."""
    for number in range(4):
        rename_tensor(
            folder, b"layers.%d.linear_attn.A_log" % number, b"layers.%d.linear_attn.B_log" % number
        )


def norm_missing(folder: Path) -> None:
    rename_tensor(folder, b"model.norm.weight", b"model.xxxx.weight")


def merged_but_called_quantised(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "bitsandbytes"})


def plain_beside_modelopts_file(folder: Path) -> None:
    write_json(folder / "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}})


def quantised_without_a_word(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"'))
    rename_tensor(folder, b"layers.1.mlp.up_proj.weight", b"layers.1.mlp.upproj.qweight")


def linked_to_nowhere(name: str) -> Callable[[Path], None]:
    """Put a link for a file, as `cp -a` leaves of a snapshot in the cache."""

    def link(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("../../blobs/0123abcd")

    link.__name__ = f"linked_{name}"
    return link


def marked(name: str) -> Callable[[Path], None]:
    """Put a byte order mark before a file, as Windows' editors do."""

    def mark(folder: Path) -> None:
        (folder / name).write_bytes(codecs.BOM_UTF8 + (folder / name).read_bytes())

    mark.__name__ = f"marked_{name}"
    return mark


BAD: dict[Callable[[Path], None], str] = {
    adapter: "is a LoRA adapter, not a model",
    adapter_with_config: "is a LoRA adapter, not a model",
    whole_model_beside_shards: f"is in model.safetensors and, by {INDEX}, in model-0000",
    mlx_without_metadata: "model.safetensors was written by MLX",
    mlx_quantized: "model.safetensors was written by MLX",
    adapter_beside_its_base: "lora_A.weight is of a LoRA adapter that is not merged",
    written_by_mlx: "model-00001-of-00002.safetensors was written by MLX",
    two_models_without_index: "remove one of them",
    marked("config.json"): "config.json begins with a byte order mark",
    marked("tokenizer.json"): "tokenizer.json begins with a byte order mark",
    tensor_of_a_layer_missing: "lacks model.layers.1.mlp.up_proj, as when an exporter",
    norm_missing: "lacks model.norm, as when",
    parameter_of_all_layers_renamed: "lacks model.layers.0.linear_attn.A_log",
    merged_but_called_quantised: "quantised (bitsandbytes), but all of them are plain",
    plain_beside_modelopts_file: "hf_quant_config.json says that the weights are quantised (fp8)",
    quantised_without_a_word: "upproj.qweight is I32, a quantised weight, but config.json has no",
    linked_to_nowhere("config.json"): "config.json is a link to ../../blobs/0123abcd",
    linked_to_nowhere("model-00001-of-00002.safetensors"): "is a link to ../../blobs/0123abcd",
    linked_to_nowhere("chat_template.jinja"): "chat_template.jinja is a link to ",
    linked_to_nowhere("generation_config.json"): "generation_config.json is a link to ",
    missing_folder: "does not exist",
    a_file: "is a file; give the folder",
    empty: "is empty",
    no_config: "has no config.json",
    config_not_json: "config.json is not JSON",
    config_is_a_list: "has no model_type",
    no_sizes: "hidden_size is '64', expected a positive integer",
    plain_qwen3: "is Qwen3, whose checkpoints have no MTP head",
    llama: "model_type llama is not a Qwen MTP model",
    saved_again: "saved again with transformers",
    cut_short: "model-00001-of-00002.safetensors is cut short",
    cut_in_the_header: "model-00002-of-00002.safetensors is cut short",
    empty_file: "it has 0 bytes",
    lfs_pointer: "git lfs pull",
    shard_missing: "lacks model-00002-of-00002.safetensors",
    shard_missing_without_index: "lacks model-00002-of-00002.safetensors",
    shards_of_many_models: "has files of 3 models, which by their names are in 120,002 files",
    tensor_missing: "lacks the tensor mtp.fc.weight",
    index_without_map: "has no weight_map",
    index_outside: "is not a safetensors file",
    pickles_only: "a pickle (pytorch_model.bin)",
    gguf: "is GGUF",
    gguf_with_config: "is GGUF",
    no_weights: "no *.safetensors",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_each_unusable_folder_has_its_sentence(
    tmp_path: Path, cli: Cli, damage: Callable[[Path], None]
) -> None:
    """`trt-mtp inspect` says in one line what is wrong and where, and exits with 2."""
    folder = make_checkpoint(tmp_path / "checkpoint", num_shards=2)
    damage(folder)
    result = cli("inspect", folder)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("trt-mtp: ")
    assert result.err.count("\n") == 1
    assert BAD[damage] in result.err
    assert str(folder) in result.err
