"""Variants on a real Triton, asked through a stock tritonclient; one server for most tests."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.gateway_fixtures import wait_until
from tests.programs import read_line, within
from tests.triton_client import Response, Stream, leaving, streaming, text_of
from tests.variants import build_engines
from trt_mtp.serve.contract import CANCELLED_FLAG, LOGPROBS, OUTPUT_FLAGS, OUTPUTS
from trt_mtp.serve.ports import Ports
from trt_mtp.serve.serving import resolve_variants, serving
from trt_mtp.serve.triton import TritonServer

DEADLINE_S = 120.0
LONG = 3900  # tokens; an answer that is there until it is cancelled
MANY: dict[str, Any] = {"sampling_param_max_tokens": LONG}
PROMPT = "The name is Ada and the city is Paris."
K0, K3 = "qwen_mtp_k0", "qwen_mtp_k3"


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants of a small checkpoint whose drafts are right about half of the time."""
    return build_engines(tmp_path_factory.mktemp("serve"), [0, 3])


@pytest.fixture(scope="session")
def server(engines: Path) -> Iterator[TritonServer]:
    """A running Triton with draft lengths 0 and 3, each of two requests at a time."""
    with serving(resolve_variants([engines]), ports=Ports(http=0)) as running:
        yield running


def ask(server: TritonServer, model: str, **request: Any) -> list[Response]:
    """One request over a stream of its own."""
    with streaming(server.grpc_url) as stream:
        return stream.ask(model, **request)


def tokens_of(responses: list[Response]) -> list[int]:
    """The token ids of all responses, joined."""
    return [token for response in responses for token in response.outputs["output_ids"]]


def metric(server: TritonServer, name: str, variant: str = "k0") -> float:
    """A metric of a variant on Triton's metrics port."""
    text = get(f"http://{server.metrics_url}/metrics")
    (value,) = re.findall(rf'^{name}{{.*variant="{variant}".*}} (\S+)$', text, re.MULTILINE)
    return float(value)


def num_restarts(server: TritonServer) -> dict[str, int]:
    """How often it was started again, by reason."""
    text = get(f"http://{server.metrics_url}/metrics")
    found = re.findall(r'^trt_mtp_server_restarts{reason="(\w+)"} (\S+)$', text, re.MULTILINE)
    return {reason: int(float(count)) for reason, count in found}


