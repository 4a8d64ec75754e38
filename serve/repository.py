"""Variants as a Triton model repository: one folder with config.pbtxt and model.py for each."""

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_mtp import __version__
from trt_mtp.build.variant import EngineVariant
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import SMALL, read_json, read_text, to_json, write_atomic
from trt_mtp.serve.chat_format import CHAT_FORMAT
from trt_mtp.serve.contract import INPUTS, OUTPUTS, TensorSpec
from trt_mtp.serve.streaming_interval import NO_INTERVAL, GivenInterval, interval_in

PUBLIC_NAME = "qwen_mtp"
MARK = "written_by"  # the model parameter by which a folder is known to be ours
VARIANT_FOLDER = "variant_folder"
LOADED_MODELS = (
    "loaded.json"  # what a rollout left: the models that a server of this repository loads
)
SCHEDULE = "draft_len_schedule"  # a JSON object: largest batch -> draft length; may be absent
NO_GUIDED = "no_guided_decoding"  # there for a variant that can't hold its answer to a grammar
NO_MIN_TOKENS = "no_min_tokens"  # there for a variant that can't hold an end token back
MEASURED_ON = "measured_on"  # the parts behind the fingerprint: a JSON object of strings

# The same for every variant; the code is in the installed package. Python-backend processes
# take their packages from the `python3` that is first in PATH and ignore PYTHONPATH.
MODEL_PY = '''\
"""Written by trt-mtp; the model itself is trt_mtp/serve/triton_model.py."""

import os
import sys

# a file in Triton's working folder is no module of ours, unless that folder is installed (`pip
# install -e`): then it comes after the standard library
library = os.path.dirname(os.__file__)
own = sys.path.index(library) if library in sys.path else len(sys.path)
sys.path = [
    path
    for at, path in enumerate(sys.path)
    if path not in ("", ".") and (at > own or path != os.getcwd())
]
sys.path += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
from trt_mtp.serve.triton_model import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''

# Triton runs a program of this name in the model's folder in place of its own stub (python_backend,
# README.md, "Building Custom Python Backend Stub"), which finds its environment by PATH.
STUB = "triton_python_backend_stub"
STUB_VARIABLE = "TRT_MTP_STUB"  # where Triton's own is
STUB_SH = """\
#!/bin/sh
# Written by trt-mtp: the model runs with {python}, in its environment.
unset PYTHONPATH
PATH={folder}:$PATH
export PATH
exec "${{{variable}:-/opt/tritonserver/backends/python/triton_python_backend_stub}}" "$@"
"""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What trt-mtp sets of a Triton ModelConfig: a decoupled, unbatched python-backend model.

    Batching happens inside the engine, and an engine finds its own devices, so that one CPU
    instance is right for every kind of engine.
    """

    name: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)


def to_pbtxt(config: ModelConfig) -> str:
    """`config` as the text of a config.pbtxt."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    message: Any = pb.ModelConfig(name=config.name, backend="python", max_batch_size=0)
    message.model_transaction_policy.decoupled = True
    message.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    for spec in config.inputs:
        data_type = pb.DataType.Value(spec.data_type)
        message.input.add(name=spec.name, data_type=data_type, dims=spec.dims, optional=True)
    for spec in config.outputs:
        data_type = pb.DataType.Value(spec.data_type)
        message.output.add(name=spec.name, data_type=data_type, dims=spec.dims)
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    return text_format.MessageToString(message)


def from_pbtxt(text: str) -> ModelConfig:
    """The config in the text of a config.pbtxt; raises InputError if it is none."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    message: Any = pb.ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise InputError(f"not a Triton model configuration: {error}") from None

    def specs(tensors: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(tensor.name, pb.DataType.Name(tensor.data_type), tuple(tensor.dims))
            for tensor in tensors
        )

    parameters = {key: value.string_value for key, value in message.parameters.items()}
    return ModelConfig(message.name, specs(message.input), specs(message.output), parameters)


def model_name(variant: EngineVariant, public_name: str = PUBLIC_NAME) -> str:
    """The Triton model of a variant, `qwen_mtp_k3` for example."""
    return f"{public_name}_{variant.name}"


def variant_config(
    variant: EngineVariant,
    public_name: str = PUBLIC_NAME,
    interval: GivenInterval = NO_INTERVAL,
) -> ModelConfig:
    """The Triton model that serves `variant`, with `interval` for streams that ask for none."""
    schedule = variant.record.details.get(SCHEDULE)
    # TensorRT-LLM refuses min_tokens while it drafts (NVIDIA/TensorRT-LLM pull request 17955)
    is_bound = variant.record.engine == "tensorrt-llm" and variant.draft_length > 0
    chat = variant.record.chat_format
    return ModelConfig(
        name=model_name(variant, public_name),
        inputs=INPUTS,
        outputs=OUTPUTS,
        parameters={
            MARK: f"trt-mtp {__version__}",
            VARIANT_FOLDER: str(variant.folder.resolve()),
            # for who routes to it
            "variant": variant.name,
            "draft_length": str(variant.draft_length),
            "max_batch_size": str(variant.record.max_batch_size),
            "max_seq_len": str(variant.record.max_seq_len),
            "fingerprint": variant.record.fingerprint,
            MEASURED_ON: json.dumps(variant.record.measured_on, sort_keys=True),
            **({SCHEDULE: json.dumps(schedule)} if schedule else {}),
            **({NO_MIN_TOKENS: "true"} if is_bound else {}),
            **({NO_GUIDED: "true"} if variant.record.engine != "cpu" else {}),
            **({CHAT_FORMAT: json.dumps(chat)} if chat else {}),
            **{name: str(value) for name, value in interval.items()},
        },
    )


def render_repository(
    variants: Sequence[EngineVariant],
    folder: Path,
    public_name: str = PUBLIC_NAME,
    interval: GivenInterval = NO_INTERVAL,
) -> tuple[str, ...]:
    """Make `folder` a Triton repository of exactly `variants`; returns the models' names.

    Models that trt-mtp wrote before and that are not among them are removed, except those that a
    rollout left; whatever else lies there stays. Raises InputError for two variants of one name,
    and for a model folder of that name that is not ours.
    """
    configs = {model_name(variant, public_name): variant for variant in variants}
    if len(configs) < len(variants):
        names = sorted(variant.name for variant in variants)
        raise InputError(f"two variants have the same name ({', '.join(names)}); serve one of them")
    for name in configs:
        _require_ours(folder / name)
    for variant in variants:
        write_model(variant, folder, public_name, interval)
    for stale in sorted(set(_our_models(folder)) - set(configs) - set(loaded_models(folder))):
        remove_model(folder / stale)
    return tuple(configs)


def restore_models(
    variants: Sequence[EngineVariant], models: Sequence[str], folder: Path, interval: GivenInterval
) -> None:
    """Write those of `models` again that lack a file, as a cleaner of /tmp leaves them."""
    for variant in variants:
        model = folder / model_name(variant)
        has_stub = variant.record.details.get("python") is not None
        names = ("config.pbtxt", "1/model.py", *([STUB] if has_stub else []))
        if model.name in models and not all((model / name).is_file() for name in names):
            _write_files(variant, model, PUBLIC_NAME, interval)


def write_model(
    variant: EngineVariant,
    folder: Path,
    public_name: str = PUBLIC_NAME,
    interval: GivenInterval = NO_INTERVAL,
) -> str:
    """Add the model of `variant` to the repository `folder`; returns its name.

    Raises InputError for a model folder of that name that is not ours.
    """
    name = model_name(variant, public_name)
    _require_ours(folder / name)
    _write_files(variant, folder / name, public_name, interval)
    return name


def _write_files(
    variant: EngineVariant, model: Path, public_name: str, interval: GivenInterval
) -> None:
    write_atomic(model / "1" / "model.py", MODEL_PY)
    write_stub(variant, model / STUB)
    config = variant_config(variant, public_name, interval)
    write_atomic(model / "config.pbtxt", to_pbtxt(config))


def write_stub(variant: EngineVariant, file: Path) -> None:
    """Have Triton run `variant` with the Python that its record names; with ours, if none.

    Raises InputError when that Python is gone.
    """
    named = variant.record.details.get("python")
    if named is None:
        file.unlink(missing_ok=True)
        return
    python = Path(named)
    if not python.is_absolute() or not os.access(python, os.X_OK):
        raise InputError(
            f"{variant.folder} runs with {named}, which is not there; run `trt-mtp build` again "
            f"with --vllm-python"
        )
    text = STUB_SH.format(
        python=shlex.quote(named), folder=shlex.quote(str(python.parent)), variable=STUB_VARIABLE
    )
    write_atomic(file, text)
    file.chmod(0o755)


def interval_of(folder: Path) -> GivenInterval:
    """The streaming interval of the models that trt-mtp wrote into a repository, all alike."""
    for name in sorted(_our_models(folder)):
        config = folder / name / "config.pbtxt"
        if config.exists():
            return interval_in(from_pbtxt(read_text(config, SMALL)).parameters)
    return NO_INTERVAL


def loaded_models(folder: Path) -> tuple[str, ...]:
    """The models that a rollout left to be loaded from this repository; none before the first.

    Raises InputError for a file that is damaged.
    """
    if not (folder / LOADED_MODELS).exists():
        return ()
    value = read_json(folder / LOADED_MODELS, SMALL)
    models = value.get("models") if isinstance(value, dict) else None
    if not isinstance(models, list) or not models or not all(isinstance(m, str) for m in models):
        raise InputError(
            f"{folder / LOADED_MODELS}: models is not a list of names; remove the file"
        )
    return tuple(models)


def write_loaded_models(folder: Path, models: Sequence[str]) -> None:
    """Say which models a server of this repository loads from now on, when it is started again."""
    write_atomic(folder / LOADED_MODELS, to_json({"schema_version": 1, "models": list(models)}))


def _require_ours(model: Path) -> None:
    if model.exists() and not _is_ours(model):
        raise InputError(f"{model} was not written by trt-mtp; choose another folder")


def _our_models(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir() and _is_ours(path)]


def _is_ours(model: Path) -> bool:
    """True for a model folder that trt-mtp wrote; one without a config.pbtxt was left half-way."""
    config, model_py = model / "config.pbtxt", model / "1" / "model.py"
    try:
        if not config.exists():
            return model_py.is_file() and read_text(model_py, SMALL) == MODEL_PY
        return MARK in from_pbtxt(read_text(config, SMALL)).parameters
    except (OSError, InputError):
        return False


def remove_model(model: Path) -> None:
    """Remove a model's folder; one that is gone already is no error."""
    if not model.exists():
        return
    try:
        (model / "config.pbtxt").unlink(missing_ok=True)  # first: Triton no longer sees a model
        shutil.rmtree(model)
    except OSError as error:
        raise TrtMtpError(f"can't remove {model}: {error.strerror or error}") from error
