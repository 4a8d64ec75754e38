"""The model repository: config.pbtxt there and back, and folders that only we touch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import CliResult
from tests.variants import make_variant
from trt_mtp.build.variant import write_variant
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import INPUTS, OUTPUTS, TensorSpec
from trt_mtp.serve.repository import (
    MODEL_PY,
    ModelConfig,
    from_pbtxt,
    interval_of,
    render_repository,
    to_pbtxt,
    variant_config,
)
from trt_mtp.serve.serving import resolve_variants

NAMES = st.text(min_size=1, max_size=20)
SPECS = st.builds(
    TensorSpec,
    name=NAMES,
    data_type=st.sampled_from(["TYPE_STRING", "TYPE_BOOL", "TYPE_INT32", "TYPE_FP32"]),
    dims=st.lists(st.integers(-1, 9), min_size=1, max_size=3).map(tuple),
)
CONFIGS = st.builds(
    ModelConfig,
    name=NAMES,
    inputs=st.lists(SPECS, max_size=3).map(tuple),
    outputs=st.lists(SPECS, max_size=3).map(tuple),
    parameters=st.dictionaries(NAMES, NAMES, max_size=3),
)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file in `folder` and what it holds."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@given(CONFIGS)
def test_a_config_survives_its_text(config: ModelConfig) -> None:
    """A configuration read back from its config.pbtxt is the same one."""
    assert from_pbtxt(to_pbtxt(config)) == config


def test_text_that_is_no_config_is_refused() -> None:
    """Text that is no config.pbtxt is an InputError, not a protobuf one."""
    with pytest.raises(InputError, match="not a Triton model configuration"):
        from_pbtxt("name: [")


def test_a_variant_becomes_a_decoupled_python_model(tmp_path: Path) -> None:
    """The config names the variant's folder and the whole contract, and streams."""
    text = to_pbtxt(variant_config(make_variant(tmp_path, 3)))
    config = from_pbtxt(text)
    assert (config.name, config.inputs, config.outputs) == ("qwen_mtp_k3", INPUTS, OUTPUTS)
    assert config.parameters["variant_folder"] == str(tmp_path / "k3")
    assert "decoupled: true" in text
    assert 'backend: "python"' in text
    assert "\nmax_batch_size:" not in text  # 0, the default: the engine batches
    assert config.parameters["max_batch_size"] == "8"  # of the engine


def test_a_repository_has_one_streaming_interval(tmp_path: Path) -> None:
    """Its models' parameters say it, so that a rollout gives a new one the same."""
    interval = {"streaming_interval": 4, "streaming_interval_ms": 50}
    variants = [make_variant(tmp_path / "engines", k) for k in (0, 3)]
    render_repository(variants, tmp_path / "r")
    assert interval_of(tmp_path / "r") == {}
    render_repository(variants, tmp_path / "r", interval=interval)
    assert interval_of(tmp_path / "r") == interval
    config = tmp_path / "r" / "qwen_mtp_k0" / "config.pbtxt"
    config.write_text(config.read_text().replace('"50"', '"-50"'))
    with pytest.raises(InputError, match="streaming_interval_ms is '-50'"):
        interval_of(tmp_path / "r")


def test_the_inputs_of_the_llmapi_model_keep_their_types() -> None:
    """Clients of TensorRT-LLM's llmapi model find its inputs under their names and types."""
    types = {spec.name: (spec.data_type, spec.dims) for spec in INPUTS}
    assert types["text_input"][0] == "TYPE_STRING"
    assert types["streaming"] == ("TYPE_BOOL", (1,))
    assert types["sampling_param_max_tokens"] == ("TYPE_INT32", (1,))
    assert types["sampling_param_temperature"] == ("TYPE_FP32", (1,))
    assert types["sampling_param_seed"] == ("TYPE_UINT64", (1,))
    assert types["sampling_param_stop"] == ("TYPE_STRING", (-1,))


def test_rendering_twice_changes_nothing(tmp_path: Path) -> None:
    """A second rendering leaves the same files with the same content."""
    variants = [make_variant(tmp_path / "engines", k) for k in (0, 3)]
    repository = tmp_path / "repository"
    assert render_repository(variants, repository) == ("qwen_mtp_k0", "qwen_mtp_k3")
    before = snapshot(repository)
    render_repository(variants, repository)
    assert snapshot(repository) == before
    assert set(before) == {
        f"qwen_mtp_k{k}/{file}" for k in (0, 3) for file in ("config.pbtxt", "1/model.py")
    }