def get(url: str, body: object = None) -> str:
    """What `url` answers, to JSON when there is some."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if body is None else json.dumps(body).encode()
    with opener.open(url, data, timeout=DEADLINE_S) as reply:
        text: str = reply.read().decode()
        return text


def is_busy(server: TritonServer) -> bool:
    """True while draft length 0 has requests."""
    names = ("trt_mtp_requests_running", "trt_mtp_requests_waiting")
    return any(metric(server, name) for name in names)


def test_the_model_says_what_it_takes(server: TritonServer) -> None:
    """Metadata of the served model is the contract."""
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        metadata = client.get_model_metadata(K3)
        assert {output.name for output in metadata.outputs} == {spec.name for spec in OUTPUTS}
        parameters = client.get_model_config(K3).config.parameters
        assert parameters["draft_length"].string_value == "3"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_do_not_depend_on_the_draft_length(
    server: TritonServer, temperature: float
) -> None:
    """The same request and seed has the same tokens with and without speculation."""
    sampling = {
        "sampling_param_temperature": temperature,
        "sampling_param_seed": 11,
        "sampling_param_max_tokens": 48,
    }
    plain, drafted = (ask(server, m, text_input=PROMPT, **sampling)[-1].outputs for m in (K0, K3))
    assert plain["output_ids"] == drafted["output_ids"]
    assert plain["num_draft_tokens"] == [0]
    assert plain["accepted_per_position"] == []
    assert drafted["num_accepted_draft_tokens"] > [0]


def test_a_request_without_a_seed_has_one_drawn(server: TritonServer) -> None:
    """Equal sampled requests differ; the seed that the response tells has an answer again."""
    request = {
        "text_input": PROMPT,
        "sampling_param_temperature": 1.0,
        "sampling_param_max_tokens": 48,
    }
    one, other = (ask(server, K3, **request)[-1].outputs for _ in range(2))
    assert one["output_ids"] != other["output_ids"]
    (seed,) = one["seed"]
    assert seed != other["seed"][0]
    again = ask(server, K0, **request, sampling_param_seed=seed)[-1].outputs
    assert again["output_ids"] == one["output_ids"]
    assert again["seed"] == [seed]


def test_the_last_response_counts_the_drafts(server: TritonServer) -> None:
    """The counters add up: each step brings one token and those of the accepted drafts."""
    last = ask(server, K3, text_input=PROMPT, sampling_param_max_tokens=40)[-1].outputs
    assert last["finish_reason"] == [b"length"]
    assert last["num_output_tokens"] == [40] == [len(last["output_ids"])]
    assert last["num_draft_tokens"][0] == 3 * last["num_steps"][0]
    assert sum(last["accepted_per_position"]) == last["num_accepted_draft_tokens"][0]
    assert last["accepted_per_position"] == sorted(last["accepted_per_position"], reverse=True)


def test_pieces_of_a_stream_are_the_answer(server: TritonServer) -> None:
    """Joined, the streamed texts and token ids are those of the answer in one piece."""
    request = {"text_input": PROMPT, "sampling_param_max_tokens": 400}
    whole = ask(server, K3, **request)
    pieces = ask(server, K3, streaming=True, **request)
    assert len(whole) == 1 < len(pieces)
    assert text_of(pieces) == text_of(whole)
    ids = [token for piece in pieces for token in piece.outputs.get("output_ids", [])]
    assert ids == whole[0].outputs["output_ids"]
    assert [piece.is_final for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    names = {"text_output", "output_ids", "requests_in_flight"}
    assert all(set(piece.outputs) - names <= {"num_input_tokens"} for piece in pieces[:-1])
    told = [piece.outputs for piece in pieces[:-1] if "num_input_tokens" in piece.outputs]
    assert [outputs["num_input_tokens"] for outputs in told] == [
        whole[0].outputs["num_input_tokens"]
    ]
    assert [piece.outputs["requests_in_flight"] for piece in pieces[1:]] == [
        *([1] for _ in pieces[2:]),
        [0],
    ]


@pytest.mark.parametrize("is_streaming", [True, False])
def test_an_accepted_grammar_is_told_first(server: TritonServer, is_streaming: bool) -> None:
    """In a message of its own where the request asks for it; one that is refused never is."""
    request = {
        "text_input": PROMPT,
        "streaming": is_streaming,
        "guided_decoding": '{"regex": "a{9}"}',
    }
    told, *answer = ask(server, K3, return_grammar_read=True, **request)
    assert set(told.outputs) == {"requests_in_flight"}
    plain = ask(server, K3, return_grammar_read=False, **request)
    assert text_of(answer) == text_of(plain) == "a" * 9  # streamed or not, perhaps in one message
    request["guided_decoding"] = '{"regex": "("}'
    [refused] = ask(server, K3, return_grammar_read=True, **request)
    assert "can't be followed" in refused.error


@pytest.mark.parametrize(
    "interval",
    [{"streaming_interval": 32}, {"streaming_interval_ms": 1000}, {"streaming_interval_ms": 1}],
)
def test_an_interval_joins_pieces(server: TritonServer, interval: dict[str, int]) -> None:
    """Tokens come in larger messages, with the same answer."""
    request = {"text_input": PROMPT, "sampling_param_max_tokens": 200, "streaming": True}
    whole = ask(server, K3, **request)
    pieces = ask(server, K3, **request, **interval)
    assert text_of(pieces) == text_of(whole)
    assert tokens_of(pieces) == tokens_of(whole)
    assert pieces[-1].outputs["num_steps"] == whole[-1].outputs["num_steps"]
    if interval == {"streaming_interval": 32}:
        assert all(len(piece.outputs["output_ids"]) >= 32 for piece in pieces[1:-1])
        assert len(pieces) <= 1 + 200 // 32 + 1


def test_only_outputs_that_are_asked_for_come(server: TritonServer) -> None:
    """A client that names outputs gets those, and a flag that is false takes some away."""
    short = {"text_input": PROMPT, "sampling_param_max_tokens": 4}
    named = ask(server, K3, outputs=["text_output", "num_steps"], **short)[-1].outputs
    assert set(named) == {"text_output", "num_steps"}
    flagged = ask(server, K3, sampling_param_return_perf_metrics=False, **short)[-1].outputs
    left_out = OUTPUT_FLAGS["sampling_param_return_perf_metrics"] | {
        "margin",
        CANCELLED_FLAG,
        LOGPROBS,
    }
    assert set(flagged) == {spec.name for spec in OUTPUTS} - left_out


def test_messages_token_ids_and_stop_texts(server: TritonServer) -> None:
    """A chat is templated; token ids are taken as they are; a stop text ends the answer."""
    chat = json.dumps([{"role": "user", "content": "hi"}])
    answer = ask(server, K3, messages=chat, sampling_param_max_tokens=30)[-1].outputs
    ids = np.array([1, 2, 3], np.int32)
    same = ask(server, K0, input_ids=ids, sampling_param_max_tokens=3)[-1].outputs
    assert same["num_input_tokens"] == [3]
    text = answer["text_output"][0].decode()
    stop = text[len(text) // 2]
    stopped = ask(
        server, K3, messages=chat, sampling_param_max_tokens=30, sampling_param_stop=[stop]
    )[-1].outputs
    assert stopped["text_output"][0].decode() == text[: text.index(stop)]
    assert stopped["finish_reason"] == [b"stop"]


@pytest.mark.parametrize(
    "prompt",
    [
        {"text_input": PROMPT, "sampling_param_exclude_input_from_output": False},
        {"messages": json.dumps([{"role": "user", "content": "hi"}])},
        {"input_ids": [5, 6, 7]},
    ],
    ids=lambda prompt: next(iter(prompt)),
)
def test_another_variant_continues_an_answer(server: TritonServer, prompt: dict[str, Any]) -> None:
    """Given the tokens of a broken answer, the other variant sends the rest and counts all."""
    request = {**prompt, "streaming": True, "sampling_param_max_tokens": 40}
    request |= {"sampling_param_temperature": 0.9, "sampling_param_seed": 3}
    whole = ask(server, K0, **request)
    all_tokens = tokens_of(whole)
    emitted = all_tokens[:17]
    rest = ask(server, K3, emitted_ids=emitted, **request)
    tokens = tokens_of(rest)
    assert emitted + tokens == all_tokens
    assert len(all_tokens) == 40
    assert text_of(whole).endswith(text_of(rest))
    last, expected = rest[-1].outputs, whole[-1].outputs
    for name in ("finish_reason", "num_input_tokens", "num_output_tokens"):
        assert last[name] == expected[name]
    assert last["num_steps"][0] + last["num_accepted_draft_tokens"][0] == len(tokens) - 1
    none = ask(server, K3, emitted_ids=np.array([], np.int32), **request)
    assert text_of(none) == text_of(whole)


def test_one_stream_takes_many_requests_at_once(server: TritonServer) -> None:
    """More requests than slots on one stream are all answered, each under its own id."""
    with streaming(server.grpc_url) as stream:
        for number in range(5):
            model = (K0, K3)[number % 2]
            stream.send(
                model,
                request_id=str(number),
                text_input=PROMPT,
                sampling_param_max_tokens=60,
                sampling_param_seed=number // 2,
                sampling_param_temperature=1.0,
            )
        answers = {last.request_id: last.outputs["output_ids"] for last in finals(stream, 5)}
    assert answers["0"] == answers["1"] != answers["2"] == answers["3"]


def test_an_answer_is_as_long_as_asked_for(server: TritonServer) -> None:
    """ignore_eos, or min_tokens, gives so many tokens at every draft length, the same ones."""
    wanted = {"text_input": PROMPT, "sampling_param_max_tokens": 90}
    for more in ({"sampling_param_ignore_eos": True}, {"sampling_param_min_tokens": 90}):
        plain, drafted = (ask(server, model, **wanted, **more) for model in (K0, K3))
        assert tokens_of(plain) == tokens_of(drafted)
        assert len(tokens_of(plain)) == 90


def finals(stream: Any, count: int) -> list[Response]:
    """The final responses of `count` requests."""
    found: list[Response] = []
    while len(found) < count:
        response = stream.receive()
        assert not response.error
        if response.is_final:
            found.append(response)
    return found


def test_http_streams_too(server: TritonServer) -> None:
    """Triton's HTTP generate_stream sends the same pieces as server-sent events."""
    body = {"text_input": PROMPT, "streaming": True, "sampling_param_max_tokens": 30}
    url = f"http://{server.http_url}/v2/models/{K3}/generate_stream"
    lines = [line for line in get(url, body).splitlines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    whole = ask(server, K3, text_input=PROMPT, sampling_param_max_tokens=30)
    assert "".join(event["text_output"] for event in events) == text_of(whole)
    assert events[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "exactly one of the inputs"),
        ({"text_input": ""}, "the prompt is empty"),
        ({"text_input": b"\xff"}, "text_input is not UTF-8"),
        ({"text_input": "long " * 2000}, "together they may be at most 4096"),
        ({"text_input": "long " * 9000}, "together they may be at most 4096"),  # in a thread
        ({"text_input": "a", "sampling_param_min_tokens": 200}, "min_tokens is 200; expected 0 t"),
        ({"text_input": "a", "enable_thinking": True}, "enable_thinking goes with messages"),
        ({"text_input": ["a", "b"]}, r"unexpected shape for input 'text_input'.*Expected \[1\]"),
        ({"text_input": "a", "input_ids": [1]}, "this request has text_input and input_ids"),
        ({"input_ids": np.array([1.0], np.float32)}, "expects 'INT32'"),
        ({"input_ids": [100_000]}, "input_ids must lie between 0 and"),
        ({"text_input": "a", "sampling_param_max_token": 3}, "unexpected inference input"),
        ({"text_input": "a", "sampling_param_max_tokens": 0}, "max_tokens is 0"),
        ({"text_input": "a", "sampling_param_temperature": float("nan")}, "temperature is nan"),
        ({"text_input": "a", "parameters": {"taks": "qa"}}, "'taks'; did you mean task"),
        ({"messages": "[1"}, "messages is not JSON"),
        ({"text_input": "a", "emitted_ids": [3] * 128}, "the answer is complete"),
    ],
)
def test_bad_input_is_one_sentence_and_harms_no_one(
    server: TritonServer, request_: dict[str, Any], sentence: str
) -> None:
    """A wrong request is refused with a sentence, and the next one on the stream is answered."""
    with streaming(server.grpc_url) as stream:
        (refusal,) = stream.ask(K3, **request_)
        assert not refusal.outputs
        assert re.search(sentence, refusal.error), refusal.error
        assert "\n" not in refusal.error
        assert stream.ask(K3, text_input="a", sampling_param_max_tokens=1)[-1].is_final


