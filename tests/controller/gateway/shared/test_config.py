"""The address of the shared store, and its password, which no message has."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult
from tests.redis_server import secret
from trt_mtp.controller.gateway.shared.config import PASSWORD, SharedConfig, parse_shared
from trt_mtp.errors import InputError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://store", SharedConfig("store")),
        ("redis://10.0.0.7:7000/3", SharedConfig("10.0.0.7", 7000, 3)),
        ("redis://gate%40way@store/", SharedConfig("store", user="gate@way")),
        ("rediss://[::1]:6380/0", SharedConfig("::1", 6380, is_tls=True)),
    ],
)
def test_addresses(url: str, expected: SharedConfig) -> None:
    """Host, port, database, user and TLS, as the URLs of Redis have them."""
    assert parse_shared(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "store:6379",
        "http://store",
        "unix:///run/redis.sock",
        "redis://",
        "redis://:hunter2@store",
        "redis://user:hunter2@store:6379",
        "redis://store:hunter2",
        "redis://store:99999",
        "redis://store/hunter2",
        "redis://store/-1",
        "redis://store?password=hunter2",
        "redis://[::1",
    ],
)
def test_wrong_addresses_are_refused_without_being_repeated(url: str) -> None:
    """One sentence that names the option, and never the URL: a password may be anywhere in it."""
    with pytest.raises(InputError, match="--shared") as refused:
        parse_shared(url)
    assert "hunter2" not in str(refused.value)


def test_a_password_is_in_the_file_or_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file wins, is read each time, and is not empty."""
    monkeypatch.setenv(PASSWORD, "from the environment\n")  # as `kubectl create secret` has it
    assert parse_shared("redis://store").password() == "from the environment"
    file = secret(tmp_path / "password", "one")
    config = parse_shared("redis://store", file)
    assert config.password() == "one"
    secret(file, "two")
    assert config.password() == "two"
    secret(file, "")
    with pytest.raises(InputError, match="is empty, expected the password of redis://store:6379"):
        config.password()
    monkeypatch.delenv(PASSWORD)
    assert parse_shared("redis://store").password() is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--shared redis:/store", "is not an address of the form redis://HOST:PORT/DB"),
        ("--shared redis://:hunter2@store", "has a password in it"),
        ("--shared-password-file missing", "go with --shared"),
        ("--shared redis://store --shared-password-file missing", "missing does not exist"),
        ("--shared redis://store --shared-ca missing", "--shared-ca is for TLS"),
        ("--shared rediss://store --shared-ca missing", "missing does not exist"),
    ],
)
def test_wrong_options_are_one_sentence(
    options: str, sentence: str, cli: Callable[..., CliResult]
) -> None:
    """Exit code 2 before anything is started."""
    ended = cli("gateway", "--triton", "127.0.0.1:1", *options.split())
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err
    assert "hunter2" not in ended.err
    assert ended.err.count("\n") == 1
