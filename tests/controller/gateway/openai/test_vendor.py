"""What of a request is for the gateway itself."""

from typing import Any

import pytest

from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.gateway.openai.schema import ChatRequest, read_as
from trt_mtp.controller.gateway.openai.vendor import (
    given_interval,
    request_parameters,
    timeout_of,
)
from trt_mtp.serve.contract import REST_OF_CONTEXT


def request(**values: Any) -> ChatRequest:
    """A request with these keys."""
    return ChatRequest(model="m", messages=[{}], **values)


@pytest.mark.parametrize(
    ("values", "priority"),
    [
        ({}, None),
        ({"service_tier": "auto"}, None),
        ({"service_tier": "priority"}, 10),
        ({"service_tier": "flex"}, 1_000),
        ({"priority": 0, "service_tier": "flex"}, None),
        ({"priority": 5}, 105),
        ({"priority": -200}, 1),
        ({"priority": 2**40}, 2**31 - 1),
    ],
)
def test_priority(values: dict[str, Any], priority: int | None) -> None:
    """The service tier, or vLLM's priority, as a place in the gateway's queue."""
    assert request_parameters(request(**values), {}, None).get("priority") == priority


def test_patience() -> None:
    """A client's own timeout bounds how long it waits; nonsense is no timeout."""
    limits = {"60.0": 60.0, "1e9": 3_600.0, "0": None, "-1": None, "nan": None, "x": None}
    for text, seconds in limits.items():
        assert timeout_of({"x-stainless-read-timeout": text}) == seconds
    assert timeout_of({}) is None
    headers = {"x-stainless-read-timeout": "60"}
    assert request_parameters(request(), headers, None)["timeout"] == 60_000_000


def test_which_session() -> None:
    """The gateway's own name first, the body before headers, what is meant for others last."""
    headers = {"x-session-id": "d", "x-claude-code-session-id": "c", "x-trt-mtp-session-id": "b"}
    own = request(trt_mtp={"session_id": "a"}, prompt_cache_key="k")
    for value in ("a", "b"):
        assert request_parameters(own, headers, None)["session_id"] == value
        own = request(prompt_cache_key="k")
    del headers["x-trt-mtp-session-id"]
    assert request_parameters(own, headers, None)["session_id"] == "k"
    assert request_parameters(request(), headers, None)["session_id"] == "c"


def test_a_pinned_length_is_the_only_one() -> None:
    """The model's name and the parameter may not differ."""
    same = request(trt_mtp={"draft_length": "3"})
    assert request_parameters(same, {}, 3)["draft_length"] == 3
    assert request_parameters(request(), {}, 3) == {"draft_length": 3}
    with pytest.raises(ParameterError, match="give one of them"):
        request_parameters(request(trt_mtp={"draft_length": 1}), {}, 3)


def test_a_streaming_interval() -> None:
    """It goes to the variant; without a stream, or longer than the answer, it is refused."""
    both = {"streaming_interval": 4, "streaming_interval_ms": 100}
    assert given_interval(request(stream=True, trt_mtp=both), 9) == both
    assert given_interval(request(stream=True, trt_mtp=both), REST_OF_CONTEXT) == both
    assert given_interval(request(), 9) == {}
    with pytest.raises(ParameterError, match="streaming_interval goes with stream: true") as error:
        given_interval(request(trt_mtp=both), 9)
    assert error.value.param == "trt_mtp.streaming_interval"
    with pytest.raises(ParameterError, match="longer than the answer: expected 1 to 3"):
        given_interval(request(stream=True, trt_mtp=both), 3)


@pytest.mark.parametrize(
    "interval",
    [{"streaming_interval": 0}, {"streaming_interval_ms": -1}, {"streaming_interval_ms": 1001}],
)
def test_an_interval_that_is_none(interval: dict[str, int]) -> None:
    """The body is refused, with the parameter's name."""
    body = {"model": "m", "messages": [{}], "stream": True, "trt_mtp": interval}
    with pytest.raises(ParameterError) as error:
        read_as(ChatRequest, body)
    assert error.value.param == f"trt_mtp.{next(iter(interval))}"
