"""Formats in JSON Schemas: those that are notes for readers are left out of a grammar."""

from collections.abc import Iterator, Mapping
from typing import Any

# that JSON Schema defines (2020-12, Validation, 7.3): what they say has to be kept to, or refused
DEFINED = frozenset(
    (
        "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname",
        "ipv4", "ipv6", "uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template",
        "json-pointer", "relative-json-pointer", "regex",
    )
)  # fmt: skip
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = (
    "items", "additionalItems", "additionalProperties", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "not", "if", "then", "else",
)  # fmt: skip


def without_notes(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `schema` without formats that are notes for readers (`int32`, `password`, `path`).

    Generators of schemas write them; validators don't look at formats that they don't know.
    """
    root = dict(schema)
    left = [root]
    while left:  # no recursion: clients choose the depth
        each = left.pop()
        form = each.get("format")
        if isinstance(form, str) and form not in DEFINED:
            del each["format"]
        left += _copied_parts(each)
    return root


def _copied_parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas in `schema`, each a copy that takes the place of what was there."""
    for key in _SINGLE:
        if isinstance(schema.get(key), Mapping):
            schema[key] = dict(schema[key])
            yield schema[key]
    for key in _LISTED:
        if isinstance(schema.get(key), list):
            schema[key] = [_copy(each) for each in schema[key]]
            yield from (each for each in schema[key] if isinstance(each, dict))
    for key in _BY_NAME:
        if isinstance(schema.get(key), Mapping):
            schema[key] = {name: _copy(each) for name, each in schema[key].items()}
            yield from (each for each in schema[key].values() if isinstance(each, dict))


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
