"""A gateway with HTTP in front of doubles, and OpenAI's own package as its client."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.gateway_fixtures import GatewayThread, running_gateway
from trt_mtp.controller.gateway.openai.options import OpenAiOptions
from trt_mtp.serve.triton import TritonServer


@pytest.fixture(scope="module")
def gateway(doubles: TritonServer) -> Iterator[GatewayThread]:
    """One gateway with HTTP; `gpt-4o` is another name of its model."""
    options = OpenAiOptions(("gpt-4o",), ("http://page.example",))
    settings: Any = {"http_port": 0, "max_message_bytes": 1_000_000, "openai": options}
    with running_gateway(doubles.grpc_url, **settings) as thread:
        yield thread


@pytest.fixture(scope="module")
def url(gateway: GatewayThread) -> str:
    """Where it serves HTTP."""
    return str(gateway.gateway.http_address)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    """A client that refuses answers which don't have the form that its types say."""
    with OpenAI(
        base_url=f"http://{url}/v1",
        api_key="none",
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    ) as openai:
        yield openai


@pytest.fixture(scope="module")
def script() -> Any:
    """A function that makes the messages which tell a double what to answer."""

    def messages(**script: Any) -> list[dict[str, str]]:
        return [{"role": "user", "content": json.dumps(script)}]

    return messages
