"""Tool calls and reasoning through OpenAI's own package, whole and streamed."""

import json
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from tests.gateway_fixtures import GatewayThread

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALLS = (
    'I ask.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
)
PIECES = [CALLS[at : at + 7] for at in range(0, len(CALLS), 7)]


def streamed(client: OpenAI, **request: Any) -> ChatCompletion:
    """The answer that the package puts together from a stream."""
    with client.chat.completions.stream(model="qwen_mtp", **request) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


@pytest.mark.parametrize("streams", [False, True])
def test_calls(client: OpenAI, script: Any, streams: bool) -> None:
    """Name and arguments, an id for each, and the text before them."""
    request = {"messages": script(texts=PIECES, finish="stop"), "tools": TOOLS}
    if streams:
        answer = streamed(client, **request)
    else:
        answer = client.chat.completions.create(model="qwen_mtp", **request)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I ask."
    calls: Any = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "weather"]
    assert [json.loads(call.function.arguments) for call in calls] == [
        {"city": "Paris"},
        {"city": "Köln"},
    ]
    assert len({call.id for call in calls}) == 2


def test_a_call_begins_once(client: OpenAI, script: Any) -> None:
    """Id, type and name are in its first chunk and absent later, not null."""
    chunks = client.chat.completions.create(
        model="qwen_mtp", messages=script(texts=PIECES), tools=TOOLS, stream=True
    )
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    firsts = [call for call in calls if call.id]
    assert [(call.index, call.type) for call in firsts] == [(0, "function"), (1, "function")]
    for call in calls:
        if call not in firsts:
            assert call.model_fields_set == {"index", "function"}
            assert call.function is not None
            assert call.function.model_fields_set == {"arguments"}


@pytest.mark.parametrize("streams", [False, True])
def test_a_call_that_is_cut_says_so(client: OpenAI, script: Any, streams: bool) -> None:
    """`length` stays `length`; no client takes the arguments for whole."""
    request = {"model": "qwen_mtp", "messages": script(texts=PIECES[:8]), "tools": TOOLS}
    reasons, arguments = [], ""
    answer: Any = client.chat.completions.create(**request, stream=streams)
    for part in answer if streams else [answer]:
        [choice] = part.choices
        reasons.append(choice.finish_reason)
        for call in (choice.delta if streams else choice.message).tool_calls or ():
            arguments += call.function.arguments or ""
    assert reasons[-1] == "length"
    assert arguments == '{"ci'


def test_without_tools_calls_are_text(client: OpenAI, script: Any) -> None:
    """Also where they were taken out by tool_choice."""
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = client.chat.completions.create(
            model="qwen_mtp", messages=script(texts=PIECES, finish="stop"), **options
        )
        assert answer.choices[0].message.content == CALLS
        assert answer.choices[0].finish_reason == "stop"


def test_only_one_call(client: OpenAI, script: Any, gateway: GatewayThread) -> None:
    """Without parallel calls the answer ends with the first."""
    answer = client.chat.completions.create(
        model="qwen_mtp",
        messages=script(tokens=1, echo=True),
        tools=TOOLS,
        parallel_tool_calls=False,
        stop="x",
    )
    inputs = json.loads(str(answer.choices[0].message.content)[:-1])["inputs"]
    assert inputs["sampling_param_stop"][2] == ["x", "</tool_call>"]
    cut = CALLS[: CALLS.index("</tool_call>")]
    answer = client.chat.completions.create(
        model="qwen_mtp", messages=script(texts=[cut], finish="stop"), tools=TOOLS
    )
    assert len(answer.choices[0].message.tool_calls or ()) == 1
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("streams", [False, True])
def test_reasoning(client: OpenAI, script: Any, streams: bool) -> None:
    """Apart from the content, under both names that clients know."""
    messages = script(texts=["<thi", "nk>\nHm", ".\n</think>", "\n\nFo", "ur."], finish="stop")
    answer: Any = client.chat.completions.create(
        model="qwen_mtp", messages=messages, stream=streams
    )
    found = {"reasoning_content": "", "reasoning": "", "content": ""}
    for part in answer if streams else [answer]:
        message = part.choices[0].delta if streams else part.choices[0].message
        for key in found:
            found[key] += getattr(message, key, None) or ""
    assert found == {"reasoning_content": "Hm.", "reasoning": "Hm.", "content": "Four."}


def test_reasoning_that_the_prompt_opened(client: OpenAI, script: Any) -> None:
    """The doubles' template opens it for `enable_thinking: false`, as no real one does."""
    messages = script(texts=["Hm.\n</think>\n\nFour."], finish="stop")
    for body in ({"enable_thinking": False}, {"reasoning_effort": "none"}):
        answer = client.chat.completions.create(
            model="qwen_mtp", messages=messages, extra_body=body
        )
        message: Any = answer.choices[0].message
        assert (message.reasoning, message.content) == ("Hm.", "Four.")


def test_calls_go_on_after_a_failure(client: OpenAI, script: Any) -> None:
    """Another variant goes on inside the arguments."""
    messages = script(texts=PIECES, finish="stop", error_at=8, faulty=[3])
    answer = streamed(client, messages=messages, tools=TOOLS)
    calls: Any = answer.choices[0].message.tool_calls
    assert json.loads(calls[1].function.arguments) == {"city": "Köln"}
