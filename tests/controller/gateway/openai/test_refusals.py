"""Requests that are wrong, or ask for what isn't done: refused in OpenAI's form, by name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from tests.gateway_fixtures import running_gateway
from tests.http_client import Reply, ask
from trt_mtp.controller.gateway.access.config import AccessConfig
from trt_mtp.controller.gateway.access.tenants import token_hash
from trt_mtp.serve.triton import TritonServer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}
MESSAGES = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def post(url: str, path: str, body: Any, **headers: str) -> Reply:
    """Send a body, as JSON unless it is bytes."""
    return ask(url, "POST", path, body, headers=JSON | headers)


def error(reply: Reply) -> dict[str, Any]:
    """The error of a refusal, which has all keys of OpenAI's."""
    [(key, value)] = reply.json().items()
    assert key == "error"
    assert value.keys() == {"message", "type", "param", "code"}
    assert value["message"]
    assert reply.headers["x-request-id"]
    return dict(value)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
            "messages[0].function_call",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "prefix": True}]},
            "messages[0].prefix",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "partial": True}]},
            "messages[0].partial",
        ),
        ({"response_prefix": "a"}, "response_prefix"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": 2.0**60}, "seed"),
        ({"max_completion_tokens": 2**31}, "max_completion_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x"),
        ({"n": 129}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 5}}, "stream_options.include_usage"),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools[0]"),
        (
            {"messages": [{"role": "user", "content": [[{"type": "text", "text": "a"}]]}]},
            "messages[0].content[0]",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_object", "schema": 5}}, "response_format"),
        ({"grammar": "root ::= a"}, "grammar"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"prediction": {"type": "x", "content": ""}}, "prediction"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "x"}, "presence_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"trt_mtp": {"tsk": "qa"}}, "trt_mtp.tsk"),
        ({"trt_mtp": {"task": "cooking"}}, "task"),
        ({"trt_mtp": {"draft_length": 7}}, "draft_length"),
        ({"model": "qwen_mtp:k3", "trt_mtp": {"draft_length": 1}}, "trt_mtp.draft_length"),
        ({"model": None}, "model"),
    ],
)
def test_a_wrong_parameter_is_named(url: str, change: dict[str, Any], param: str) -> None:
    """Status 400, and which parameter it is about."""
    body = {"model": "qwen_mtp", "messages": MESSAGES} | change
    reply = post(url, CHAT, {key: value for key, value in body.items() if value is not None})
    assert reply.status == 400
    assert (error(reply)["param"], error(reply)["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["x"] * 100, "n": 2}, "n"),
        ({"prompt": "x" * 900_000, "n": 128}, "n"),
        ({"prompt": [1], "echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 4}, "best_of"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0, "echo": True}, "logprobs"),
        ({"messages": MESSAGES}, "messages"),
    ],
)
def test_a_wrong_completion_is_named(url: str, change: dict[str, Any], param: str) -> None:
    """The same for completions."""
    body = {"model": "qwen_mtp", "prompt": "Hello"} | change
    reply = post(url, COMPLETIONS, {key: v for key, v in body.items() if v is not None})
    assert (reply.status, error(reply)["param"]) == (400, param)


@pytest.mark.parametrize("prompt", [[-1], [2**70], [True], ["a", 1], [[1], [-1]], 5])
def test_a_prompt_of_no_known_form_is_told_the_forms(url: str, prompt: Any) -> None:
    """Whoever sends ids reads what ids may be, not that a text was expected."""
    message = error(post(url, COMPLETIONS, {"model": "qwen_mtp", "prompt": prompt}))["message"]
    assert "token ids (whole numbers from 0 to 2147483647)" in message


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "is not JSON"),
        (b"", 400, "is not JSON"),
        (b"[]", 400, "has to be a JSON object"),
        (b'{"model": "a", "model": "b"}', 400, "a key is twice"),
        (b"[" * 90_000, 400, "nested too deeply"),
        (b'{"model": "\xff"}', 400, "is not JSON in UTF-8"),
        (b'{"model": "' + b"x" * 1_000_000 + b'"}', 413, "too large"),
    ],
)
def test_a_body_that_is_none(url: str, body: bytes, status: int, sentence: str) -> None:
    """Refused before anything is asked."""
    for path in (CHAT, COMPLETIONS):
        reply = post(url, path, body)
        assert (reply.status, error(reply)["type"]) == (status, "invalid_request_error")
        assert sentence in error(reply)["message"]


def test_another_content_type(url: str) -> None:
    """A form is refused, as what curl sends without a header."""
    body = json.dumps({"model": "qwen_mtp", "messages": MESSAGES}).encode()
    reply = post(url, CHAT, body, **{"Content-Type": "application/x-www-form-urlencoded"})
    assert (reply.status, error(reply)["code"]) == (415, "unsupported_media_type")


def test_a_model_that_does_not_exist(client: OpenAI) -> None:
    """404, with the names that do."""
    for name in ("gpt-5", "qwen_mtp:k7", "qwen_mtp_k3", ""):
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
        assert "qwen_mtp, gpt-4o, qwen_mtp:k0" in refused.value.message


