"""Real gateways that share a real Redis: with a password, over TLS, and while it is away."""

import asyncio
import hashlib
import json
import logging
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.controller.gateway.gateway_process import Process, gateway_process
from tests.controller.gateway.scrape import samples
from tests.gateway_fixtures import raw_stream, script_request, text_of, wait_until
from tests.http_client import ask
from tests.programs import command_line
from tests.redis_server import RedisServer, redis_server, secret
from trt_mtp.controller.gateway.shared.config import PASSWORD, parse_shared
from trt_mtp.controller.gateway.shared.metrics import SharedMetrics
from trt_mtp.controller.gateway.shared.reach import Reach
from trt_mtp.controller.gateway.shared.store import LeaseAsk, PlacesAsk, RedisStore
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.triton import TritonServer

ROOT = Path(__file__).parents[4]
SECRET = "correct-horse-battery"


def metric(process: Process, name: str) -> float:
    """One of the shared metrics of a gateway."""
    reply = ask(process.ready["http"], "GET", "/metrics")
    assert reply.status == 200
    return samples(reply.body)[f"shared_{name}", "", ""]


def answered(process: Process) -> str:
    """The text of an answer through this gateway."""
    with raw_stream(process.ready["gateway"]) as stream:
        stream.send(script_request(tokens=5, streaming=False))
        return text_of(stream.receive())


