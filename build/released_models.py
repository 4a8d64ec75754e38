"""The released models by name: their sizes in each precision, so that nothing is downloaded."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from trt_mtp.build.model_shape import ModelShape
from trt_mtp.errors import InputError
from trt_mtp.files import nearest, read_json

PRECISIONS = ("bf16", "fp8", "nvfp4")


class ReleasedModel(NamedTuple):
    """A released model in one precision."""

    name: str  # qwen3.8-27b
    precision: str
    state_dtype: str  # of its Gated-DeltaNet states
    shape: ModelShape


@cache
def released_models() -> dict[str, ReleasedModel]:
    """All of them by `NAME-PRECISION`; made by `python -m tests.model_sizes`."""
    facts = read_json(Path(__file__).with_name("data") / "models.json")["models"]
    return {
        f"{name}-{precision}": ReleasedModel(
            name, precision, model["state_dtype"], ModelShape(**{**model["shape"], **sizes})
        )
        for name, model in facts.items()
        for precision, sizes in model["precisions"].items()
    }


def find_model(name: str) -> ReleasedModel:
    """The model called `name`, such as qwen3.8-27b, Qwen/Qwen3.8-27B or qwen3.8-27b-fp8.

    Without a precision it is BF16. Raises InputError if there is none, with the nearest one.
    """
    models = released_models()
    wanted = name.rpartition("/")[2].lower()
    for key in (wanted, f"{wanted}-bf16"):
        if key in models:
            return models[key]
    names = sorted({model.name for model in models.values()})
    suggestion = nearest(wanted, [*models, *names])
    raise InputError(
        f"{name:.80} is neither a file nor a model known by name{suggestion} (known: "
        f"{', '.join(names)}, each also with -fp8 or -nvfp4)"
    )
