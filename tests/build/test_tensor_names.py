"""Checkpoints as exporters write them: other prefixes, and the MTP head in a file of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CliResult
from tests.engine_fixtures import pack
from tests.tiny_model import (
    Tensors,
    make_checkpoint,
    random_tensors,
    text_config_of,
    write_safetensors,
    write_weights,
)
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.tensors import INDEX

Cli = Callable[..., CliResult]


def tensors_of() -> Tensors:
    """Those of make_checkpoint()."""
    return random_tensors(text_config_of("float32"), np.random.default_rng(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose tensors a test writes itself."""
    return make_checkpoint(tmp_path / "c")


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    """`tensors` with another beginning of some names."""
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in tensors.items()
    }


@pytest.mark.parametrize(
    "prefix",
    ["model.mtp.", "language_model.mtp.", "model.language_model.mtp.", "language_model.model.mtp."],
)
def test_a_head_is_found_under_exporters_names(folder: Path, prefix: str) -> None:
    """The MTP head is whole, and packed as one with the released names."""
    expected = (pack(folder, folder / "plain") / "weights.bin").read_bytes()
    write_safetensors(folder / "model.safetensors", renamed(tensors_of(), "mtp.", prefix))
    found = read_checkpoint(folder)
    assert found.mtp.missing == found.mtp.unexpected == ()
    assert found.foreign_prefixes == (prefix,)
    assert (pack(folder, folder / "packed") / "weights.bin").read_bytes() == expected


def test_a_trunk_is_read_under_an_exporters_prefix(folder: Path) -> None:
    """language_model.model.* is the released model.language_model.*."""
    expected = (pack(folder, folder / "plain") / "weights.bin").read_bytes()
    tensors = renamed(tensors_of(), "model.", "language_model.model.")
    write_safetensors(folder / "model.safetensors", tensors)
    assert (pack(folder, folder / "packed") / "weights.bin").read_bytes() == expected


def test_tensorrt_llm_is_not_sent_an_exporters_prefix(cli: Cli, folder: Path) -> None:
    """The dry run for NVIDIA servers names the prefix as an error."""
    tensors = renamed(tensors_of(), "model.", "language_model.model.")
    write_safetensors(folder / "model.safetensors", tensors)
    result = cli("build", folder, "--trtllm-version", "1.3.0rc27", "--dry-run", "--json")
    findings = json.loads(result.out)["variants"][0]["findings"]
    (found,) = [finding for finding in findings if finding["id"] == "tensor-names"]
    assert found["severity"] == "error"
    assert "language_model.model.*" in found["message"]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "_orig_mod.", ("_orig_mod.",)),
        ("", "module.", ("module.",)),
        ("", "module._orig_mod.", ("module.", "_orig_mod.")),
        ("", "base_model.model.", ("base_model.model.",)),
        ("model.layers.0.", "model.layers.0._orig_mod.", ("_orig_mod.",)),
        (
            "model.layers.0.linear_attn.A_log",
            "model.layers.0.linear_attn._fp32_params.A_log",
            ("_fp32_params.",),
        ),
        ("model.", "_fsdp_wrapped_module.language_model.model.", None),
    ],
)
def test_a_model_is_read_that_was_saved_inside_a_wrapper(
    folder: Path, old: str, new: str, found: tuple[str, ...] | None
) -> None:
    """Before all names (safetensors#403) or where layers were wrapped, one wrapper or several."""
    expected = (pack(folder, folder / "plain") / "weights.bin").read_bytes()
    write_safetensors(folder / "model.safetensors", renamed(tensors_of(), old, new))
    both = ("_fsdp_wrapped_module.", "language_model.model.")
    assert read_checkpoint(folder).foreign_prefixes == (found or both)
    assert (pack(folder, folder / "packed") / "weights.bin").read_bytes() == expected


def test_a_wrappers_names_are_explained(cli: Cli, folder: Path) -> None:
    """Where the tensors are somebody else's to load, the prefix is named, and whose it is."""
    write_safetensors(folder / "model.safetensors", renamed(tensors_of(), "", "_orig_mod."))
    assert "_orig_mod.* (torch.compile)" in cli("inspect", folder).out
    result = cli("build", folder, "--trtllm-version", "1.3.0rc27", "--dry-run", "--json")
    findings = json.loads(result.out)["variants"][0]["findings"]
    (said,) = [finding for finding in findings if finding["id"] == "tensor-names"]
    assert "named _orig_mod.* (torch.compile), which" in said["message"]


def split_head(folder: Path, name: str, prefix: str = "mtp.") -> None:
    """The head in a file of its own, which the index doesn't list."""
    tensors = tensors_of()
    head = {key: value for key, value in tensors.items() if key.startswith("mtp.")}
    (folder / "model.safetensors").unlink()
    write_weights(folder, {k: v for k, v in tensors.items() if k not in head}, "float32", 2)
    write_safetensors(folder / name, renamed(head, "mtp.", prefix))


@pytest.mark.parametrize("prefix", ["mtp.", "model.mtp."])
@pytest.mark.parametrize("name", ["mtp.safetensors", "model_mtp.safetensors"])
def test_a_head_beside_the_index_is_found(cli: Cli, folder: Path, name: str, prefix: str) -> None:
    """A file that the index doesn't list is read for its MTP head, and inspect names it."""
    split_head(folder, name, prefix)
    found = read_checkpoint(folder)
    assert found.mtp.missing == ()
    assert found.unlisted == (name,)
    described = cli("inspect", folder).out
    assert f"{name} (not in {INDEX})" in described


def test_two_heads_beside_the_index_are_refused(cli: Cli, folder: Path) -> None:
    """Which of two files counts is not guessed."""
    split_head(folder, "mtp.safetensors")
    (folder / "old-mtp.safetensors").write_bytes((folder / "mtp.safetensors").read_bytes())
    result = cli("inspect", folder)
    assert result.code == 2
    assert "is in mtp.safetensors and in old-mtp.safetensors" in result.err


@pytest.mark.parametrize("other", ["model.mtp.norm.weight", "module.mtp.norm.weight"])
def test_the_same_tensor_under_two_names_is_refused(cli: Cli, folder: Path, other: str) -> None:
    """Which of the two counts is not guessed, be it an exporter's name or a wrapper's."""
    tensors = tensors_of()
    tensors[other] = tensors["mtp.norm.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    result = cli("inspect", folder)
    assert result.code == 2
    assert f"{other} is mtp.norm.weight a second time" in result.err


def test_a_head_under_an_unknown_name_is_named(cli: Cli, folder: Path) -> None:
    """Who exported it otherwise learns which tensors were taken for a head, and what to do."""
    tensors = renamed(tensors_of(), "mtp.", "drafter.mtp.")
    write_safetensors(folder / "model.safetensors", tensors)
    result = cli("inspect", folder)
    assert result.code == 2
    assert "drafter.mtp.fc.weight in model.safetensors; rename" in result.err


@pytest.mark.parametrize("prefix", ["model.language_model.language_model.", "thinker.model.", ""])
def test_layers_under_an_unknown_name_are_named(cli: Cli, folder: Path, prefix: str) -> None:
    """An exporter that puts a prefix there twice is no fault of config.json's."""
    tensors = renamed(tensors_of(), "model.", prefix)
    write_safetensors(folder / "model.safetensors", tensors)
    result = cli("inspect", folder)
    assert result.code == 2
    assert f"but there is {prefix}layers.0.input_layernorm.weight; rename" in result.err
