"""Requests with grammars, and engines of several draft lengths that have to answer them alike."""

from collections.abc import Sequence
from typing import Any

from tests.engine_fixtures import Answer, generate
from trt_mtp.serve.engine.base import Guided, Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine

DRAFT_LENGTHS = (0, 1, 3, 5)
Engines = dict[int, CpuEngine]
PERSON: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: Any = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "days": {"$ref": "#/$defs/days"},
                },
                "required": ["unit"],
                "additionalProperties": False,
                "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            },
        },
    },
    {"type": "function", "function": {"name": 'the "time"'}},
)
REGEX = Guided("regex", "[A-Z][a-z]{1,9}( [0-9]{2,4})?")
CHOICE = Guided("choice", ["Paris", "Paris or Rome", 'a "b"\n', "世界"])


def requests_of(prompt: tuple[int, ...], guided: Guided, **sampling: Any) -> list[Request]:
    """A greedy request and two that are sampled."""
    return [
        Request(
            prompt,
            SamplingParams(**{"max_tokens": 150, "seed": seed, "temperature": heat, **sampling}),
            guided=guided,
        )
        for seed, heat in enumerate((0.0, 0.7, 1.0))
    ]


def same_at_every_length(engines: Engines, requests: Sequence[Request]) -> list[Answer]:
    """The answers, after checking that all draft lengths give them, and their counters add up."""
    expected = generate(engines[0], requests)
    for k in DRAFT_LENGTHS:
        for plain, answer in zip(expected, generate(engines[k], requests), strict=True):
            assert answer.last.error == ""
            assert (answer.tokens, answer.text) == (plain.tokens, plain.text)
            assert answer.last.finish_reason == plain.last.finish_reason
            counters = answer.last.counters
            assert counters.num_draft_tokens == k * counters.num_steps
            assert len(answer.tokens) == 1 + counters.num_steps + counters.num_accepted_draft_tokens
    return expected
