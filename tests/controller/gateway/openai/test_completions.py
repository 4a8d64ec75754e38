"""Completions and models through OpenAI's own package."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.gateway_fixtures import GatewayThread
from tests.http_client import ask


def prompt(**script: Any) -> str:
    """A prompt that tells a double what to answer."""
    return json.dumps(script)


@pytest.fixture(scope="module")
def lenient(url: str) -> Iterator[OpenAI]:
    """For streams: OpenAI's own have a finish reason of null, which its types don't know."""
    with OpenAI(base_url=f"http://{url}/v1", api_key="none", max_retries=0, timeout=60) as openai:
        yield openai


def test_a_completion(client: OpenAI, gateway: GatewayThread) -> None:
    """Its text, its tokens; at most 16 tokens unless more are asked for, as OpenAI has it."""
    answer = client.completions.create(model="qwen_mtp", prompt=prompt(tokens=1, echo=True))
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    [choice] = answer.choices
    inputs = json.loads(choice.text[:-1])["inputs"]
    assert inputs["sampling_param_max_tokens"][2] == [16]
    assert inputs["text_input"][2] == [prompt(tokens=1, echo=True)]
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 1)
    assert gateway.policy.seen[-1].head == prompt(tokens=1, echo=True)


def test_whole_numbers_in_another_form(url: str) -> None:
    """16.0 is 16 in JSON, and what some languages make of it; texts stay as they are."""
    text = prompt(tokens=1, echo=True, unused=2.0)
    numbers = {"max_tokens": 9.0, "seed": 3.0, "n": 1.0, "best_of": 1.0, "temperature": 1.0}
    body = {"model": "qwen_mtp", "prompt": text, **numbers}
    reply = ask(url, "POST", "/v1/completions", body, headers={"Content-Type": "application/json"})
    inputs = json.loads(reply.json()["choices"][0]["text"][:-1])["inputs"]
    assert inputs["sampling_param_max_tokens"][2] == [9]
    assert inputs["sampling_param_seed"][2] == [3]
    assert inputs["text_input"][2] == [text]


def test_a_streamed_completion(lenient: OpenAI) -> None:
    """The pieces, then why it ended, then the tokens."""
    *chunks, last = lenient.completions.create(
        model="qwen_mtp",
        prompt=prompt(tokens=4),
        stream=True,
        stream_options={"include_usage": True},
    )
    assert [chunk.choices[0].text for chunk in chunks] == ["w0", "w1", "w2", "w3", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["length"]
    assert last.usage is not None
    assert last.usage.completion_tokens == 4


@pytest.mark.parametrize("streams", [False, True])
def test_several_prompts(lenient: OpenAI, streams: bool) -> None:
    """Their choices come one after the other, as many for each."""
    prompts = [prompt(tokens=1, word="a"), prompt(tokens=1, word="b")]
    request: Any = {"model": "qwen_mtp", "prompt": prompts, "n": 2, "stream": streams}
    texts = dict.fromkeys(range(4), "")
    answer: Any = lenient.completions.create(**request)
    if not streams:
        assert answer.usage.prompt_tokens == 14
        assert answer.usage.completion_tokens == 4
    for part in answer if streams else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "a0", 1: "a0", 2: "b0", 3: "b0"}


def test_prompts_of_token_ids(client: OpenAI, gateway: GatewayThread) -> None:
    """One, or several; their number is known without a tokenizer."""
    client.completions.create(model="qwen_mtp", prompt=[1, 2, 3])
    assert gateway.policy.seen[-1].num_prompt_tokens == 3
    answer = client.completions.create(model="qwen_mtp", prompt=[[1, 2], [3]])
    assert len(answer.choices) == 2


def test_echo(client: OpenAI) -> None:
    """The prompt is to be part of the answer."""
    answer = client.completions.create(
        model="qwen_mtp", prompt=prompt(tokens=1, echo=True), echo=True
    )
    inputs = json.loads(answer.choices[0].text[:-1])["inputs"]
    assert inputs["sampling_param_exclude_input_from_output"][2] == [False]


def test_models(client: OpenAI) -> None:
    """The public name, its aliases, and each draft length by name."""
    models = {model.id: model for model in client.models.list()}
    assert [*models] == ["qwen_mtp", "gpt-4o", "qwen_mtp:k0", "qwen_mtp:k1", "qwen_mtp:k3"]
    one = client.models.retrieve("qwen_mtp:k3")
    assert one == models["qwen_mtp:k3"]
    extra: Any = one.model_extra
    assert (extra["root"], extra["max_model_len"]) == ("qwen_mtp", 512)


def test_health(url: str) -> None:
    """What load tools ask before they begin."""
    assert ask(url, "GET", "/health").status == 200