def test_a_store_that_goes_and_comes_costs_no_request(
    doubles: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gateways, one of two workers, find each other, go on without the store, and leave."""
    with redis_server(password=SECRET) as server:
        options = ["--triton", doubles.grpc_url, "--port", "0", "--http-port", "0"]
        options += ["--shared", server.url]
        file = secret(tmp_path / "password", SECRET)
        with gateway_process(
            tmp_path / "one.log", *options, "--shared-password-file", str(file), "--workers", "2",
            "--state", str(tmp_path / "state.json"),
        ) as one:  # fmt: skip
            monkeypatch.setenv(PASSWORD, SECRET)
            with gateway_process(tmp_path / "two.log", *options) as two:
                both = (one, two)
                wait_until(lambda: all(metric(g, "gateways") == 3 for g in both), timeout_s=60)
                assert [metric(g, "reachable") for g in both] == [1, 1]
                assert SECRET.encode() not in command_line(two.process.pid)
                text = answered(one)
                server.kill()
                for gateway in both * 3:
                    assert answered(gateway) == text
                wait_until(lambda: all(metric(g, "reachable") == 0 for g in both), timeout_s=60)
                assert all(metric(g, "errors_total") > 0 for g in both)
                assert all(metric(g, "gateways") == 3 for g in both)
                for gateway in both:
                    assert answered(gateway) == text
                server.start()
                wait_until(lambda: all(metric(g, "reachable") == 1 for g in both), timeout_s=60)
                assert two.end() == 0
            wait_until(lambda: metric(one, "gateways") == 2, timeout_s=60)
            assert one.end() == 0
        assert server.names() == []
        for gateway, workers in ((one, 2), (two, 1)):  # one of the workers may not have noticed
            assert 1 <= gateway.log.count("can't be reached") <= workers
            assert 1 <= gateway.log.count("can be reached again") <= workers
            assert SECRET not in gateway.log


def test_a_gateway_learns_from_one_that_came_before(
    doubles: TritonServer, redis: RedisServer, tmp_path: Path
) -> None:
    """What the first has learned is known to the second before its first request."""
    options = ("--triton", doubles.grpc_url, "--port", "0", "--shared", redis.url)
    with gateway_process(tmp_path / "one.log", *options, "--replica", "one") as one:
        answered(one)
        wait_until(lambda: b"counts" in redis.command("KEYS", "*"), timeout_s=60)
        state = tmp_path / "state.json"
        while not (state.exists() and learned_elsewhere(state)):
            with gateway_process(
                tmp_path / "two.log", *options, "--replica", "two", "--state", str(state)
            ):
                pass


def test_tenants_are_limited_through_the_store(
    doubles: TritonServer, redis: RedisServer, tmp_path: Path
) -> None:
    """Refusals are as without a store, and what a tenant used is where the others find it."""
    tenants = [
        {
            "name": "slow",
            "token_sha256": [hashlib.sha256(b"slow").hexdigest()],
            "requests_per_s": 0.001,
            "tokens_per_min": 1000,
            "concurrent_streams": 5,
        }
    ]
    file = tmp_path / "tenants.json"
    file.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    body = {"text_input": '{"tokens": 2}'}
    options = ["--triton", doubles.grpc_url, "--port", "0", "--http-port", "0"]
    options += ["--shared", redis.url, "--tokens", str(file)]
    with gateway_process(tmp_path / "log", *options) as gateway:
        path = "/v2/models/qwen_mtp/generate"
        replies = [ask(gateway.ready["http"], "POST", path, body, "slow") for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 429, 429, 429, 429]
        assert b"may have 0.001 requests a second" in replies[-1].body
        wait_until(lambda: sum(":bucket:" in key for key in redis.names()) == 2)


def learned_elsewhere(state: Path) -> int:
    """The number of answers of other gateways that a state has."""
    counted = json.loads(state.read_text())["acceptance"]["replicas"].get("others")
    return int(counted["version"]) if counted else 0


def test_a_gateway_starts_without_the_store(doubles: TritonServer, tmp_path: Path) -> None:
    """A store that is away, or that refuses the password, is said once; requests are answered."""
    with redis_server(password=SECRET) as server:
        wrong = secret(tmp_path / "password", "wrong-horse")
        with gateway_process(
            tmp_path / "log", "--triton", doubles.grpc_url, "--port", "0", "--shared", server.url,
            "--shared-password-file", str(wrong),
        ) as gateway:  # fmt: skip
            assert answered(gateway)
            assert gateway.end() == 0
    assert f"redis://127.0.0.1:{server.port} can't be reached (" in gateway.log
    assert "password" in gateway.log
    assert "wrong-horse" not in gateway.log
    assert "could not be taken back" not in gateway.log  # nothing was shared
    assert "Traceback" not in gateway.log


def test_tls_verifies_the_store(tmp_path: Path) -> None:
    """With its authority it is used; without, the gateway refuses to talk to it."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("redis")
    files = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", authority.ca)
    with redis_server(*map(str, files), "--tls-auth-clients", "no", tls=True) as server:
        url = server.url.replace("redis://", "rediss://")

        async def names(ca: Path | None) -> list[str]:
            store = RedisStore(parse_shared(url, ca=ca), "qwen_mtp", "a", "one")
            try:
                return await store.publish(b"value", 60.0)
            finally:
                await store.close()

        assert asyncio.run(names(authority.ca)) == ["one"]
        for other in (None, Authority(tmp_path / "other").ca):
            with pytest.raises(TrtMtpError, match="CERTIFICATE_VERIFY_FAILED"):
                asyncio.run(names(other))


def test_a_user_needs_few_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/fleet.md, and no other keys."""
    rights = "~trt-mtp:* -@all +@read +@write +@scripting +@connection +time -@dangerous"
    assert f"gateway on >PASSWORD {rights}" in (ROOT / "docs" / "fleet.md").read_text()
    user = f"--user gateway on >{SECRET} {rights}".split()
    monkeypatch.setenv(PASSWORD, SECRET)
    with redis_server(*user) as server:

        async def use() -> None:
            url = server.url.replace("redis://", "redis://gateway@")
            store = RedisStore(parse_shared(url), "qwen_mtp", "a", "one")
            assert await store.publish(b"value", 60.0) == ["one"]
            assert await store.read(["one"]) == {"one": b"value"}
            [lease] = await store.lease([LeaseAsk("bucket", 1.0, 5.0, 1.0, 9.0)])
            assert lease == pytest.approx((4.0, 1.0), abs=1e-5)
            assert await store.hold([PlacesAsk("tenant", 1, 3, 8)], 15.0) == [3]
            await store.ping()
            await store.leave()
            await store.close()

        asyncio.run(use())


def test_going_and_coming_are_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever part fails, and however often; the waits grow, and gateways don't wait alike."""
    from prometheus_client import CollectorRegistry

    reach = Reach("redis://store:6379", SharedMetrics(CollectorRegistry()))
    with caplog.at_level(logging.INFO):
        waits = [reach.failed("limits", TrtMtpError("no route")) for _ in range(20)]
        reach.failed("learning", TrtMtpError("no route"))
        reach.succeeded("limits")
        assert reach.is_away("learning")
        assert not reach.is_away("limits")
        reach.succeeded("learning")
        reach.succeeded("learning")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert waits[0] <= 0.25
    assert 2.5 <= waits[-1] <= 5.0
    assert len(set(waits[-5:])) == 5
