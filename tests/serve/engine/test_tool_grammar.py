"""Grammars of tool calls: what a small request may make of them."""

from typing import Any

import pytest

from trt_mtp.serve.engine.tool_grammar import MAX_CHARS, calls_grammar


@pytest.mark.parametrize("number", [10, 1_000])
def test_definitions_that_are_named_often_make_no_endless_grammar(number: int) -> None:
    """Each parameter that may refer to them has them beside it."""
    definitions: Any = {"large": {"type": "object", "description": "x" * 5_000}}
    properties: Any = {f"p{key}": {"$ref": "#/$defs/large"} for key in range(number)}
    parameters = {"$defs": definitions, "properties": properties}
    tool = {"function": {"name": "f", "parameters": parameters}}
    asked: Any = {"is_xml": True, "is_single": True, "special": (), "options": {}}
    if number == 10:
        assert len(calls_grammar([tool], **asked)) < MAX_CHARS
    else:
        with pytest.raises(ValueError, match="name their definitions too often"):
            calls_grammar([tool], **asked)