def test_a_variant_runs_with_the_python_of_its_record(tmp_path: Path) -> None:
    """A stub in its folder starts Triton's own with that environment first, and no PYTHONPATH."""
    plain = make_variant(tmp_path / "engines", 0)
    python = tmp_path / "a venv" / "python"
    python.parent.mkdir()
    details = {"python": str(python)}
    with pytest.raises(InputError, match="which is not there; run `trt-mtp build` again"):
        render_repository(
            [write_variant(plain.folder, replace(plain.record, details=details))], tmp_path / "r"
        )
    python.symlink_to(sys.executable)
    render_repository(
        [write_variant(plain.folder, replace(plain.record, details=details))], tmp_path / "r"
    )
    stub = tmp_path / "r" / "qwen_mtp_k0" / "triton_python_backend_stub"
    environment = {"TRT_MTP_STUB": "/usr/bin/env", "PATH": os.environ["PATH"], "PYTHONPATH": "x"}
    seen = subprocess.run([stub], env=environment, capture_output=True, text=True, check=True)
    assert f"PATH={python.parent}:{os.environ['PATH']}" in seen.stdout.splitlines()
    assert "PYTHONPATH" not in seen.stdout
    render_repository([write_variant(plain.folder, plain.record)], tmp_path / "r")
    assert not stub.exists()


def test_triton_may_work_where_a_model_is_installed_from(tmp_path: Path) -> None:
    """Its working folder is left out of what is imported, unless an installed package named it."""
    (tmp_path / "json.py").write_text("raise SystemError('shadowed by the working folder')")
    library = os.path.dirname(os.__file__)
    paths = ["", ".", str(tmp_path), library, "/packages", str(tmp_path)]
    model = MODEL_PY.partition("from trt_mtp")[0] + "import json\nprint(json.dumps(sys.path))"
    code = f"import sys\nsys.path = {paths!r}\nexec({model!r})"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert json.loads(ran.stdout) == [library, "/packages", str(tmp_path)]


def test_only_our_models_are_removed(tmp_path: Path) -> None:
    """A model that is no longer asked for goes; another's model and loose files stay."""
    variants = [make_variant(tmp_path / "engines", k) for k in (0, 1)]
    repository = tmp_path / "repository"
    render_repository(variants, repository)
    (repository / "theirs").mkdir()
    (repository / "theirs" / "config.pbtxt").write_text('backend: "onnxruntime"')
    (repository / "notes.txt").write_text("keep")
    render_repository(variants[:1], repository)
    assert {path.name for path in repository.iterdir()} == {"qwen_mtp_k0", "theirs", "notes.txt"}


def test_a_folder_of_someone_else_is_not_overwritten(tmp_path: Path) -> None:
    """A model folder of the same name that trt-mtp didn't write is refused and left alone."""
    repository = tmp_path / "repository"
    (repository / "qwen_mtp_k0").mkdir(parents=True)
    (repository / "qwen_mtp_k0" / "config.pbtxt").write_text('backend: "onnxruntime"')
    before = snapshot(repository)
    with pytest.raises(InputError, match="was not written by trt-mtp"):
        render_repository([make_variant(tmp_path / "engines", 0)], repository)
    assert snapshot(repository) == before


def test_a_model_that_was_left_half_way_is_ours(tmp_path: Path) -> None:
    """A rendering that was killed between its two files is completed by the next one."""
    variant = make_variant(tmp_path / "engines", 0)
    repository = tmp_path / "repository"
    render_repository([variant], repository)
    before = snapshot(repository)
    (repository / "qwen_mtp_k0" / "config.pbtxt").unlink()
    render_repository([variant], repository)
    assert snapshot(repository) == before


def test_variants_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two variants that would be one Triton model can't be rendered together."""
    variants = [make_variant(tmp_path / name, 1) for name in ("a", "b")]
    with pytest.raises(InputError, match="two variants have the same name"):
        render_repository(variants, tmp_path / "repository")


def test_variants_and_folders_of_variants_can_be_named(tmp_path: Path) -> None:
    """A variant named twice, once by its folder's folder, is there once, by draft length."""
    for k in (3, 0):
        make_variant(tmp_path, k)
    assert [v.name for v in resolve_variants([tmp_path / "k3", tmp_path])] == ["k0", "k3"]


def test_variants_of_different_checkpoints_are_not_served_together(tmp_path: Path) -> None:
    """One public model can't be made of two checkpoints."""
    make_variant(tmp_path, 0, fingerprint="f0")
    make_variant(tmp_path, 1, fingerprint="f1")
    with pytest.raises(InputError, match="different checkpoints"):
        resolve_variants([tmp_path])


def test_repo_render_says_how_to_start_triton(
    cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    """`repo render --json` names the models and a command that starts Triton with them."""
    make_variant(tmp_path / "engines", 1)
    result = cli("repo", "render", tmp_path / "engines", "-o", tmp_path / "out", "--json")
    value = json.loads(result.out)
    assert (result.code, value["schema_version"]) == (0, 1)
    assert value["models"] == ["qwen_mtp_k1"]
    assert f"--model-repository={tmp_path / 'out'}" in value["start"]
    assert "--load-model=qwen_mtp_k1" in value["start"]


@pytest.mark.parametrize("command", [["serve"], ["repo", "render"]])
def test_a_folder_without_variants_is_refused(
    cli: Callable[..., CliResult], tmp_path: Path, command: list[str]
) -> None:
    """A folder that has no variants is one sentence and exit code 2."""
    result = cli(*command, tmp_path)
    assert result.code == 2
    assert result.err == f"trt-mtp: {tmp_path} has no variants; run `trt-mtp build`\n"