def test_a_cancelled_request_frees_its_slot(server: TritonServer) -> None:
    """Requests that run or wait are dropped long before their end when their client cancels."""
    before = metric(server, "trt_mtp_output_tokens")
    with leaving(server.grpc_url) as stream:
        for _ in range(3):  # two run, one waits
            stream.send(K0, text_input=PROMPT, streaming=True, sampling_param_max_tokens=LONG)
        stream.receive()
    wait_until(lambda: not is_busy(server))
    assert metric(server, "trt_mtp_output_tokens") - before < 3 * LONG


NUM_VANISHING = 8  # requests of a client, most of which wait: a busy machine is slow to notice
VANISHING_CLIENT = f"""
import sys
from tests.triton_client import Stream
stream = Stream(sys.argv[1])
for _ in range({NUM_VANISHING}):
    stream.send({K0!r}, text_input="a", streaming=True, sampling_param_max_tokens={LONG})
stream.receive()
print("started", flush=True)
stream.receive_all()
"""


def is_cancelled(control: Stream, model: str, request_id: str) -> bool:
    """Ask for a request's cancellation; whether there was one to cancel."""
    [told] = control.ask(model, cancel_request_id=request_id)
    assert set(told.outputs) == {CANCELLED_FLAG}
    return bool(told.outputs[CANCELLED_FLAG][0])


