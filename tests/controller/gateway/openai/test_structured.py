"""Structured output from real variants through OpenAI's own package: parsed, equal at every K."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.gateway_fixtures import running_gateway
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.cpu import build_cpu
from trt_mtp.serve.serving import resolve_variants, serving

MESSAGES: Any = [
    {"role": "user", "content": "Return JSON with the keys name, city: Ada lives in Paris."}
]
DRAFT_LENGTHS = (0, 1, 3)


class Person(BaseModel):
    """What the model is asked for."""

    name: str
    city: str
    role: Literal["host", "guest"] | None = None


class Weather(BaseModel):
    """The arguments of a tool."""

    city: str
    unit: Literal["C", "F"]


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a gateway in front of the trained checkpoint's variants."""
    from tests.engine_fixtures import ASSET  # numba: not for every run

    engines = tmp_path_factory.mktemp("structured") / "engines"
    build_cpu(
        read_checkpoint(ASSET),
        DRAFT_LENGTHS,
        engines,
        max_batch_size=2,
        max_seq_len=1024,
        progress=lambda *_: None,
    )
    with (
        serving(resolve_variants([engines])) as server,
        running_gateway(server.grpc_url, http_port=0) as thread,
        OpenAI(
            base_url=f"http://{thread.gateway.http_address}/v1", api_key="none", max_retries=0
        ) as openai,
    ):
        yield openai


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_parsed_answer(client: OpenAI, temperature: float) -> None:
    """The package's `parse` gives the object, the same one at every draft length."""
    contents = set()
    for k in DRAFT_LENGTHS:
        answer = client.chat.completions.parse(
            model=f"qwen_mtp:k{k}",
            messages=MESSAGES,
            response_format=Person,
            temperature=temperature,
            seed=5,
            max_tokens=300,
        )
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.parsed is not None
        contents.add(answer.choices[0].message.content)
    assert len(contents) == 1


def test_a_streamed_answer(client: OpenAI) -> None:
    """In pieces that come to the same text."""
    request: Any = {"messages": MESSAGES, "seed": 1, "response_format": Person}
    whole = client.chat.completions.parse(model="qwen_mtp:k0", **request)
    with client.chat.completions.stream(model="qwen_mtp:k3", **request) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": TOOL["function"]}])
def test_a_forced_call(client: OpenAI, choice: Any) -> None:
    """Its arguments are what the tool's schema says, at every draft length the same."""
    arguments = set()
    for k in DRAFT_LENGTHS:
        answer = client.chat.completions.create(
            model=f"qwen_mtp:k{k}",
            messages=MESSAGES,
            tools=[TOOL],
            tool_choice=choice,
            parallel_tool_calls=False,
            seed=3,
        )
        calls: Any = answer.choices[0].message.tool_calls
        [call] = calls
        assert call.function.name == "weather"
        Weather.model_validate_json(call.function.arguments)
        assert answer.choices[0].finish_reason == "tool_calls"
        arguments.add(call.function.arguments)
    assert len(arguments) == 1


def test_the_other_forms(client: OpenAI) -> None:
    """A JSON object, vLLM's choice, and a completion that fits a pattern; cut ones say so."""
    request: Any = {"model": "qwen_mtp", "messages": MESSAGES, "seed": 2}
    answer = client.chat.completions.create(**request, response_format={"type": "json_object"})
    assert isinstance(json.loads(str(answer.choices[0].message.content)), dict)
    answer = client.chat.completions.create(**request, extra_body={"guided_choice": ["no", "yes"]})
    assert answer.choices[0].message.content in ("no", "yes")
    completion = client.completions.create(
        model="qwen_mtp", prompt="Call", extra_body={"guided_regex": "[0-9]{3}"}
    )
    assert completion.choices[0].text.isdecimal()
    cut = client.chat.completions.create(
        **request, response_format={"type": "json_object"}, max_tokens=3
    )
    assert cut.choices[0].finish_reason == "length"


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "objec"}, "Invalid type: objec"),
        ({"not": {"type": "null"}}, "Unimplemented keys"),
    ],
)
def test_a_schema_that_can_not_be_followed(
    client: OpenAI, schema: Any, says: str, streams: bool
) -> None:
    """The variant's sentence, as status 400, before anything is streamed."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=says) as error:
        client.chat.completions.create(
            model="qwen_mtp", messages=MESSAGES, response_format=form, stream=streams
        )
    assert error.value.param == "response_format"


def test_logprobs_of_a_chat(client: OpenAI) -> None:
    """The same whole and streamed, at every draft length; tokens are those of the text."""
    asked: Any = {
        "messages": MESSAGES,
        "logprobs": True,
        "top_logprobs": 3,
        "temperature": 0.8,
        "seed": 5,
        "max_tokens": 12,
    }
    seen = []
    for k in DRAFT_LENGTHS:
        whole = client.chat.completions.create(model=f"qwen_mtp:k{k}", **asked).choices[0]
        assert whole.logprobs is not None
        assert whole.logprobs.content is not None
        content = whole.logprobs.content
        chunks = client.chat.completions.create(model=f"qwen_mtp:k{k}", stream=True, **asked)
        told = [
            place
            for chunk in chunks
            if chunk.choices[0].logprobs
            for place in chunk.choices[0].logprobs.content or ()
        ]
        assert told == content
        text = b"".join(bytes(place.bytes or ()) for place in content)
        assert text.decode().removesuffix("<|im_end|>") == whole.message.content
        assert all(len(place.top_logprobs) == 3 for place in content)
        seen.append(content)
    assert seen[0] == seen[1] == seen[2]


def test_logprobs_of_a_completion(client: OpenAI) -> None:
    """In the older form, with where each token begins."""
    asked: Any = {"prompt": "1, 2, 3,", "logprobs": 2, "max_tokens": 6, "temperature": 0}
    whole = client.completions.create(model="qwen_mtp", **asked).choices[0]
    logprobs = whole.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert "".join(logprobs.tokens).startswith(whole.text)
    at = zip(logprobs.text_offset, logprobs.tokens, strict=True)
    assert all(whole.text[offset:].startswith(token) for offset, token in at if token in whole.text)
    pieces = [
        chunk.choices[0].logprobs
        for chunk in client.completions.create(model="qwen_mtp", stream=True, **asked)
    ]
    told = [piece for piece in pieces if piece is not None]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for piece in told for value in getattr(piece, name)]
        assert joined == getattr(logprobs, name)


def test_logprobs_of_a_completion_with_parts_of_characters(client: OpenAI) -> None:
    """They are told apart, begin where their character does, and are the text together."""
    asked: Any = {"prompt": "1", "logprobs": 2, "extra_body": {"guided_regex": "é😊é"}}
    whole = client.completions.create(model="qwen_mtp", **asked).choices[0]
    logprobs = whole.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    text, begins = b"", []
    for token in logprobs.tokens:
        begins.append(len(text.decode(errors="ignore")))
        _, is_part, digits = token.partition("bytes:")
        text += bytes.fromhex(digits.replace(r"\x", "")) if is_part else token.encode()
    assert text.decode().removesuffix("<|im_end|>") == whole.text == "é😊é"
    assert len(logprobs.tokens) > 3
    assert logprobs.text_offset == begins
    pieces = [
        chunk.choices[0].logprobs
        for chunk in client.completions.create(model="qwen_mtp", stream=True, **asked)
    ]
    streamed = [at for piece in pieces if piece is not None for at in piece.text_offset or ()]
    assert streamed == begins
