"""How a checkpoint's answers have to be read: its form of tool calls, and where reasoning begins.

A variant's Triton model has it among its parameters, for a gateway that never sees the checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

MAX_REFERENCES = 8  # followed one after the other
MAX_REFERENCE_CHARS = 256
MAX_REFERENCE_PARTS = 16  # names in one
MAX_SCHEMAS = 256  # alternatives of a parameter, theirs, and what those refer to: all together
MAX_TYPES = 16  # in the list of one schema, where seven differ; values whose types are looked at
_TYPES: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
NOTHING: Mapping[str, Any] = MappingProxyType({})
Openings = tuple[bool, bool, bool]
CHAT_FORMAT = "chat_format"  # the model parameter; absent without a chat template


class ChatOptions(NamedTuple):
    """What a chat says of its answer's form."""

    enable_thinking: bool | None
    has_tools: bool


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a chat template says of the answers to it."""

    tool_calls: Literal["json", "xml"] = "json"  # Qwen3's form, or that of Qwen3-Coder and 3.5
    can_think: bool = False
    # whether the prompt ends inside the reasoning: without enable_thinking, with it true and false
    opens: Openings = (False, False, False)
    opens_with_tools: Openings = (False, False, False)

    def is_open(self, enable_thinking: bool | None, *, has_tools: bool) -> bool:
        """Whether an answer begins inside the reasoning."""
        opens = self.opens_with_tools if has_tools else self.opens
        return opens[{None: 0, True: 1, False: 2}[enable_thinking]]

    @classmethod
    def from_json(cls, text: str) -> "ChatFormat":
        """What a model's parameter says; the default where that is nothing, or not understood."""
        try:
            value: Any = json.loads(text)
            opens = _openings(value["opens"])
            with_tools = _openings(value.get("opens_with_tools", opens))
            is_xml = value["tool_calls"] == "xml"
            can_think = value["can_think"] is True
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls()
        return cls("xml" if is_xml else "json", can_think, opens, with_tools)


def _openings(value: Any) -> Openings:
    default, on, off = (each is True for each in value)
    return default, on, off


def kinds_of(schema: Any, root: Mapping[str, Any] = NOTHING) -> frozenset[str]:
    """The JSON types that a parameter's schema allows; a text where it says nothing.

    With what its `$ref`, and those of its alternatives, name in `root`. Nothing is copied, and the
    first MAX_SCHEMAS are looked at: a few KB may name something large thousands of times, and an
    answer may have such a parameter again and again.
    """
    kinds: set[str] = set()
    left: list[Any] = [schema]
    num_left = MAX_SCHEMAS
    while left and num_left > 0:
        layers = layers_of(left.pop(0), root)
        num_left -= max(len(layers), 1)
        stated = first_stated(layers, "type")
        kinds.update([stated] if isinstance(stated, str) else _texts(stated))
        if stated is None:
            kinds |= _kinds_of_values(layers)
        for key in ("anyOf", "oneOf"):
            alternatives = first_stated(layers, key)
            if isinstance(alternatives, list):
                left += alternatives[: MAX_SCHEMAS - len(left)]
    return frozenset(kinds or {"string"})


def parameter_kinds(schema: Any, key: str, others: Mapping[str, Any] = NOTHING) -> frozenset[str]:
    """The JSON types that a function's parameters allow for one of them, beside `others`.

    It may be among the properties of what they refer to, of all in `allOf`, or of an alternative;
    alternatives with another `const` for one of `others` count only where no other has it.
    """
    stated: list[tuple[Any, bool]] = []
    left: list[Any] = [schema]
    num_left = MAX_SCHEMAS
    while left and num_left > 0:
        num_left -= 1
        part = left.pop(0)
        if not isinstance(part, Mapping):
            continue
        properties = part.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            stated.append((properties[key], _goes_with(properties, others)))
        left += parts_of(part, schema)
        for choice in ("anyOf", "oneOf"):
            alternatives = part.get(choice)
            if isinstance(alternatives, list):
                left += alternatives[: max(MAX_SCHEMAS - len(left), 0)]
    fitting = [each for each, fits in stated if fits] or [each for each, _ in stated]
    return kinds_of({"anyOf": fitting}, schema)


def _goes_with(properties: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    stated = ((properties.get(key), value) for key, value in values.items())
    return not any(
        isinstance(schema, Mapping) and "const" in schema and schema["const"] != value
        for schema, value in stated
    )


def parts_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Any]:
    """What holds together with what a schema says: what it refers to, and its `allOf`."""
    target, parts = _named(schema.get("$ref"), root), schema.get("allOf")
    first = [] if target is None else [target]
    return first + (parts[:MAX_SCHEMAS] if isinstance(parts, list) else [])


def layers_of(schema: Any, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A schema, what it refers to and what its `allOf` has; what is said first holds."""
    layers: list[Mapping[str, Any]] = []
    left: list[Any] = [schema]
    while left and len(layers) <= MAX_REFERENCES:
        layer = left.pop(0)
        if isinstance(layer, Mapping):
            layers.append(layer)
            parts = layer.get("allOf")
            left.append(_named(layer.get("$ref"), root))
            left += parts[:MAX_REFERENCES] if isinstance(parts, list) else []
    return layers


def first_stated(layers: Sequence[Mapping[str, Any]], key: str) -> Any:
    """What the first of `layers` that has `key` says; None where none has."""
    return next((layer[key] for layer in layers if key in layer), None)


def _kinds_of_values(layers: Sequence[Mapping[str, Any]]) -> set[str]:
    """The types of the values that `const` or `enum` has, of the first MAX_TYPES."""
    const = [layer["const"] for layer in layers if "const" in layer]
    values = const or first_stated(layers, "enum")
    listed = values[:MAX_TYPES] if isinstance(values, list) else []
    return {_TYPES[type(value)] for value in listed if type(value) in _TYPES}


def _named(reference: Any, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a reference names in `root`; None for nothing."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    if len(reference) > MAX_REFERENCE_CHARS or reference.count("/") > MAX_REFERENCE_PARTS:
        return None
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        target = target.get(part) if isinstance(target, Mapping) else None
    return target if isinstance(target, Mapping) else None


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """`schema` with what its `$ref` names in `root`, the same for its `allOf` and alternatives."""
    schema = _followed(schema, root)
    if not isinstance(schema, Mapping):
        return schema
    listed = ("allOf", "anyOf", "oneOf")
    lists = {key: schema[key] for key in listed if isinstance(schema.get(key), list)}
    return {**schema, **{key: [_followed(e, root) for e in each] for key, each in lists.items()}}


def _followed(schema: Any, root: Mapping[str, Any]) -> Any:
    for _ in range(MAX_REFERENCES):
        target = _named(schema.get("$ref"), root) if isinstance(schema, Mapping) else None
        if target is None:
            break
        own = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**target, **own} if own else target  # not a copy for each that refers to it
    return schema


def _texts(value: Any) -> list[str]:
    texts = value[:MAX_TYPES] if isinstance(value, list) else []
    return [each for each in texts if isinstance(each, str)]
