"""The fields of TensorRT-LLM's configuration, per version: checking, and setting by path."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from trt_mtp.build.trtllm_version import Version, parse_version
from trt_mtp.errors import InputError
from trt_mtp.files import nearest, parse_yaml, read_json

ROOT = "TorchLlmArgs"
TYPE = re.compile(
    r"(?P<name>\w+)"
    r"(?:\((?P<words>[^)]*)\))?"
    r"(?:\[(?P<inside>[^\]]*)\])?"
    r"(?P<null> null)?(?P<required> required)?"
)
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
    "map": (dict,),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One configuration field, as published for some version."""

    name: str
    kind: str  # bool, int, float, str, any, list, map, or the name of a class
    text: str  # the type as the data file writes it
    words: tuple[str, ...] = ()
    inside: str = ""  # the range, or the item type
    nullable: bool = False
    required: bool = False
    since: str = ""
    word_versions: tuple[tuple[str, str], ...] = ()  # word, and its first..last version


@cache
def _data() -> dict[str, dict[str, dict[str, Any]]]:
    path = Path(__file__).with_name("data") / "trtllm_fields.json"
    classes: dict[str, dict[str, dict[str, Any]]] = read_json(path)["classes"]
    return classes


@cache
def all_fields(class_name: str) -> Mapping[str, Field]:
    """Every field of a class at any version."""
    return {name: _parse_field(name, facts) for name, facts in _data()[class_name].items()}


def fields_of(class_name: str, version: Version) -> dict[str, Field]:
    """The fields of a class that are published for `version` or an older one."""
    return {
        name: _at(field, version) if field.word_versions else field
        for name, field in all_fields(class_name).items()
        if not field.since or parse_version(field.since) <= version
    }


def _at(field: Field, version: Version) -> Field:
    """`field` with the words that `version` allows."""
    words = tuple(word for word in field.words if _has_word(field, word, version))
    text = field.text
    for word in field.words:
        if word not in words:
            text = re.sub(rf"\b{word},|,{word}\b", "", text, count=1)
    return replace(field, words=words, text=text)


def _has_word(field: Field, word: str, version: Version) -> bool:
    first, _, last = dict(field.word_versions).get(word, "..").partition("..")
    return (not first or parse_version(first) <= version) and (
        not last or version <= parse_version(last)
    )


def _parse_field(name: str, facts: Mapping[str, Any]) -> Field:
    match = TYPE.fullmatch(facts["type"])
    assert match is not None, facts
    words = tuple((match["words"] or "").split(",")) if match["words"] else ()
    return Field(
        name=name,
        kind=match["name"],
        text=facts["type"].removesuffix(" required").removesuffix(" null"),
        words=words,
        inside=match["inside"] or "",
        nullable=match["null"] is not None,
        required=match["required"] is not None,
        since=facts.get("since", ""),
        word_versions=tuple(facts.get("words", {}).items()),
    )


def problems(llm_args: Mapping[str, Any], version: Version) -> list[str]:
    """One sentence for each thing in `llm_args` that `version` would refuse; empty when none."""
    return list(_class_problems(ROOT, llm_args, version, ""))


def _class_problems(
    class_name: str, values: Mapping[str, Any], version: Version, prefix: str
) -> Iterable[str]:
    fields = fields_of(class_name, version)
    for name, value in values.items():
        if name not in fields:
            yield unknown_key(class_name, name, version, prefix)
        else:
            yield from _value_problems(fields[name], value, version, f"{prefix}{name}")
    for name, field in fields.items():
        if field.required and name not in values:
            yield f"{prefix}{name} is missing; TensorRT-LLM {version} requires it"


def unknown_key(class_name: str, name: str, version: Version, prefix: str = "") -> str:
    """What to say about a key that `version` does not have."""
    newer = all_fields(class_name).get(name)
    hint = nearest(name, fields_of(class_name, version))
    if newer is not None:
        since = f"is published from {newer.since} on, not for TensorRT-LLM {version}"
        return f"{prefix}{name} {since}{hint}"
    return f"{prefix}{name} is no key of TensorRT-LLM {version} ({class_name}){hint}"


def _value_problems(field: Field, value: Any, version: Version, path: str) -> Iterable[str]:
    if (value is None and field.nullable) or field.kind == "any":
        return
    if field.kind not in PYTHON_TYPES:
        if isinstance(value, Mapping):
            yield from _class_problems(field.kind, value, version, f"{path}.")
        else:
            yield f"{path} is {value!r}; expected the keys of {field.kind}"
        return
    if not _fits(field, value):
        yield f"{path} is {value!r}; expected {field.text}{' or null' if field.nullable else ''}"


def _fits(field: Field, value: Any) -> bool:
    if isinstance(value, str) and field.words:
        return value in field.words
    if not _is_a(value, field.kind):
        return False
    if field.kind == "list":
        return all(_is_a(item, field.inside) for item in value)
    if field.kind == "map":
        return all(_is_a(number, "int") for number in (*value.keys(), *value.values()))
    return not field.inside or _in_range(value, field.inside)


def _is_a(value: Any, kind: str) -> bool:
    # bool is an int to Python, not to a configuration
    return isinstance(value, PYTHON_TYPES[kind]) and isinstance(value, bool) == (kind == "bool")


def _in_range(value: float, text: str) -> bool:
    low, _, high = text.partition("..")
    return float(low) <= value and (not high or value <= float(high))


def with_option(llm_args: Mapping[str, Any], assignment: str, version: Version) -> dict[str, Any]:
    """`llm_args` with `a.b=c` set; the value is read as YAML.

    Raises InputError for a key that `version` does not have, naming the nearest one,
    and for a value of the wrong type.
    """
    path, equals, text = assignment.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise InputError(
            f"--set {assignment!r}: expected key=value, for instance stream_interval=4"
        )
    value = parse_yaml(text, f"--set {assignment!r}")
    _require_known(names, version, assignment)
    changed = _assign(llm_args, names, value)
    for problem in problems(changed, version):
        if problem.startswith(path.strip()):
            raise InputError(f"--set {assignment}: {problem}")
    return changed


def _require_known(names: list[str], version: Version, assignment: str) -> None:
    class_name, prefix = ROOT, ""
    for depth, name in enumerate(names):
        fields = fields_of(class_name, version)
        if name not in fields:
            raise InputError(
                f"--set {assignment}: {unknown_key(class_name, name, version, prefix)}"
            )
        kind = fields[name].kind
        if kind == "any":
            return
        if kind in PYTHON_TYPES and depth + 1 < len(names):
            raise InputError(
                f"--set {assignment}: {prefix}{name} is a value, it has no keys below it"
            )
        class_name, prefix = kind, f"{prefix}{name}."


def _assign(values: Mapping[str, Any], names: list[str], value: Any) -> dict[str, Any]:
    name, *rest = names
    if not rest:
        return {**values, name: value}
    below = values.get(name)
    return {**values, name: _assign(below if isinstance(below, Mapping) else {}, rest, value)}
