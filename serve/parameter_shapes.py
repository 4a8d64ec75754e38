"""What a function's parameters may be together: a shape for each alternative of their schema.

Generators of schemas have them behind `$ref` and `allOf`, or in the alternatives of `anyOf` and
`oneOf` (unions of models, `anyOf: [{"required": ["a"]}, {"required": ["b"]}]`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from trt_mtp.serve.chat_format import MAX_SCHEMAS, first_stated, layers_of, parts_of

MAX_SHAPES = 32


class Shape(NamedTuple):
    """Parameters that go together, in their order, each with all that is said of it."""

    required: frozenset[str]
    properties: Mapping[str, tuple[Any, ...]]  # key -> schemas, none where it is only required

    def told_apart(self) -> "Shape":
        """With what has a `const` required: it says which of several shapes this is.

        Where it has a default as well, schemas don't require it, but who reads the call does.
        """
        consts = (
            key
            for key, schemas in self.properties.items()
            if any(isinstance(schema, Mapping) and "const" in schema for schema in schemas)
        )
        return self._replace(required=self.required.union(consts))


def shapes_of(parameters: Mapping[str, Any]) -> list[Shape]:
    """The shapes that a schema of parameters allows, each once.

    Raises ValueError for more than MAX_SHAPES, or where MAX_SCHEMAS don't hold what they are of.
    """
    shapes: list[Shape] = []
    drafts = [_Draft([parameters])]
    num_left = MAX_SCHEMAS
    while drafts:
        draft = drafts.pop()
        while draft.left:
            num_left -= 1
            draft.add(draft.left.pop(0), parameters)
            if num_left < 0:
                raise ValueError(f"more than {MAX_SCHEMAS} schemas in allOf, anyOf, oneOf and $ref")
        if draft.choices:
            drafts += reversed(list(draft.chosen(parameters)))
        else:
            shape = draft.shape()
            shapes += [] if shape in shapes else [shape]
        if len(shapes) + len(drafts) > MAX_SHAPES:
            raise ValueError(f"more than {MAX_SHAPES} alternatives in anyOf and oneOf")
    return [shape.told_apart() for shape in shapes] if len(shapes) > 1 else shapes


@dataclass(slots=True)
class _Draft:
    """A shape of which parts are still to be looked at, or chosen."""

    left: list[Any]
    choices: list[tuple[str, list[Any]]] = field(default_factory=list)
    properties: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()

    def add(self, part: Any, root: Mapping[str, Any]) -> None:
        """Take what a schema says, and what it says with others for later."""
        if not isinstance(part, Mapping):
            return
        for key, schema in _properties(part).items():
            stated = self.properties.get(key, ())
            if not any(schema is each for each in stated):
                self.properties[key] = (*stated, schema)
        self.required |= _required(part)
        self.left = [*parts_of(part, root), *self.left]
        for key in ("anyOf", "oneOf"):
            alternatives = part.get(key)
            if isinstance(alternatives, list):
                objects = [each for each in alternatives if _may_be_object(each, root)]
                self.choices += [(key, objects)] if objects else []

    def chosen(self, root: Mapping[str, Any]) -> Iterator["_Draft"]:
        """One for each alternative of the first choice."""
        (key, alternatives), *choices = self.choices
        if len(alternatives) > MAX_SHAPES:
            raise ValueError(f"more than {MAX_SHAPES} alternatives in anyOf and oneOf")
        apart = _others(alternatives, root) if key == "oneOf" else [frozenset()] * len(alternatives)
        for alternative, others in zip(alternatives, apart, strict=True):
            yield replace(
                self,
                left=[alternative],
                choices=list(choices),
                properties=dict(self.properties),
                excluded=self.excluded | others,
            )

    def shape(self) -> Shape:
        """What is allowed where nothing is left."""
        left_out = self.excluded - self.required
        found = {key: value for key, value in self.properties.items() if key not in left_out}
        missing = sorted(self.required - found.keys())
        return Shape(self.required, {**found, **dict.fromkeys(missing, ())})


def _others(alternatives: Sequence[Any], root: Mapping[str, Any]) -> list[frozenset[str]]:
    """For each alternative of a `oneOf` the keys that only others require: they might fit too."""
    layers = [layers_of(each, root) for each in alternatives]
    required = [frozenset().union(*map(_required, each)) for each in layers]
    own = [keys.union(*map(_properties, each)) for keys, each in zip(required, layers, strict=True)]
    every = frozenset().union(*required)
    return [every - keys for keys in own]


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _required(schema: Mapping[str, Any]) -> frozenset[str]:
    keys = schema.get("required")
    texts = keys if isinstance(keys, list) else ()
    return frozenset(key for key in texts if isinstance(key, str))


def _may_be_object(schema: Any, root: Mapping[str, Any]) -> bool:
    kinds = first_stated(layers_of(schema, root), "type")
    is_stated = isinstance(kinds, str | list)
    return schema is not False and (not is_stated or kinds == "object" or "object" in kinds)
