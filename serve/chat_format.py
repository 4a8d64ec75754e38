"""How a checkpoint's answers have to be read: its form of tool calls, and where reasoning begins.

A variant's Triton model has it among its parameters, for a gateway that never sees the checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MAX_REFERENCES = 8  # followed one after the other
CHAT_FORMAT = "chat_format"  # the model parameter; absent without a chat template


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a chat template says of the answers to it."""

    tool_calls: Literal["json", "xml"] = "json"  # Qwen3's form, or that of Qwen3-Coder and 3.5
    can_think: bool = False
    # whether the prompt ends inside the reasoning: without enable_thinking, with it true and false
    opens: tuple[bool, bool, bool] = (False, False, False)

    def is_open(self, enable_thinking: bool | None) -> bool:
        """Whether an answer begins inside the reasoning."""
        return self.opens[{None: 0, True: 1, False: 2}[enable_thinking]]

    @classmethod
    def from_json(cls, text: str) -> "ChatFormat":
        """What a model's parameter says; the default where that is nothing, or not understood."""
        try:
            value: Any = json.loads(text)
            opens = tuple(value["opens"])
            is_xml = value["tool_calls"] == "xml"
            can_think = value["can_think"] is True
        except (ValueError, KeyError, TypeError):
            return cls()
        if len(opens) != 3:
            return cls()
        default, on, off = (each is True for each in opens)
        return cls("xml" if is_xml else "json", can_think, (default, on, off))


def kinds_of(schema: Any) -> frozenset[str]:
    """The JSON types that a parameter's schema allows; a text where it says nothing."""
    if not isinstance(schema, Mapping):
        return frozenset({"string"})
    kinds: set[str] = set()
    stated = schema.get("type")
    kinds.update([stated] if isinstance(stated, str) else _texts(stated))
    for alternatives in (schema.get("anyOf"), schema.get("oneOf")):
        for each in alternatives if isinstance(alternatives, list) else ():
            kinds |= kinds_of(each)
    return frozenset(kinds or {"string"})


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """`schema` with what its `$ref` names in `root`, and the same for its alternatives."""
    schema = _followed(schema, root)
    if not isinstance(schema, Mapping):
        return schema
    lists = {key: schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)}
    return {**schema, **{key: [_followed(e, root) for e in each] for key, each in lists.items()}}


def _followed(schema: Any, root: Mapping[str, Any]) -> Any:
    for _ in range(MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        target: Any = root
        for part in reference.removeprefix("#/").split("/"):
            target = target.get(part) if isinstance(target, Mapping) else None
        if not isinstance(target, Mapping):
            break
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
