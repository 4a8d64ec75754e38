"""Chats through OpenAI's own package: whole and streamed, and what variants are asked for."""

import asyncio
import json
import re
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.gateway_fixtures import GatewayThread, running_gateway, wait_until
from tests.http_client import ask, sent
from trt_mtp.controller.gateway.openai.options import OpenAiOptions
from trt_mtp.serve.triton import TritonServer

PATH = "/v1/chat/completions"
HEADERS = {"Content-Type": "application/json"}


def echoed(client: OpenAI, script: Any, **request: Any) -> dict[str, Any]:
    """The inputs and parameters of the request that a variant gets."""
    answer = client.chat.completions.create(
        model="qwen_mtp", messages=script(tokens=1, echo=True), **request
    )
    values: dict[str, Any] = json.loads(str(answer.choices[0].message.content)[:-1])
    inputs = {name: value[2] for name, value in values["inputs"].items()}
    return {**inputs, "parameters": values["parameters"]}


def test_a_whole_answer(client: OpenAI, gateway: GatewayThread, script: Any) -> None:
    """Its text, why it ended, its tokens, what drafting did, and who answered."""
    raw = client.chat.completions.with_raw_response.create(
        model="qwen_mtp", messages=script(texts=["a", "ü", "c"], finish="stop")
    )
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{24}", answer.id)
    assert answer.model == "qwen_mtp"
    assert answer.system_fingerprint == "fp_f0"
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "aüc")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    assert answer.usage.total_tokens == 10
    assert raw.headers["x-trt-mtp-variant"] == "k3"
    assert raw.headers["x-trt-mtp-task"] == "qa"
    assert raw.headers["x-trt-mtp-decision-id"] == gateway.outcomes[-1][0].decision_id
    assert raw.headers["x-request-id"]


