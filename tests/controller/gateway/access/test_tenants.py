"""Tenants: tokens, and what each tenant may use."""

import hashlib
import json
import logging
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lease_fixtures import call_of
from trt_mtp.controller.gateway.access import tenants as tenants_module
from trt_mtp.controller.gateway.access.authenticator import Caller
from trt_mtp.controller.gateway.access.tenants import Tenant, TenantRecord, Tenants
from trt_mtp.controller.gateway.access.token_bucket import TokenBucket
from trt_mtp.controller.gateway.failure import LimitError, UnauthenticatedError
from trt_mtp.controller.gateway.scoreboard import Scoreboard
from trt_mtp.errors import InputError


def sha256(token: str) -> str:
    """As `sha256sum` prints it."""
    return hashlib.sha256(token.encode()).hexdigest()


def record(**limits: Any) -> TenantRecord:
    """A tenant with limits."""
    return TenantRecord(name="search", token_sha256=[sha256("t")], **limits)


def write(path: Path, *tenants: dict[str, Any]) -> Path:
    """A tenants' file."""
    path.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    return path


Times = st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=50)


@given(st.floats(0.1, 100), st.floats(1, 50), Times)
def test_a_bucket_never_gives_more_than_its_rate_and_burst(
    rate: float, capacity: float, gaps: list[float]
) -> None:
    """Over any time from the start, what was taken while allowed is at most burst + rate x time."""
    bucket, now_s, taken = TokenBucket(rate, capacity), 0.0, 0
    for gap in gaps:
        now_s += gap
        while bucket.wait_s(now_s) == 0:
            bucket.take(1, now_s)
            taken += 1
        assert taken <= capacity + rate * now_s + 1e-6


@given(st.floats(0.1, 100), st.floats(1, 50), st.floats(0, 500), st.floats(0, 100))
def test_waiting_as_long_as_told_is_enough_and_no_shorter_wait_is(
    rate: float, capacity: float, amount: float, now_s: float
) -> None:
    """The wait that a client is told is honest, debts included."""
    bucket = TokenBucket(rate, capacity)
    bucket.take(amount, now_s)
    wait_s = bucket.wait_s(now_s)
    if wait_s > 1e-3:
        assert bucket.wait_s(now_s + wait_s * 0.99) > 0
    assert bucket.wait_s(now_s + wait_s) == pytest.approx(0, abs=1e-6)


@given(st.floats(0.1, 100), st.lists(st.floats(-10, 10), max_size=30))
def test_a_clock_that_goes_back_gives_nothing(rate: float, steps: list[float]) -> None:
    """Time that was counted is never counted again."""
    bucket, now_s, latest_s, taken = TokenBucket(rate, 5), 0.0, 0.0, 0
    for step in steps:
        now_s += step
        latest_s = max(latest_s, now_s)
        while bucket.wait_s(now_s) == 0:
            bucket.take(1, now_s)
            taken += 1
    assert taken <= 5 + rate * latest_s + 1e-6


def test_requests_at_a_time() -> None:
    """As many as the limit says; when one ends another may begin."""
    tenant = Tenant(record(concurrent_streams=2), Scoreboard())
    tenant.begin(1, 0.0)
    tenant.begin(1, 0.0)
    with pytest.raises(LimitError, match="may have 2 requests in flight"):
        tenant.begin(1, 0.0)
    tenant.end(1, 0.0)
    tenant.begin(1, 0.0)


def test_requests_a_second() -> None:
    """A second's worth at once, then at the rate; the error says when."""
    tenant = Tenant(record(requests_per_s=2), Scoreboard())
    for _ in range(2):
        tenant.begin(1, 0.0)
    with pytest.raises(LimitError, match=r"2 requests a second: try again in 0\.5 s") as refused:
        tenant.begin(1, 0.0)
    assert refused.value.retry_after_s == pytest.approx(0.5)
    tenant.begin(1, 0.5)


def test_tokens_a_minute_count_prompts_and_answers() -> None:
    """What a request takes beyond the limit is waited off by the next ones."""
    tenant = Tenant(record(tokens_per_min=600), Scoreboard())
    tenant.begin(500, 0.0)
    tenant.end(150, 0.0)
    with pytest.raises(LimitError, match=r"600 tokens a minute: try again in 5\.1 s"):
        tenant.begin(1, 0.0)
    tenant.begin(1, 5.2)


def test_no_limits_no_refusals() -> None:
    """What the file leaves out doesn't limit."""
    tenant = Tenant(record(), Scoreboard())
    for _ in range(1000):
        tenant.begin(10**6, 0.0)


def test_tokens_are_known_by_their_hashes(tmp_path: Path) -> None:
    """Any of a tenant's tokens is its own; none, a hash itself and wrong ones are nobody's."""
    hashes = [sha256("one"), sha256("two")]
    file = write(tmp_path / "t.json", {"name": "search", "token_sha256": hashes})
    found = Tenants(file, Scoreboard())
    for authorization in ("Bearer one", "bearer two", "BEARER  two "):
        assert found.authenticate(authorization).record.name == "search"
    for authorization in ("", "one", "Basic one", "Bearer", "Bearer three", f"Bearer {hashes[0]}"):
        with pytest.raises(UnauthenticatedError):
            found.authenticate(authorization)
    with pytest.raises(UnauthenticatedError):
        found.authenticate("Bearer \udcff")


