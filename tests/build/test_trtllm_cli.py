"""`trt-mtp build` for NVIDIA servers, as it is typed."""

import json
import resource
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.real_checkpoints import NAMES, write_real
from tests.tiny_model import make_checkpoint, put_copy
from trt_mtp.build.cli import build, inspect
from trt_mtp.build.variant import list_variants
from trt_mtp.errors import TrtMtpError


@pytest.fixture(scope="module")
def checkpoint_27b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 27B in FP8, without its weights."""
    return write_real("qwen3.8-27b", tmp_path_factory.mktemp("27b") / "Qwen3.8-27B-FP8", "fp8")


def run(*arguments: object) -> Result:
    """`trt-mtp build` with these arguments; what a user can cause is raised."""
    result = CliRunner().invoke(build, [str(argument) for argument in arguments])
    if isinstance(result.exception, TrtMtpError):
        raise result.exception
    return result


def test_dry_run_prints_and_writes_nothing(checkpoint_27b: Path, tmp_path: Path) -> None:
    """A dry run names the command of every variant, ready to paste, and leaves no trace."""
    engines = tmp_path / "engines"
    result = run(
        checkpoint_27b, "--gpu", "h100-80gb", "--trtllm-version", "1.3.0rc27",
        "--draft-lengths", "0,3", "--dry-run", "-o", engines,
    )  # fmt: skip
    assert result.exit_code == 0
    assert f"trtllm-serve {checkpoint_27b} --config {engines}/k3/llm_args.yaml" in result.stdout
    assert "KV cache 31.8 = 456,955 tokens" in result.stdout
    assert "container nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc27" in result.stderr
    assert not engines.exists()


def test_a_text_model_that_names_the_class_for_images(tmp_path: Path) -> None:
    """The server would choose that class, and end on its text_config; the one to write is named."""
    folder = make_checkpoint(tmp_path / "cut-out")
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config) | {"model_type": "qwen3_5_text"}
    names = {"architectures": ["Qwen3_5ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(text | names))
    engines = tmp_path / "engines"
    with pytest.raises(TrtMtpError, match="for a text model write Qwen3_5ForCausalLM there"):
        run(folder, "--trtllm-version", "1.3.0rc27", "-o", engines)
    assert not list(engines.glob("k*"))


@pytest.mark.parametrize("file", ["model-00001-of-00009.safetensors", "consolidated.safetensors"])
def test_a_tensor_that_two_files_have(tmp_path: Path, file: str) -> None:
    """The server loads files whole, so that one left over from another model may count."""
    folder = make_checkpoint(tmp_path / "c", num_shards=2)
    put_copy(folder, file)
    arguments = (folder, "--trtllm-version", "1.3.0rc27", "-o", tmp_path / "engines")
    if file.startswith("consolidated"):  # which it leaves out
        assert run(*arguments).exit_code == 0
        return
    with pytest.raises(TrtMtpError, match=rf"{file} has model\.embed_tokens\.weight too, which"):
        run(*arguments)


def test_a_plain_head_that_is_not_excluded(checkpoint_27b: Path, tmp_path: Path) -> None:
    """An engine that goes by the list would expect the head quantised like the rest."""
    folder = write_real("qwen3.8-27b", tmp_path / "c", "fp8")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["lm_head", "mtp.fc"]
    (folder / "config.json").write_text(json.dumps(config))
    options = ("--gpu", "h100-80gb", "--trtllm-version", "1.3.0rc27", "--dry-run")
    said = "warning (k3): the MTP head is not quantised, and the checkpoint's list of excluded"
    assert said in run(folder, *options, "--draft-lengths", "0,3").stdout
    assert said not in run(checkpoint_27b, *options, "--draft-lengths", "0,3").stdout


def test_json(checkpoint_27b: Path, tmp_path: Path) -> None:
    """The JSON has the promised shape and keys."""
    result = run(
        checkpoint_27b, "--gpu", "h100-80gb", "--trtllm-version", "1.3.0rc27",
        "--draft-lengths", "0,1,3,5", "--dry-run", "--json", "-o", tmp_path,
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert report["schema_version"] == 1
    assert [variant["draft_length"] for variant in report["variants"]] == [0, 1, 3, 5]
    for variant in report["variants"]:
        assert set(variant) == {
            "name", "draft_length", "llm_args", "environment", "command", "memory", "findings",
        }  # fmt: skip
        assert variant["memory"]["gpu"] == "h100-80gb"


def test_build_twice(checkpoint_27b: Path, tmp_path: Path) -> None:
    """A second build changes nothing, one with other options rewrites, and records are read."""
    arguments = (
        checkpoint_27b, "--trtllm-version", "1.3.0rc27", "--draft-lengths", "0,3", "-o", tmp_path
    )  # fmt: skip
    assert "k0, k3" in run(*arguments).stderr
    assert "nothing new" in run(*arguments).stderr
    assert "k0, k3" in run(*arguments, "--set", "stream_interval=4").stderr
    assert [variant.name for variant in list_variants(tmp_path)] == ["k0", "k3"]


def test_a_full_disk_leaves_no_part_of_a_variant(checkpoint_27b: Path, tmp_path: Path) -> None:
    """Neither an empty folder nor one with the arguments and no record."""
    arguments = (checkpoint_27b, "--trtllm-version", "1.3.0rc27", "--draft-lengths", "0", "-o")
    run(*arguments, tmp_path / "whole")
    size = (tmp_path / "whole" / "k0" / "variant.json").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, hard))
    try:
        with pytest.raises(TrtMtpError, match=r"can't write .*/k0/variant\.json"):
            run(*arguments, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "full").glob("k*"))


def test_devices(checkpoint_27b: Path, tmp_path: Path) -> None:
    """Each variant gets its own GPUs; too few are refused."""
    arguments = (
        checkpoint_27b, "--trtllm-version", "1.3.0rc27", "--draft-lengths", "0,3", "--tp", "2",
        "--dry-run", "--json", "-o", tmp_path,
    )  # fmt: skip
    variants = json.loads(run(*arguments, "--devices", "0,1,4,5").stdout)["variants"]
    devices = [variant["environment"]["CUDA_VISIBLE_DEVICES"] for variant in variants]
    assert devices == ["0,1", "4,5"]
    with pytest.raises(TrtMtpError, match="names 3 GPUs, and 2 variants of 2 need 4"):
        run(*arguments, "--devices", "0,1,2")
    with pytest.raises(TrtMtpError, match="expected different GPU numbers"):
        run(*arguments, "--devices", "0,0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--trtllm-version", "1.2.1"), "use 1.3.0rc27"),
        (("--gpu", "h100-80gb"), "name the version of the server with --trtllm-version"),
        (("--trtllm-version", "1.3.0rc27", "--gpu", "h100"), "did you mean h100-80gb"),
        (("--trtllm-version", "1.3.0rc27", "--tp", "3"), "1, 2, 4, 8 GPUs only"),
        (("--engine", "cpu", "--tp", "2"), "--tp is for --engine tensorrt-llm"),
        (("--trtllm-version", "1.3.0rc27", "--gpu", "l4-24gb"), "would fit: --tp"),
        (("--trtllm-version", "1.3.0rc27", "--quantize", "nvfp4"), "is fp8 already"),
        (("--trtllm-version", "1.3.0rc27", "--draft-lengths", "17"), "17 is more than 16"),
    ],
)
def test_refusals(
    checkpoint_27b: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    """What can't be built is refused in one sentence, before anything is written."""
    with pytest.raises(TrtMtpError, match=says):
        run(checkpoint_27b, *arguments, "-o", tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


def modelopt_double(folder: Path, body: str) -> Path:
    """A checkout of Model-Optimizer whose script does `body` (with `source` and `export`)."""
    script = folder / "examples" / "hf_ptq" / "hf_ptq.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import json, pathlib, shutil, sys\n"
        "options = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "source = pathlib.Path(options['--pyt_ckpt_path'])\n"
        "export = pathlib.Path(options['--export_path'])\n"
        f"sys.path.insert(0, {str(Path.cwd())!r})\n"
        f"{body}\n"
    )
    return folder


