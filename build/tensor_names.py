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
# what names have of a model that was saved inside a wrapper, and whose that is: before all of the
# name, or inside it as well, where parts of the model were wrapped
OUTER = {"module.": "DataParallel", "base_model.model.": "PEFT"}
INNER = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpoints",
    "_fp32_params.": "NeMo AutoModel",  # around what stays in fp32 under FSDP, such as A_log
}


def released_name(name: str) -> str:
    """The name that a released checkpoint has for the tensor.

    >>> released_name("language_model.model.layers.0.mlp.up_proj.weight")
    'model.language_model.layers.0.mlp.up_proj.weight'
    >>> released_name("module._orig_mod.model.norm.weight")
    'model.norm.weight'
    """
    name = unwrapped(name)
    prefix = foreign_prefix(name)
    return name if prefix is None else PREFIXES[prefix] + name.removeprefix(prefix)


def unwrapped(name: str) -> str:
    """`name` as the model inside of all wrappers has it."""
    for part in _wrappers(name):
        name = name.removeprefix(part) if part in OUTER else name.replace(part, "", 1)
    return name


def _wrappers(name: str) -> list[str]:
    """What the wrappers put into `name`, in the order in which to take it out."""
    found = []
    for part in INNER:
        found += [part] * name.count(part)
        name = name.replace(part, "")
    while outer := next(filter(name.startswith, OUTER), None):
        found.append(outer)
        name = name.removeprefix(outer)
    return found


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
    """What wrappers and exporters put before the names, in the order of the tables above."""
    found = set[str | None]()
    for name in names:
        found.update(_wrappers(name))
        found.add(foreign_prefix(unwrapped(name)))
    return tuple(part for part in (*OUTER, *INNER, *PREFIXES) if part in found)


def described(prefixes: Iterable[str]) -> str:
    """Foreign prefixes for a message, with whose they are.

    >>> described(["_orig_mod.", "model.mtp."])
    '_orig_mod.* (torch.compile), model.mtp.*'
    """
    whose = {part: f" ({tool})" for part, tool in (OUTER | INNER).items()}
    return ", ".join(f"{prefix}*{whose.get(prefix, '')}" for prefix in prefixes)