@pytest.mark.parametrize("model", [K0, K3])
def test_a_request_is_cancelled_in_band(server: TritonServer, model: str) -> None:
    """Another request ends it: it has a last response of its own, and its slots are free again."""
    is_a_cancelled = is_b_cancelled = False
    ends: dict[str, dict[str, Any]] = {}
    with streaming(server.grpc_url) as stream, streaming(server.grpc_url) as control:
        while not is_a_cancelled:  # where all is slow, it is over first
            ends.clear()
            for name in ("a", "b", "waits"):
                stream.send(model, text_input=PROMPT, streaming=True, request_id=name, **MANY)
            assert stream.receive().request_id in ("a", "b")
            # on another stream: it may overtake the request
            wait_until(partial(is_cancelled, control, model, "waits"))
            is_a_cancelled, is_b_cancelled = (is_cancelled(control, model, name) for name in "ab")
            while len(ends) < 3:
                response = stream.receive()
                assert not response.error
                if response.is_final:
                    ends[response.request_id] = response.outputs
        reasons = {name: end["finish_reason"][0] for name, end in ends.items()}
        last = b"cancelled" if is_b_cancelled else b"length"
        assert reasons == {"waits": b"cancelled", "a": b"cancelled", "b": last}
        assert 0 < ends["a"]["num_output_tokens"][0] < LONG
        assert ends["waits"]["num_output_tokens"] == [0]
        assert stream.ask(model, text_input=PROMPT, sampling_param_max_tokens=3)[-1].is_final


