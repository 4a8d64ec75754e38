"""config.json is read whole: what it contradicts or can't be run is said with key and value."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen3_5ForCausalLM

from tests.conftest import CliResult
from tests.engine_fixtures import Model, pack
from tests.real_checkpoints import FIXTURES, NAMES, write_real
from tests.tiny_model import (
    make_checkpoint,
    random_tensors,
    text_config_of,
    write_json,
    write_safetensors,
)
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.cpu import check_everything
from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.tensorrt_llm import options_for, plan_variants
from trt_mtp.build.trtllm_version import chosen_version
from trt_mtp.errors import InputError, TrtMtpError

Cli = Callable[..., CliResult]
Json = dict[str, Any]

LINEAR, FULL = "linear_attention", "full_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
# config.json's keys -> what the sentence says
CONTRADICTIONS: list[tuple[Json, str]] = [
    ({"layer_types": [LINEAR] * 3}, "layer_types has 3 entries, but num_hidden_layers is 4"),
    ({"layer_types": [LINEAR] * 3 + [FULL] * 2}, "layer_types has 5 entries"),
    ({"layer_types": []}, "layer_types has 0 entries"),
    ({"layer_types": "full_attention"}, "layer_types is 'full_attention', expected a list"),
    ({"layer_types": [LINEAR, LINEAR, LINEAR, "sliding"]}, "layer_types has 'sliding'"),
    ({"layer_types": [LINEAR, LINEAR, LINEAR, None]}, "layer_types has None"),
    ({"layer_types": [FULL] * 4}, "layer 0 full_attention, but its tensors are of linear"),
    ({"layer_types": None, "full_attention_interval": 0}, "full_attention_interval is 0"),
    ({"layer_types": None, "full_attention_interval": 2}, "full_attention_interval makes layer 1"),
    ({"num_hidden_layers": 3, "layer_types": [LINEAR] * 3}, "num_hidden_layers is 3, but there"),
    ({"num_hidden_layers": 8, "layer_types": None}, "num_hidden_layers is 8, but there are"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', expected a number"),
    ({"rms_norm_eps": None}, "rms_norm_eps is None"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"mtp_num_hidden_layers": 10**9}, "mtp_num_hidden_layers is 1,000,000,000, expected 64 at"),
    ({"num_experts": 2**30}, "num_experts is 1,073,741,824, expected 8,192 at most"),
    ({"num_attention_heads": 3}, "num_attention_heads is 3, which is not a multiple"),
    ({"linear_num_key_heads": 3}, "linear_num_value_heads is 4, which is not a multiple"),
    ({"head_dim": None}, "head_dim is None, expected a positive integer"),
    ({"head_dim": 32.0}, "head_dim is 32.0, expected a positive integer"),
    ({"linear_conv_kernel_dim": True}, "linear_conv_kernel_dim is True"),
    ({"vocab_size": 400}, "vocab_size 400 and hidden_size 64 don't fit model.embed_tokens"),
    ({"intermediate_size": 100}, "has the shape [96, 64], but config.json makes it [100, 64]"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; the cpu engine needs 'silu'"),
    ({"attention_bias": True}, "attention_bias is True; the cpu engine needs False"),
    ({"attn_output_gate": "yes"}, "attn_output_gate is 'yes', expected true or false"),
    ({"mtp_num_hidden_layers": 2}, "mtp.layers.1."),
    ({"mtp_num_hidden_layers": "1"}, "mtp_num_hidden_layers is '1', expected a positive integer"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings is not true, but there is no lm_head"),
    ({"tie_word_embeddings": "true"}, "tie_word_embeddings is 'true', expected true or false"),
    ({"rope_parameters": [1]}, "rope_parameters is [1], expected an object"),
    ({"rope_parameters": PLAIN | {"rope_type": "ntk"}}, "rope_type is 'ntk', expected default"),
    ({"rope_parameters": PLAIN | {"factor": 4.0}}, "rope_type is default, but factor is 4.0"),
    ({"rope_parameters": PLAIN | {"type": "yarn"}}, "rope_type is 'default', but type is 'yarn'"),
    ({"rope_parameters": YARN | {"factor": "4"}}, "factor is '4', expected a number"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor is None, expected a number"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic', which the cpu"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "'llama3', which the cpu"),
    ({"rope_parameters": {FULL: PLAIN}}, "rope_parameters has the key full_attention"),
    ({"rope_parameters": PLAIN | {"rope_theta": "1e7"}}, "rope_theta is '1e7'"),
    ({"rope_parameters": PLAIN, "rope_theta": 1e6}, "rope_theta is 1000000.0, but"),
    ({"rope_parameters": PLAIN, "rope_scaling": YARN}, "write all of it into rope_parameters"),
    ({"rope_parameters": PLAIN | {"partial_rotary_factor": 0.1}}, "make 3 rotated dimensions"),
    ({"rope_parameters": PLAIN | {"mrope_section": [9, 1, 1]}}, "mrope_section is [9, 1, 1]"),
    ({"text_config": "none"}, "text_config is 'none', expected an object"),
]


def change(folder: Path, values: Mapping[str, Any]) -> None:
    """Set keys of config.json."""
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | values)


@pytest.mark.parametrize(("values", "message"), CONTRADICTIONS, ids=[m for _, m in CONTRADICTIONS])
def test_a_contradiction_is_one_sentence(
    cli: Cli, tmp_path: Path, values: Json, message: str
) -> None:
    """`build` names the key and the value in one line, exits with 2 and builds nothing."""
    folder = make_checkpoint(tmp_path / "c")
    change(folder, values)
    result = cli("build", folder, "--engine", "cpu", "-o", tmp_path / "engines", "--no-verify")
    assert result.code == 2, result.err
    assert message in result.err
    assert result.err.count("\n") == 1
    assert "config.json" in result.err or "mtp" in result.err
    assert not list((tmp_path / "engines").glob("*/variant.json"))


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_an_embedding_beside_text_config_is_refused(tmp_path: Path, key: str) -> None:
    """Nothing reads it there: the model would be served as if it had not been written."""
    folder = make_checkpoint(tmp_path / "c", multimodal=True)
    change(folder, {key: PLAIN | YARN})
    with pytest.raises(InputError, match=f"config.json: {key} stands beside text_config, "):
        read_checkpoint(folder)


def test_what_yarn_stretches_to_is_told(cli: Cli, tmp_path: Path) -> None:
    """A context that config.json doesn't have yet, where it is shown and where it is asked for."""
    folder = make_checkpoint(tmp_path / "c")
    change(folder, {"rope_parameters": PLAIN | YARN | {"original_max_position_embeddings": 512}})
    note = "YaRN makes it 2048: write that as max_position_embeddings into config.json"
    assert f"512 tokens; {note}" in cli("inspect", folder).out
    options = ["--engine", "cpu", "--no-verify", "-o", tmp_path / "engines", "--max-seq-len", 1500]
    refused = cli("build", folder, *options)
    assert (refused.code, note in refused.err) == (2, True)
    change(folder, {"max_position_embeddings": 2048})
    assert "2,048 tokens\n" in cli("inspect", folder).out
    assert cli("build", folder, *options, "--draft-lengths", "0").code == 0