def test_other_paths_and_methods(url: str) -> None:
    """Also refused in OpenAI's form."""
    reply = ask(url, "GET", CHAT)
    assert (reply.status, error(reply)["code"]) == (405, "method_not_allowed")
    reply = post(url, "/v1/embeddings", {})
    assert (reply.status, error(reply)["code"]) == (404, "not_found")
    assert "docs/openai.md" in error(reply)["message"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1//chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/v1/v1/completions", COMPLETIONS),
        ("//v1/chat/completions", CHAT),
        ("/chat/completions", CHAT),
        ("/openai/deployments/qwen_mtp/chat/completions?api-version=1", CHAT),
        ("/v1/responses", CHAT),
        ("/v1/models/", "/v1/models"),
        ("/v1/health", "/health"),
        ("//v2/health/ready/", "/v2/health/ready"),
        ("/v2/models/qwen_mtp/generate/", "/v2/models/qwen_mtp/generate"),
    ],
)
def test_a_path_with_something_too_much_or_missing(url: str, path: str, meant: str) -> None:
    """What base URLs with a slash, without /v1 or with it twice make of a path, is told."""
    reply = post(url, path, {})
    assert reply.status == 404
    assert f"did you mean {meant}?" in str(reply.json()["error"])


def test_functions_of_before_tools(url: str) -> None:
    """What there is in their place is told."""
    for name, value in {"functions": [{"name": "f"}], "function_call": {"name": "f"}}.items():
        reply = post(url, CHAT, {"model": "qwen_mtp", "messages": MESSAGES, name: value})
        assert re.search("send tool(s|_choice) in its place", error(reply)["message"])


def test_request_ids(url: str) -> None:
    """A client's own id comes back where it is one; otherwise it gets one."""
    body = {"model": "qwen_mtp", "messages": MESSAGES}
    assert post(url, CHAT, body, **{"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert post(url, CHAT, {}, **{"X-Request-Id": "<b>"}).headers["x-request-id"][:4] == "req_"


@pytest.fixture(scope="module")
def guarded(doubles: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway that asks for tokens; `slow` may ask once in a hundred seconds."""
    tenants = [
        {"name": "slow", "token_sha256": [token_hash("Bearer slow")], "requests_per_s": 0.01},
        {"name": "free", "token_sha256": [token_hash("Bearer free")]},
    ]
    path: Path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    path.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    access = AccessConfig(tokens=path, max_prompt_tokens=100)
    with running_gateway(doubles.grpc_url, http_port=0, access=access) as thread:
        yield str(thread.gateway.http_address)


def test_tokens_and_limits(guarded: str) -> None:
    """401 without a token, 429 with the time to come again beyond a limit; health is open."""
    base = f"http://{guarded}/v1"
    messages: Any = MESSAGES
    assert ask(guarded, "GET", "/health").status == 200
    with (
        OpenAI(base_url=base, api_key="wrong", max_retries=0) as wrong,
        OpenAI(base_url=base, api_key="slow", max_retries=0) as slow,
        OpenAI(base_url=base, api_key="free", max_retries=0) as free,
    ):
        with pytest.raises(openai.AuthenticationError) as unknown:
            wrong.chat.completions.create(model="qwen_mtp", messages=messages)
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        slow.chat.completions.create(model="qwen_mtp", messages=messages)
        with pytest.raises(openai.RateLimitError) as limited:
            slow.chat.completions.create(model="qwen_mtp", messages=messages)
        headers = limited.value.response.headers
        assert 90 < int(headers["Retry-After"]) <= 100
        assert 90_000 < int(headers["retry-after-ms"]) <= 100_000
        assert limited.value.code == "rate_limit_exceeded"
        long: Any = [{"role": "user", "content": "x" * 1_000}]
        with pytest.raises(openai.BadRequestError) as refused:
            free.chat.completions.create(model="qwen_mtp", messages=long)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
        # the words by which LiteLLM and others know it
        assert "This model's maximum context length is" in str(refused.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
_KEYS = ("messages", "prompt", "n", "stop", "tools", "trt_mtp", "seed", "stream_options", "echo")


@settings(max_examples=60)
@given(
    path=st.sampled_from([CHAT, COMPLETIONS]),
    change=st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=2),
)
def test_no_body_breaks_the_door(url: str, path: str, change: dict[str, Any]) -> None:
    """Whatever is sent is answered, or refused in OpenAI's form."""
    own = {"messages": MESSAGES} if path == CHAT else {"prompt": "Hello"}
    reply = post(url, path, {"model": "qwen_mtp", **own} | change)
    if reply.status != 200:
        assert reply.status == 400, reply.body
        error(reply)


def test_what_is_no_function_or_no_part_is_told_as_such(url: str) -> None:
    """Their type is not what is wrong, where they have one."""
    flat = {"tools": [{"type": "function", "name": "f", "parameters": {}}]}
    nested = {"messages": [{"role": "user", "content": [[{"type": "text", "text": "a"}]]}]}
    body = {"model": "qwen_mtp", "messages": MESSAGES}
    sentences = [error(post(url, CHAT, body | each))["message"] for each in (flat, nested)]
    assert sentences[0].startswith("tools[0].function has to be an object")
    assert sentences[1].startswith("messages[0].content[0] is no part of a message")


def test_a_web_page_is_told_the_option(guarded: str) -> None:
    """A preflight without --cors-origin, as a page of Open WebUI sends it."""
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    reply = ask(guarded, "OPTIONS", CHAT, headers=asked)
    assert reply.status == 405
    assert error(reply)["message"] == (
        f"web pages of 'http://localhost:3000' may not use {CHAT}: there is no --cors-origin"
    )