def test_a_cancellation_that_finds_nothing_says_so(server: TritonServer) -> None:
    """Before its request, after it, twice, or of another model's: it does nothing."""
    with streaming(server.grpc_url) as stream, streaming(server.grpc_url) as control:
        assert not is_cancelled(control, K3, "mine")
        before = [f"before {index}" for index in range(8)]  # "mine" waits behind them
        for name in (*before, "mine"):
            stream.send(K3, text_input=PROMPT, streaming=True, request_id=name, **MANY)
        stream.receive()
        assert not is_cancelled(control, K0, "mine")
        assert not is_cancelled(control, K3, "min")
        assert [is_cancelled(control, K3, "mine"), is_cancelled(control, K3, "mine")][0]
        for name in before:
            is_cancelled(control, K3, name)
        ends: dict[str, Any] = {}
        while len(ends) <= len(before):
            response = stream.receive()
            if response.is_final:
                ends[response.request_id] = response.outputs["finish_reason"]
        assert ends["mine"] == [b"cancelled"]
        assert not is_cancelled(control, K3, "mine")


@pytest.mark.parametrize(
    ("request_inputs", "sentence"),
    [
        ({"cancel_request_id": ""}, "cancel_request_id is empty"),
        ({"cancel_request_id": b"\xff"}, "cancel_request_id is not UTF-8"),
        (
            {"cancel_request_id": "mine", "text_input": PROMPT},
            "cancel_request_id goes alone; this request has text_input as well",
        ),
    ],
)
def test_a_wrong_cancellation_is_one_sentence(
    server: TritonServer, request_inputs: dict[str, Any], sentence: str
) -> None:
    """It is refused as any request is."""
    [refused] = ask(server, K3, **request_inputs)
    assert sentence in refused.error


def test_a_client_that_vanishes_frees_its_slot(server: TritonServer) -> None:
    """A client that is killed in the middle of an answer is noticed."""
    before = metric(server, "trt_mtp_output_tokens")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    client = subprocess.Popen(
        [sys.executable, "-c", VANISHING_CLIENT, server.grpc_url],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    with client, within(client):
        assert read_line(client) == b"started\n"
        client.kill()
    wait_until(lambda: not is_busy(server))
    assert metric(server, "trt_mtp_output_tokens") - before < NUM_VANISHING * LONG


def test_management_needs_the_key(server: TritonServer) -> None:
    """Loading and unloading models is refused to who hasn't the key of this run."""
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match="protocol is restricted"):
            client.unload_model(K0)
        headers = {"triton-grpc-protocol-admin-key": server.admin_key}
        index = client.get_model_repository_index(headers=headers)
        assert {model.name for model in index.models} == {K0, K3}


@pytest.mark.parametrize("victim", ["model", "server"])
def test_what_dies_is_started_again(server: TritonServer, victim: str) -> None:
    """After a model's process or Triton is killed, the same ports answer again.

    The metrics say how often that was, once for all models together.
    """
    urls, said = (server.grpc_url, server.http_url), list[str]()
    before = num_restarts(server)
    server.check(said.append)
    assert said == []
    os.kill(server.pid if victim == "server" else server.stub_pids[0], signal.SIGKILL)

    def was_noticed() -> bool:
        server.check(said.append)
        return bool(said)

    wait_until(was_noticed)
    assert "; starting again" in said[0]
    assert (server.grpc_url, server.http_url) == urls
    reason = "ended" if victim == "server" else "model_ended"
    assert num_restarts(server) == before | {reason: before[reason] + 1}
    for model in (K0, K3):
        assert ask(server, model, text_input="a", sampling_param_max_tokens=1)[-1].is_final