SOUND = """
shutil.copytree(source, export)
config = json.loads((export / 'config.json').read_text())
config['quantization_config'] = {'quant_method': 'modelopt', 'quant_algo': 'FP8'}
(export / 'config.json').write_text(json.dumps(config))
from tests.tiny_model import put_scales
put_scales(export)
"""
LOST = """
from tests.tiny_model import make_checkpoint, put_copy
make_checkpoint(export, with_mtp=False)
"""


def quantize(tmp_path: Path, body: str) -> Result:
    """Build k0 and k3 of a tiny checkpoint through a double of ModelOpt's script."""
    checkpoint = make_checkpoint(tmp_path / "tiny")
    return run(
        checkpoint, "--trtllm-version", "1.3.0rc27", "--draft-lengths", "0,3",
        "--max-seq-len", "256", "--quantize", "fp8",
        "--modelopt", modelopt_double(tmp_path / "Model-Optimizer", body),
        "-o", tmp_path / "engines",
    )  # fmt: skip


def test_quantize(tmp_path: Path) -> None:
    """ModelOpt's script is run once, and the variants serve what it wrote."""
    assert quantize(tmp_path, SOUND).exit_code == 0
    quantized = tmp_path / "engines" / ".shared" / "tiny-fp8"
    assert quantized.is_dir()
    for variant in list_variants(tmp_path / "engines"):
        assert variant.record.checkpoint["path"] == str(quantized)


@pytest.mark.parametrize(
    ("body", "says"),
    [(LOST, "has no mtp"), ("sys.exit(3)", "failed with exit code 3")],
    ids=["head lost", "failed"],
)
def test_quantize_that_goes_wrong(tmp_path: Path, body: str, says: str) -> None:
    """A lost head and a failed script are named, and no checkpoint or variant is left."""
    with pytest.raises(TrtMtpError, match=says):
        quantize(tmp_path, body)
    assert not list((tmp_path / "engines").glob("k*"))
    assert not (tmp_path / "engines" / ".shared" / "tiny-fp8").exists()


def test_quantize_needs_the_script(tmp_path: Path) -> None:
    """Without ModelOpt's checkout the sentence says where to get it."""
    checkpoint = make_checkpoint(tmp_path / "tiny")
    arguments = (checkpoint, "--trtllm-version", "1.3.0rc27", "--max-seq-len", "256")
    with pytest.raises(TrtMtpError, match=r"git clone .*Model-Optimizer"):
        run(*arguments, "--quantize", "fp8", "-o", tmp_path / "engines")


@pytest.mark.parametrize("name", NAMES)
def test_inspect_every_released_model(name: str, tmp_path: Path) -> None:
    """Family, layers and a whole MTP head are seen in every released model."""
    folder = write_real(name, tmp_path / name, stacked=True)
    result = CliRunner().invoke(inspect, [str(folder), "--json"])
    seen = json.loads(result.stdout)
    assert seen["mtp"]["num_hidden_layers"] == 1
    assert seen["mtp"]["missing"] == seen["mtp"]["unexpected"] == []
    assert seen["num_layers"]["linear_attention"] == 3 * seen["num_layers"]["full_attention"]
    assert seen["quantization"] is None
