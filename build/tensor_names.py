"""Names of tensors as exporters write them, brought to those of the released checkpoints."""

from collections.abc import Iterable, Mapping

from trt_mtp.build.tensors import TensorInfo
from trt_mtp.errors import InputError

Tensors = Mapping[str, TensorInfo]

MTP = "mtp."
# what some exporters write -> what the released checkpoints have; the first that fits counts
PREFIXES = {
    "language_model.model.mtp.": MTP,
    "model.language_model.mtp.": MTP,
    "language_model.mtp.": MTP,
    "model.mtp.": MTP,
    "language_model.lm_head.": "lm_head.",
    "model.language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.language_model.",
}


def released_name(name: str) -> str:
    """The name that a released checkpoint has for the tensor.

    >>> released_name("language_model.model.layers.0.mlp.up_proj.weight")
    'model.language_model.layers.0.mlp.up_proj.weight'
    """
    prefix = foreign_prefix(name)
    return name if prefix is None else PREFIXES[prefix] + name.removeprefix(prefix)


def foreign_prefix(name: str) -> str | None:
    """The exporter's prefix that `name` begins with, None for a released name."""
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)


def with_released_names(tensors: Tensors) -> dict[str, TensorInfo]:
    """`tensors` under their released names; raises InputError where two get the same one."""
    named: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        released = released_name(name)
        if released in named:
            raise InputError(
                f"{info.file}: {name} is {released} a second time, which is in "
                f"{named[released].file.name}; expected one of them"
            )
        named[released] = info
    return named


def foreign_prefixes(names: Iterable[str]) -> tuple[str, ...]:
    """The exporters' prefixes among `names`, in the order of PREFIXES."""
    found = {foreign_prefix(name) for name in names}
    return tuple(prefix for prefix in PREFIXES if prefix in found)