def test_all_problems_are_said_at_once(cli: Cli, tmp_path: Path) -> None:
    """Who repairs a config sees everything that is wrong with it."""
    folder = make_checkpoint(tmp_path / "c")
    change(folder, {"head_dim": 0, "rms_norm_eps": "x", "layer_types": [LINEAR]})
    error = cli("inspect", folder).err
    assert "head_dim is 0" in error
    assert "rms_norm_eps is 'x'" in error
    assert "layer_types has 1 entries" in error


def test_both_levels_of_a_config_have_to_agree(cli: Cli, tmp_path: Path) -> None:
    """What text_config says and the config around it says otherwise is a contradiction."""
    folder = make_checkpoint(tmp_path / "c", multimodal=True)
    change(folder, {"vocab_size": 999})
    assert "vocab_size is 999, but text_config says 320" in cli("inspect", folder).err
    change(folder, {"vocab_size": 320, "tie_word_embeddings": False})
    result = cli("inspect", folder)
    assert "tie_word_embeddings is False, but text_config says True" in result.err


def test_a_head_that_is_not_the_embedding_is_not_tied(cli: Cli, tmp_path: Path) -> None:
    """tie_word_embeddings with an output head of its own is refused, with a copy it is built."""
    config = text_config_of("float32", tie_word_embeddings=False)
    tensors = random_tensors(config, np.random.default_rng(0))
    folder = make_checkpoint(tmp_path / "c")
    write_safetensors(folder / "model.safetensors", tensors)
    options = ["--engine", "cpu", "--draft-lengths", "0", "--no-verify", "-o", tmp_path / "e"]
    result = cli("build", folder, *options)
    assert result.code == 2
    assert "tie_word_embeddings is True, but lm_head.weight differs" in result.err
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    assert cli("build", folder, *options).code == 0


