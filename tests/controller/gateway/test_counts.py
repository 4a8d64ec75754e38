"""However clients ask, wait and leave, all that the gateway counts is zero when they are gone."""

import contextlib
import hashlib
import json
import random
import threading
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.gateway_fixtures import (
    GatewayThread,
    raw_stream,
    running_gateway,
    script_request,
    triton_of_doubles,
    wait_until,
)
from tests.http_client import sent
from tests.programs import join
from trt_mtp.controller.gateway.access.config import AccessConfig
from trt_mtp.controller.gateway.hang_detector import StallLimits
from trt_mtp.serve.kserve import SERVICE

NUM_CLIENTS, NUM_ACTIONS = 12, 25
PLACES = 3  # of the tenant that is limited
TOKENS = ("free", "limited")
GENERATE = "/v2/models/qwen_mtp/generate"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayThread]:
    """One before three variants of two places each, for two tenants."""
    folder = tmp_path_factory.mktemp("counts")
    tenants: list[dict[str, Any]] = [
        {"name": token, "token_sha256": [hashlib.sha256(token.encode()).hexdigest()]}
        for token in TOKENS
    ]
    tenants[1]["concurrent_streams"] = PLACES
    (folder / "tenants.json").write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    settings: dict[str, Any] = {
        "http_port": 0,
        "max_waiting": 8,
        "access": AccessConfig(tokens=folder / "tenants.json"),
        "stall": StallLimits(factor=1.0, min_s=1.5),
    }
    with (
        triton_of_doubles(folder / "triton", max_batch_size=2) as triton,
        running_gateway(triton.grpc_url, **settings) as running,
    ):
        yield running


class Client:
    """Does one thing after the other, each drawn, with a token that is drawn."""

    def __init__(self, gateway: GatewayThread, seed: int) -> None:
        self._draw = random.Random(seed)
        self._grpc, self._http = gateway.gateway.address, str(gateway.gateway.http_address)
        self.problem: BaseException | None = None

    def run(self) -> None:
        """All of it; what is refused or cut is what it asked for."""
        try:
            for _ in range(NUM_ACTIONS):
                action = self._draw.choice((self._stream, self._single, self._events, self._chat))
                with contextlib.suppress(grpc.RpcError, StopIteration, HTTPException, OSError):
                    action(self._draw.choice(TOKENS))
        except BaseException as error:
            self.problem = error

    def _script(self) -> dict[str, Any]:
        draw = self._draw
        script: dict[str, Any] = {"tokens": draw.randint(1, 20), "delay_s": draw.choice((0, 0.01))}
        if fault := draw.choice(("", "", "", "", "", "", "error_at", "hang_at")):
            script |= {fault: draw.randint(0, 5), "faulty": [draw.choice((0, 1, 3))]}
        return script

    def _request(self, *, streaming: bool = True) -> Any:
        draw = self._draw
        parameters: dict[str, Any] = {"session_id": draw.choice("ab")}
        if draw.random() < 0.5:
            parameters |= {"priority": draw.choice((0, 1, 7))}
        if draw.random() < 0.8:
            parameters |= {"timeout": draw.choice((1, 5_000, 200_000))}
        if draw.random() < 0.2:
            parameters |= {"draft_length": draw.choice(("0", "3", "9"))}
        request = script_request(parameters=parameters, streaming=streaming, **self._script())
        if draw.random() < 0.1:
            del request.raw_input_contents[-1]
        return request

    def _stream(self, token: str) -> None:
        with raw_stream(self._grpc, _bearer(token)) as stream:
            number = self._draw.randint(1, 4)
            for _ in range(number):
                stream.send(self._request())
            if self._draw.random() < 0.5:
                stream.half_close()
            for _ in range(self._draw.choice((0, 1, number))):
                stream.receive()
            if self._draw.random() < 0.2:
                stream.send(b"\xff\xff")

    def _single(self, token: str) -> None:
        with grpc.insecure_channel(self._grpc) as channel:
            call = channel.unary_unary(
                f"/{SERVICE.full_name}/ModelInfer", pb.ModelInferRequest.SerializeToString
            )
            limit_s = self._draw.choice((0.001, 0.05, 0.5))
            call(self._request(streaming=False), timeout=limit_s, metadata=_bearer(token))

    def _events(self, token: str) -> None:
        body = {"text_input": json.dumps(self._script()), "streaming": True}
        self._read(f"{GENERATE}_stream", body, token)

    def _chat(self, token: str) -> None:
        body: dict[str, Any] = {
            "model": "qwen_mtp",
            "messages": [{"role": "user", "content": json.dumps(self._script())}],
            "stream": self._draw.random() < 0.5,
            "n": self._draw.choice((1, 3)),
        }
        self._read("/v1/chat/completions", body, token)

    def _read(self, path: str, body: dict[str, Any], token: str) -> None:
        with sent(self._http, "POST", path, body, token) as response:
            for _ in range(self._draw.choice((0, 1, 3))):
                response.readline()


@pytest.mark.parametrize("seed", range(3))
def test_all_counts_are_zero_when_all_clients_are_gone(gateway: GatewayThread, seed: int) -> None:
    """Nothing runs or waits, and a tenant may have as many requests in flight as before."""
    clients = [Client(gateway, seed * NUM_CLIENTS + number) for number in range(NUM_CLIENTS)]
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert [client.problem for client in clients] == [None] * NUM_CLIENTS
    wait_until(lambda: not any(counts(gateway).values()))
    with raw_stream(gateway.gateway.address, _bearer("limited")) as stream:
        for _ in range(PLACES):
            stream.send(script_request(tokens=1000, delay_s=0.01))
        wait_until(lambda: sum(counts(gateway).values()) == PLACES)
        stream.send(script_request(request_id="one too many"))
        while not (refused := stream.receive()).error_message:
            pass
        assert f"may have {PLACES} requests in flight" in refused.error_message
    wait_until(lambda: not any(counts(gateway).values()))


def counts(gateway: GatewayThread) -> dict[str, int]:
    """What runs on each variant, and what waits."""
    told = gateway.gateway.statistics()
    running = {name: variant["num_running"] for name, variant in told["variants"].items()}
    return running | {"waiting": told["num_waiting"]}


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
