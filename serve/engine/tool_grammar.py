"""The grammar of tool calls in a checkpoint's own form, as llguidance's kind of Lark.

The forms are those that the gateway reads calls in: JSON in <tool_call> (Qwen3), or tags whose
values are texts or JSON (Qwen3-Coder, Qwen3.5). Lark's syntax, with %json, [suffix] and special
tokens in angle brackets: github.com/guidance-ai/llguidance, docs/syntax.md.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trt_mtp.serve.chat_format import kinds_of, layers_of, resolved
from trt_mtp.serve.engine.schema_formats import without_notes
from trt_mtp.serve.parameter_shapes import shapes_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CHARS = 1 << 21  # of a grammar: definitions stand beside each parameter that may use them
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
DEFINITIONS = ("$defs", "definitions")


def calls_grammar(
    tools: Sequence[Mapping[str, Any]],
    *,
    is_xml: bool,
    is_single: bool,
    special: Sequence[str],
    options: Mapping[str, Any],
    schema: Mapping[str, Any] | None = None,
) -> str:
    """The grammar of one call of `tools`, or (unless `is_single`) of several, a line between them.

    With a `schema`, the answer may be JSON as that says instead.
    `special` are the texts that the tokenizer has a token of its own for; `options` are
    llguidance's for each JSON schema. Raises ValueError for a grammar that gets too long.
    """
    opening, closing = (mark if mark in special else json.dumps(mark) for mark in (OPEN, CLOSE))
    rules = [f"calls: call{'' if is_single else f' ({_text(chr(10))} call)*'}"]
    if schema is None:
        rules.insert(0, "start: calls")
    else:
        rules = ["start: calls | answer", *rules, f"answer: {_json(schema, options)}"]
    names = " | ".join(f"call_{at}" for at in range(len(tools)))
    rules.append(f"call: {opening} {_text(chr(10))} ({names}) {_text(chr(10))} {closing}")
    for at, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters")
        if not isinstance(parameters, Mapping):
            parameters = NO_PARAMETERS
        if is_xml:
            rules += _within(
                _xml_call(f"call_{at}", function["name"], parameters, options),
                MAX_CHARS - sum(map(len, rules)),
            )
        else:
            rules.append(_json_call(f"call_{at}", function["name"], parameters, options))
    return "\n".join(rules)


def _within(rules: Iterator[str], num_chars: int) -> Iterator[str]:
    for rule in rules:
        num_chars -= len(rule)
        if num_chars < 0:
            raise ValueError(
                "the tools' schemas name their definitions too often, or have too many alternatives"
            )
        yield rule


def _json_call(
    rule: str, name: str, parameters: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
    return f"{rule}: {_text(head)} {_json(parameters, options)} {_text('}')}"


def _xml_call(
    rule: str, name: str, parameters: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[str]:
    """Parameters come in the schema's order; those that are not required may be left out."""
    try:
        shapes = shapes_of(parameters)
    except ValueError as error:
        raise ValueError(
            f"the parameters of {name!r} have {error}: give it fewer, or make several tools of it"
        ) from None
    definitions = {name: parameters[name] for name in DEFINITIONS if name in parameters}
    rules: dict[tuple[Any, ...], str] = {}  # of parameters, which shapes have in common
    calls = []
    for shape in shapes:
        parts = []
        for key, schemas in shape.properties.items():
            same = (key, *map(id, schemas))
            if same not in rules:
                part = rules[same] = f"{rule}_{len(rules)}"
                value = f"{part}_value"
                yield f"{part}: {_text(f'<parameter={key}>{chr(10)}')} {value}"
                schema = schemas[0] if len(schemas) == 1 else {"allOf": list(schemas)}
                yield from _xml_value(value, schema, parameters, definitions, options)
            parts.append(rules[same] if key in shape.required else f"{rules[same]}?")
        head = _text(f"<function={name}>{chr(10)}")
        calls.append(f"{head} {' '.join(parts)} {_text('</function>')}")
    yield f"{rule}: {' | '.join(calls)}"


def _xml_value(
    rule: str,
    schema: Any,
    root: Mapping[str, Any],
    definitions: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[str]:
    """A text as it is, which only `enum` and `const` bound; JSON for what can't be a text."""
    end = "\n</parameter>\n"
    if "string" not in kinds_of(schema, root):
        yield f"{rule}: {_json({**definitions, **resolved(schema, root)}, options)} {_text(end)}"
        return
    texts = _choices(schema, root)
    if texts:
        yield f"{rule}: {' | '.join(_text(text + end) for text in texts)}"
    else:
        yield f"{rule}[suffix={_text(end)}]: /(?s:.*)/"


def _choices(schema: Any, root: Mapping[str, Any]) -> list[str] | None:
    """The texts that all `const` and `enum` of a schema allow; None where there are none."""
    texts: list[str] | None = None
    for layer in layers_of(schema, root):
        values = [layer["const"]] if "const" in layer else layer.get("enum")
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            both = frozenset(values)
            texts = [text for text in (values if texts is None else texts) if text in both]
    return texts


def _json(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    text = json.dumps({**without_notes(schema), "x-guidance": options}, ensure_ascii=False)
    return f"%json {text}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