def test_tensors_that_the_engine_does_not_read_are_named(cli: Cli, tmp_path: Path) -> None:
    """A bias more is another model, whatever config.json says."""
    tensors = random_tensors(text_config_of("float32"), np.random.default_rng(0))
    tensors["model.layers.3.self_attn.q_proj.bias"] = np.zeros(256, np.float32)
    folder = make_checkpoint(tmp_path / "c")
    write_safetensors(folder / "model.safetensors", tensors)
    result = cli("build", folder, "--engine", "cpu", "-o", tmp_path / "engines")
    assert result.code == 2
    assert "model.layers.3.self_attn.q_proj.bias is not part of a Qwen3.5 model" in result.err


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 600),
    st.sampled_from([2**31, 2**63, -1, 0, 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.sampled_from([LINEAR, FULL, "x", None, 3]), max_size=70),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "x"]), st.integers(), max_size=2),
)


def paths_of(config: Json, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a config with the keys around it."""
    found = []
    for key, value in config.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += paths_of(value, (*prefix, key))
    return found


def mutated(data: st.DataObject, config: Json, extra: Json) -> Json:
    """`config` with one to three keys, present or of `extra`, removed or set to anything."""
    config = copy.deepcopy(config)
    for _ in range(data.draw(st.integers(1, 3))):
        known = [path for path in paths_of(config) if path[-1] not in OTHERS]
        path = data.draw(st.sampled_from([*known, *((key,) for key in extra)]))
        part = config
        for key in path[:-1]:
            part = part[key]
        if path[-1] in part and data.draw(st.booleans()) and data.draw(st.booleans()):
            del part[path[-1]]
        else:
            usual = st.sampled_from([extra[path[-1]]]) if path[-1] in extra else st.nothing()
            part[path[-1]] = data.draw(usual | VALUES)
    return config


# what transformers refuses by itself, and no engine here reads
OTHERS = ("architectures", "dtype", "pad_token_id", "bos_token_id")
EXTRA: Json = {
    "layer_types": [LINEAR, LINEAR, LINEAR, FULL],
    "rope_scaling": YARN,
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "num_mtp_layers": 1,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
}


@pytest.fixture(scope="module")
def real_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The released models, in sparse files."""
    folder = tmp_path_factory.mktemp("real")
    return {name: write_real(name, folder / name, num_shards=1, stacked=True) for name in NAMES}


# the same examples each time: a new one is found by hand, not in somebody's change
@settings(max_examples=60, derandomize=True)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_any_change_of_a_released_config_is_planned_or_refused(
    real_folders: dict[str, Path], data: st.DataObject, name: str
) -> None:
    """No config ends in a traceback: both engines plan it, or say in one sentence what is wrong."""
    folder = real_folders[name]
    config = mutated(data, json.loads((FIXTURES / name / "config.json").read_text()), EXTRA)
    (folder / "config.json").write_text(json.dumps(config))
    sentence = refusal(lambda: plan_both(folder))
    assert sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("value", [None, "int7", 3, [], {}])
def test_a_type_of_states_that_is_none_is_refused(
    real_folders: dict[str, Path], value: Any
) -> None:
    """Left open it is float32; anything that is no type is said with its key."""
    folder = real_folders["qwen3.8-27b"]
    config = json.loads((FIXTURES / "qwen3.8-27b" / "config.json").read_text())
    config.get("text_config", config)["mamba_ssm_dtype"] = value
    (folder / "config.json").write_text(json.dumps(config))
    sentence = refusal(lambda: plan_both(folder))
    assert ("mamba_ssm_dtype" in sentence) == (value is not None)


def refusal(work: Callable[[], object]) -> str:
    """The sentence with which `work` is refused, empty where it is done."""
    try:
        work()
    except TrtMtpError as error:
        return str(error)
    return ""


def plan_both(folder: Path) -> None:
    """Plan the checkpoint for TensorRT-LLM, then for the CPU, which lacks a tokenizer at last."""
    found = read_checkpoint(folder)
    options = options_for(
        found,
        chosen_version("1.3.0rc27"),
        find_gpu("b200-180gb"),
        max_batch_size=4,
        max_seq_len=256,
    )
    refusal(lambda: plan_variants(found, options, (0, 3), folder / "engines"))
    check_everything(found)


@settings(
    max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_what_builds_computes_what_transformers_does(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A changed config is refused, or its logits are those of transformers."""
    folder = tmp_path_factory.mktemp("mutated")
    make_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(mutated(data, config, EXTRA)))
    try:
        check_everything(read_checkpoint(folder))
    except TrtMtpError:
        return
    require_same_logits(folder, folder / "packed")


# what a config may well say, each key with values that the engine has to take
SIZES: dict[str, st.SearchStrategy[Any]] = {
    "num_attention_heads": st.sampled_from([2, 4]),
    "num_key_value_heads": st.sampled_from([1, 2]),
    "head_dim": st.sampled_from([16, 32]),
    "intermediate_size": st.sampled_from([32, 96, 100]),
    "num_hidden_layers": st.sampled_from([2, 4, 5]),
    "full_attention_interval": st.sampled_from([1, 2, 4]),
    "linear_num_key_heads": st.sampled_from([1, 2]),
    "linear_num_value_heads": st.sampled_from([2, 4]),
    "linear_key_head_dim": st.sampled_from([8, 16]),
    "linear_value_head_dim": st.sampled_from([8, 16]),
    "linear_conv_kernel_dim": st.integers(2, 4),
    "max_position_embeddings": st.integers(256, 4096),
    "rms_norm_eps": st.floats(1e-8, 1e-3),
    "tie_word_embeddings": st.booleans(),
    "use_cache": st.booleans(),
}
ROPE_KEYS: dict[str, st.SearchStrategy[Any]] = {
    "rope_type": st.sampled_from(["default", "linear", "yarn"]),
    "rope_theta": st.floats(100.0, 1e7),
    "partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0]),
}
SCALING: dict[str, st.SearchStrategy[Any]] = {"factor": st.floats(1.0, 16.0)}


@st.composite
def plausible_configs(draw: st.DrawFn) -> Json:
    """Keys of a config that describes a model as people make them."""
    rope = draw(st.fixed_dictionaries({}, optional=ROPE_KEYS))
    if rope.get("rope_type", "default") != "default":
        rope |= draw(st.fixed_dictionaries(SCALING))
    config = draw(st.fixed_dictionaries({}, optional=SIZES))
    return config | {"rope_parameters": {"rope_type": "default", **rope}}


@settings(
    max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(config=plausible_configs())
def test_plausible_models_are_computed_as_transformers_does(
    tmp_path_factory: pytest.TempPathFactory, config: Json
) -> None:
    """None of them is refused, and the logits are those of transformers."""
    folder = make_checkpoint(tmp_path_factory.mktemp("plausible") / "c", **config)
    check_everything(read_checkpoint(folder))
    require_same_logits(folder, folder / "packed")


def require_same_logits(checkpoint: Path, packed: Path) -> None:
    """Pack the checkpoint and compare the logits of 200 tokens with those of transformers."""
    model = Model(pack(checkpoint, packed))
    tokens: list[int] = np.random.default_rng(1).integers(0, model.shape.vocab, 200).tolist()
    ours = model.logits([(0, tokens)], [64, 64, 64, 8])
    try:
        reference = Qwen3_5ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    except StrictDataclassFieldValidationError:  # of a key that only transformers reads
        return
    with torch.no_grad():
        theirs = reference(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(ours - theirs).max() < 1e-4 * max(1.0, float(np.abs(theirs).max()))


ROPES: dict[str, Json] = {
    "yarn": {"rope_parameters": PLAIN | YARN},
    "yarn, all its keys": {
        "rope_parameters": PLAIN
        | YARN
        | {"beta_fast": 16, "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}
    },
    "yarn, a factor of its own": {"rope_parameters": PLAIN | YARN | {"attention_factor": 1.2}},
    "yarn without a length": {"rope_parameters": PLAIN | {"rope_type": "yarn", "factor": 2.0}},
    "linear": {"rope_parameters": PLAIN | {"rope_type": "linear", "factor": 4.0}},
    "old keys": {
        "rope_parameters": None,
        "rope_theta": 100000.0,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    },
    "old keys, plain": {"rope_parameters": None, "rope_theta": 5000, "rope_scaling": None},
}


@pytest.mark.parametrize("name", ROPES)
def test_scaled_rotary_embeddings_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    """YaRN and linear scaling, in new and old keys, give transformers' logits."""
    folder = make_checkpoint(tmp_path / "c", max_position_embeddings=512, **ROPES[name])
    require_same_logits(folder, tmp_path / "packed")