def test_the_file_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """New tokens count, removed tenants end, a broken file changes nothing; use is kept."""
    monkeypatch.setattr(tenants_module, "LOOK_S", 0.0)
    one = {"name": "one", "token_sha256": [sha256("1")], "concurrent_streams": 1}
    two = {"name": "two", "token_sha256": [sha256("2")]}
    path = write(tmp_path / "t.json", one, two)
    found = Tenants(path, Scoreboard())
    tenant, other = found.authenticate("Bearer 1"), found.authenticate("Bearer 2")
    tenant.begin(1, 0.0)
    path.write_text("{")
    with caplog.at_level(logging.ERROR):
        assert found.authenticate("Bearer 1") is tenant
    assert "neither YAML nor JSON" in caplog.text
    for value in ("2024-13-45", "!!float x", "!!int", "9" * 5000, "[&a 1, *a]"):
        path.write_text(f"schema_version: {value}")
        assert found.authenticate("Bearer 1") is tenant
    path.unlink()
    os.mkfifo(path)
    assert found.authenticate("Bearer 1") is tenant
    os.replace(write(tmp_path / "next", one | {"token_sha256": [sha256("new")]}), path)
    assert found.authenticate("Bearer new") is tenant
    with pytest.raises(UnauthenticatedError):
        found.authenticate("Bearer 1")
    with pytest.raises(LimitError):
        tenant.begin(1, 0.0)
    with pytest.raises(UnauthenticatedError, match="two has been removed"):
        other.begin(1, 0.0)


def test_a_file_that_could_not_be_opened_is_read_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A token that was taken out while the process had no file left to open is known no longer."""
    monkeypatch.setattr(tenants_module, "LOOK_S", 0.0)
    path = write(tmp_path / "t.json", {"name": "one", "token_sha256": [sha256("1")]})
    found = Tenants(path, Scoreboard())
    write(path, {"name": "one", "token_sha256": [sha256("new")]})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        found.look()
        found.look()
        assert found.authenticate("Bearer 1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(UnauthenticatedError):
        found.authenticate("Bearer 1")
    assert caplog.text.count("Too many open files") == 1


def test_yaml_is_read_as_well(tmp_path: Path) -> None:
    """The same file in the form that people write."""
    path = tmp_path / "tenants.yaml"
    path.write_text(
        f"schema_version: 1\ntenants:\n- name: search\n  requests_per_s: 5\n"
        f"  token_sha256:\n  - {sha256('t')}\n"
    )
    assert Tenants(path, Scoreboard()).authenticate("Bearer t").record.requests_per_s == 5


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(request_per_s=3), "did you mean requests_per_s?"),
        (lambda t: t.update(requests_per_s=0), "greater than 0"),
        (
            lambda t: t.update(token_sha256=["a-plain-token"]),
            "token_sha256.0: expected the SHA-256 of",
        ),
        (lambda t: t.update(token_sha256=[]), "at least 1 item"),
        (lambda t: t.update(name=""), "at least 1 character"),
        (lambda t: t.update(token_sha256=[sha256("t")] * 2), "a token's hash occurs twice"),
    ],
)
def test_a_wrong_file_is_refused_without_showing_what_may_be_a_token(
    tmp_path: Path, change: Change, message: str
) -> None:
    """The sentence names the file, the key and what was expected."""
    tenant: dict[str, Any] = {"name": "search", "token_sha256": [sha256("t")]}
    change(tenant)
    with pytest.raises(InputError, match=r"t\.json") as refused:
        Tenants(write(tmp_path / "t.json", tenant), Scoreboard())
    assert message in str(refused.value)
    assert "a-plain-token" not in str(refused.value)


def test_files_that_are_no_tenants(tmp_path: Path) -> None:
    """Missing, no mapping, two of a name, another schema."""
    path = tmp_path / "t.json"
    with pytest.raises(InputError, match="does not exist"):
        Tenants(path, Scoreboard())
    for text in ("", "[]", "some-token"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"t\.json has to be a mapping with the keys schema_"):
            Tenants(path, Scoreboard())
    for text in ('{"schema_version": 2, "tenants": []}', "[" * 5000, "a: b: c"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"t\.json"):
            Tenants(path, Scoreboard())
    same = {"name": "search", "token_sha256": [sha256("t")]}
    with pytest.raises(InputError, match="two tenants have the same name"):
        Tenants(write(path, same, same | {"token_sha256": [sha256("u")]}), Scoreboard())


def test_a_prompt_is_charged_as_its_variant_told() -> None:
    """Four characters to a token is an estimate, and a tenant can choose what it asks."""
    tenant = Tenant(record(tokens_per_min=600), Scoreboard())
    call = call_of(prompt="x" * 400, caller=Caller(tenant, None, sha256("t")))
    with call.quota():
        call.num_input_tokens = 400
    tenant.begin(0, time.monotonic())
    with call.quota():
        call.num_input_tokens = 400
    with pytest.raises(LimitError, match="600 tokens a minute"):
        tenant.begin(0, time.monotonic())