def test_a_streamed_answer(client: OpenAI, script: Any) -> None:
    """A chunk per message, the role in the first, the reason in the last; no usage unasked."""
    chunks = list(
        client.chat.completions.create(
            model="qwen_mtp", messages=script(texts=["a", '\n"ü\\', "c"] * 20), stream=True
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.content for delta in deltas[:-1]] == ["a", '\n"ü\\', "c"] * 20
    assert [delta.role for delta in deltas[:2]] == ["assistant", None]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * 60 + ["length"]
    assert len({(chunk.id, chunk.created, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)


def test_the_frames_are_plain(url: str, script: Any) -> None:
    """Data lines alone, which every client can read, the whole answer ended by [DONE]."""
    body = {"model": "qwen_mtp", "messages": script(tokens=3), "stream": True}
    reply = ask(url, "POST", PATH, body, headers=HEADERS)
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert reply.headers["x-trt-mtp-variant"] == "k3"
    *frames, end = reply.body.decode().split("\n\n")
    assert end == ""
    assert frames.pop() == "data: [DONE]"
    assert all(re.fullmatch(r"data: \{.*\}", frame) for frame in frames)


def test_usage_at_the_end_of_a_stream(client: OpenAI, script: Any) -> None:
    """One more chunk without choices has the tokens, and what drafting did in vLLM's form."""
    *chunks, last = client.chat.completions.create(
        model="qwen_mtp",
        messages=script(tokens=5),
        stream=True,
        stream_options={"include_usage": True},
    )
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 5)
    extra: Any = last.model_extra
    assert extra["metrics"]["speculative_decoding"] == {
        "mean_acceptance_length": 1 + 3 / 5,
        "draft_acceptance_rate": 3 / 15,
        "acceptance_histogram": [4, 0, 0, 1],
        "num_spec_steps": 5,
        "num_accepted_draft_tokens": 3,
        "num_draft_tokens": 15,
        "num_spec_tokens": 3,
    }


def test_no_speculation_has_no_metrics_of_it(client: OpenAI, script: Any) -> None:
    """At draft length 0 nothing was drafted, and nothing is claimed."""
    answer = client.chat.completions.create(model="qwen_mtp:k0", messages=script())
    assert "metrics" not in (answer.model_extra or {})


def test_what_a_variant_is_asked_for(client: OpenAI, script: Any) -> None:
    """Each parameter goes where Triton's clients have it."""
    request = echoed(
        client,
        script,
        max_tokens=5,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.25,
        seed=-2,
        stop=["x", "y"],
        extra_body={"top_k": 4, "min_tokens": 3, "ignore_eos": True},
    )
    assert request["sampling_param_max_tokens"] == [9]
    assert request["sampling_param_temperature"] == [0.5]
    assert request["sampling_param_top_p"] == [0.25]
    assert request["sampling_param_top_k"] == [4]
    assert request["sampling_param_min_tokens"] == [3]
    assert request["sampling_param_ignore_eos"] == [True]
    assert request["sampling_param_seed"] == [2**64 - 2]
    assert request["sampling_param_stop"] == ["x", "y"]
    assert request["streaming"] == [False]


@pytest.mark.parametrize(
    "body", [{"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}]
)
def test_thinking(client: OpenAI, gateway: GatewayThread, script: Any, body: Any) -> None:
    """Where Qwen's and vLLM's clients say it, the template gets it and the policy sees it."""
    assert echoed(client, script, extra_body=body)["enable_thinking"] == [True]
    assert gateway.policy.seen[-1].thinking


def test_a_seed_of_minus_one_is_none(client: OpenAI, script: Any) -> None:
    """Front ends of vLLM and llama.cpp send it for a random one, with each choice too."""
    messages = script(tokens=1, echo=True)
    answers = [
        client.chat.completions.create(model="qwen_mtp", messages=messages, n=2, seed=-1)
        for _ in range(2)
    ]
    texts = [str(choice.message.content) for answer in answers for choice in answer.choices]
    seeds = {json.loads(text[:-1])["inputs"]["sampling_param_seed"][2][0] for text in texts}
    assert len(seeds) == 4


def test_defaults_are_openais(client: OpenAI, script: Any) -> None:
    """Temperature 1, the rest of the context, a seed that the gateway draws."""
    request = echoed(client, script, stop=None, seed=None, store=True, user="u", logit_bias={})
    assert request["sampling_param_max_tokens"] == [-1]
    assert request["sampling_param_temperature"] == [1.0]
    assert request["sampling_param_seed"] != [0]
    assert not request.keys() & {"sampling_param_stop", "tools", "enable_thinking"}


def test_the_gateways_own_parameters(client: OpenAI, gateway: GatewayThread, script: Any) -> None:
    """They come in extra_body or in headers, and a model's name may pin the draft length."""
    options = {"task": "coding", "draft_length": 1, "session_id": "s1", "latency_class": "batch"}
    answer = client.chat.completions.create(
        model="qwen_mtp", messages=script(), extra_body={"trt_mtp": options}
    )
    assert answer.model_extra is not None
    decision = answer.model_extra["trt_mtp"]
    assert (decision["variant"], decision["task"]) == ("k1", "coding")
    seen = gateway.policy.seen[-1]
    assert (seen.session_id, seen.latency_class) == ("s1", "batch")
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o",
        messages=script(),
        extra_headers={"x-trt-mtp-task": "rag", "x-trt-mtp-draft-length": "0"},
        prompt_cache_key="cache",
    )
    assert (raw.headers["x-trt-mtp-task"], raw.headers["x-trt-mtp-variant"]) == ("rag", "k0")
    assert gateway.policy.seen[-1].session_id == "cache"
    assert raw.parse().model == "gpt-4o"
    pinned = client.chat.completions.with_raw_response.create(
        model="gpt-4o:k1", messages=script(), extra_headers={"x-session-affinity": "a"}
    )
    assert pinned.headers["x-trt-mtp-variant"] == "k1"
    assert gateway.policy.seen[-1].session_id == "a"


def test_what_a_policy_sees(client: OpenAI, gateway: GatewayThread) -> None:
    """Features come from the whole parsed request, however long it is."""
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "First " + "x" * 50_000}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Last?"},
    ]
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    client.chat.completions.create(model="qwen_mtp", messages=messages, tools=tools, max_tokens=3)
    seen = gateway.policy.seen[-1]
    assert (seen.system, seen.head[:7], seen.tail[-6:]) == ("Be brief.", "First x", "\nLast?")
    assert (seen.has_tools, seen.max_tokens, seen.temperature) == (True, 3, 1.0)
    assert 50_000 < seen.num_chars < 51_000
    client.chat.completions.create(
        model="qwen_mtp", messages=messages, tools=tools, tool_choice="none"
    )
    assert not gateway.policy.seen[-1].has_tools


def test_a_predicted_answer(client: OpenAI, gateway: GatewayThread, script: Any) -> None:
    """It is a signal for who routes, and nothing that a variant is sent."""
    prediction: Any = {"type": "content", "content": "def f(): pass"}
    request = echoed(client, script, prediction=prediction)
    assert "prediction" not in request
    assert gateway.policy.seen[-1].has_prediction


def test_a_silent_stream_is_kept_alive(doubles: TritonServer, script: Any) -> None:
    """With chunks that bring nothing: comments break some clients."""
    body = {"model": "qwen_mtp", "messages": script(tokens=2, delay_s=0.8), "stream": True}
    options = OpenAiOptions(keep_alive_s=0.1)
    with running_gateway(doubles.grpc_url, http_port=0, openai=options) as thread:
        reply = ask(thread.gateway.http_address, "POST", PATH, body, headers=HEADERS)
    assert reply.headers["x-trt-mtp-variant"] == "k3"
    frames = [json.loads(frame[6:]) for frame in reply.body.decode().split("\n\n")[:-2]]
    deltas = [frame["choices"][0]["delta"] for frame in frames]
    assert deltas[0] == {}
    assert [delta for delta in deltas if delta] == [
        {"role": "assistant", "content": "w0"},
        {"content": "w1"},
    ]


def test_pages_of_other_origins(url: str, script: Any) -> None:
    """Those that may use it are told so, before and with the answer; others are refused."""
    body = {"model": "qwen_mtp", "messages": script()}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    for origin, allowed in (("http://page.example", "http://page.example"), ("http://b", None)):
        before = ask(url, "OPTIONS", PATH, headers={"Origin": origin, **asked})
        assert before.status == 204
        assert before.headers["Access-Control-Allow-Headers"] == "x-a"
        answer = ask(url, "POST", PATH, body, headers={"Origin": origin, **HEADERS})
        for reply in (before, answer):
            assert reply.headers.get("Access-Control-Allow-Origin") == allowed
        assert answer.status == (200 if allowed else 403)
        # Triton's form, as any page can send it without a preflight
        generate = {"text_input": "{}", "sampling_param_max_tokens": 2}
        simple = {"Origin": origin, "Content-Type": "text/plain"}
        answer = ask(url, "POST", "/v2/models/qwen_mtp/generate", generate, headers=simple)
        assert answer.status == (200 if allowed else 403), answer.body
    assert ask(url, "OPTIONS", PATH).status == 405


def test_a_long_document_in_a_message(client: OpenAI, gateway: GatewayThread) -> None:
    """What looks like JSON inside a text is text, however much of it there is."""
    rows = json.dumps([{"a": number, "b": [1, 2]} for number in range(15_000)])
    messages: Any = [{"role": "user", "content": rows}]
    client.chat.completions.create(model="qwen_mtp", messages=messages)
    assert gateway.policy.seen[-1].num_chars > len(rows)


def test_several_choices(client: OpenAI, script: Any) -> None:
    """Each is a request of its own, with the next seed; the prompt's tokens count once."""
    messages = script(tokens=1, echo=True)
    answer = client.chat.completions.create(
        model="qwen_mtp", messages=messages, n=3, seed=2**63 - 2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [str(choice.message.content) for choice in answer.choices]
    seeds = [json.loads(text[:-1])["inputs"]["sampling_param_seed"][2] for text in texts]
    assert seeds == [[2**63 - 2], [2**63 - 1], [2**63]]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    assert "metrics" not in (answer.model_extra or {})


def test_reasoning_tokens(client: OpenAI, script: Any) -> None:
    """The usage has those of all choices; completions have none."""
    answer = client.chat.completions.create(model="qwen_mtp", messages=script(tokens=2), n=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4
    completion = client.completions.create(model="qwen_mtp", prompt='{"tokens": 2}')
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is None


def test_usage_in_every_chunk(client: OpenAI, script: Any) -> None:
    """With continuous_usage_stats each chunk has its choice's tokens so far, as vLLM has it."""
    *chunks, last = client.chat.completions.create(
        model="qwen_mtp",
        messages=script(tokens=4),
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[call-overload]
    )
    told = [(chunk.usage.prompt_tokens, chunk.usage.completion_tokens) for chunk in chunks]
    assert told == [(7, 1), (7, 2), (7, 3), (7, 4), (7, 4)]
    assert last.usage.total_tokens == 11


def test_usage_in_every_chunk_across_a_failover(client: OpenAI, script: Any) -> None:
    """The tokens of the variant that failed count on."""
    chunks = client.chat.completions.create(
        model="qwen_mtp",
        messages=script(tokens=6, error_at=3, faulty=[3]),
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[call-overload]
    )
    told = [chunk.usage.completion_tokens for chunk in chunks]
    assert told == [1, 2, 3, 4, 5, 6, 6, 6]


def test_several_choices_on_one_stream(client: OpenAI, script: Any) -> None:
    """Their chunks have their index, and each its end."""
    texts: dict[int, str] = {0: "", 1: ""}
    ends = []
    for chunk in client.chat.completions.create(
        model="qwen_mtp", messages=script(tokens=4, delay_s=0.01), n=2, stream=True
    ):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert texts == {0: "w0w1w2w3", 1: "w0w1w2w3"}
    assert sorted(ends) == [0, 1]


def test_an_answer_goes_on_after_a_failure(client: OpenAI, script: Any) -> None:
    """The stream has the whole answer, and says nothing of drafting that it doesn't know."""
    *chunks, last = client.chat.completions.create(
        model="qwen_mtp",
        messages=script(tokens=6, error_at=3, faulty=[3]),
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"trt_mtp": {}},
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == "w0w1w2w3w4w5"
    assert last.usage is not None
    assert last.usage.completion_tokens == 6
    extra: Any = last.model_extra
    assert extra["trt_mtp"]["failed_over"] == "k3"
    assert "metrics" not in extra


def test_a_failure_before_the_first_token_is_a_status(client: OpenAI, script: Any) -> None:
    """Several variants were tried, so that the client is told not to try again."""
    for streams in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(
                model="qwen_mtp", messages=script(error_at=0), stream=streams
            )
        assert failed.value.type == "server_error"
        assert "the engine broke" in failed.value.message
        assert failed.value.response.headers["x-should-retry"] == "false"


def test_a_failure_in_the_stream_is_an_error_event(client: OpenAI, script: Any) -> None:
    """The client has raised what was said; nothing looks like an end."""
    chunks = client.chat.completions.create(
        model="qwen_mtp", messages=script(error_at=2), stream=True
    )
    assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["w0", "w1"]
    with pytest.raises(openai.APIError, match="the engine broke"):
        next(chunks)


def test_the_asynchronous_client(url: str, script: Any) -> None:
    """Several streams side by side on one event loop."""

    async def stream(client: AsyncOpenAI, number: int) -> str:
        answer = await client.chat.completions.create(
            model="qwen_mtp", messages=script(word=f"{number}-", tokens=10), stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    async def several() -> list[str]:
        async with AsyncOpenAI(base_url=f"http://{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(stream(client, number) for number in range(5)))

    expected = ["".join(f"{number}-{i}" for i in range(10)) for number in range(5)]
    assert asyncio.run(several()) == expected


@pytest.mark.parametrize("n", [1, 2])
def test_a_client_that_leaves_ends_its_answers(
    gateway: GatewayThread, doubles: TritonServer, url: str, script: Any, n: int
) -> None:
    """Closing the connection cancels every choice on its variant."""
    messages = script(tokens=2000, delay_s=0.02, name=f"openai-{n}")
    body = {"model": "qwen_mtp", "messages": messages, "stream": True, "n": n}
    with sent(url, "POST", PATH, body, headers=HEADERS) as response:
        assert response.readline().startswith(b"data: ")
    wait_until((doubles.log.parent / "notes" / f"cancelled-openai-{n}").exists)
    wait_until(lambda: gateway.gateway.statistics()["variants"]["k3"]["num_running"] == 0)
