"""Options from a TOML file and from the environment, and what they are worth beside each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from tests.conftest import CliResult
from trt_mtp.cli import SETTINGS
from trt_mtp.cli import cli as cli_group
from trt_mtp.controller.gateway.cli import gateway
from trt_mtp.errors import InputError
from trt_mtp.serve.cli import serve

Cli = Callable[..., CliResult]
GATEWAY = """
[gateway]
triton = ["127.0.0.1:8101", "127.0.0.1:8201"]
port = 9001
max-waiting = 7
stall-factor = 30
log-prompts = true
decision-log = "decisions.jsonl"
"""


def options(command: click.Command, *arguments: str) -> dict[str, Any]:
    """What a command would be called with."""
    root = click.Context(click.Group("trt-mtp"), info_name="trt-mtp", **SETTINGS)  # type: ignore[arg-type]
    with command.make_context(str(command.name), list(arguments), parent=root) as context:
        return dict(context.params)


def test_a_file_has_what_the_command_line_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line first, then the environment, then the file."""
    file = tmp_path / "trt-mtp.toml"
    file.write_text(GATEWAY + "[serve]\nengines = ['a', 'b']\ngrpc-port = 8103\n")
    taken = options(gateway, "--config", str(file), "--max-waiting", "9")
    assert taken["triton"] == ("127.0.0.1:8101", "127.0.0.1:8201")
    assert (taken["port"], taken["max_waiting"], taken["stall_factor"]) == (9001, 9, 30.0)
    assert (taken["log_prompts"], taken["decision_log"]) == (True, Path("decisions.jsonl"))
    monkeypatch.setenv("TRT_MTP_GATEWAY_PORT", "9002")
    monkeypatch.setenv("TRT_MTP_GATEWAY_MAX_WAITING", "8")
    taken = options(gateway, "--config", str(file), "--max-waiting", "9")
    assert (taken["port"], taken["max_waiting"]) == (9002, 9)
    monkeypatch.delenv("TRT_MTP_SERVE_GRPC_PORT")
    taken = options(serve, "--config", str(file))
    assert (taken["engines"], taken["grpc_port"]) == ((Path("a"), Path("b")), 8103)


def test_servers_have_the_documented_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """8101 for gRPC, 8102 for metrics, no HTTP."""
    for name in ("GRPC", "METRICS"):
        monkeypatch.delenv(f"TRT_MTP_SERVE_{name}_PORT")
    taken = options(serve, "engines")
    assert [taken[f"{name}_port"] for name in ("grpc", "metrics", "http")] == [8101, 8102, None]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gateway]\nmax-waitng = 3", "unknown option 'max-waitng'; did you mean max-waiting?"),
        ("[gateway]\nport = 99999", "port: 99999 is not in the range 0<=x<=65535"),
        ("[gateway]\nport = 'http'", "port: 'http' is not a valid port"),
        ("[gateway]\ntriton = 'h:1'", "triton is 'h:1'; expected a list"),
        ("[gateway]\nport = [1]", "port is [1]; expected one value"),
        ("[gateway]\nlog-prompts = 1", "log-prompts is 1; expected true or false"),
        ("[gateway]\nport = true", "port is True; expected port"),
        ("[gateway]\njson = true", "unknown option 'json'"),
        ("[gatway]\nport = 1", "'gatway' is not one of the tables it may have: [gateway], [serve]"),
        ("port = 1", "'port' is not one of the tables it may have"),
        ("[gateway\n", "is not valid TOML: "),
        (f"[gateway]\nport = {'[' * 5_000}", "is nested too deeply"),
        (f"[gateway]\nport = {'9' * 5_000}", "has a number of thousands of digits"),
    ],
)
def test_what_is_wrong_in_it_is_named(cli: Cli, tmp_path: Path, text: str, says: str) -> None:
    """File, key and value; exit code 2."""
    file = tmp_path / "trt-mtp.toml"
    file.write_text(text)
    result = cli("gateway", "--config", file)
    assert result.code == 2
    assert result.err.startswith(f"trt-mtp: {file}")
    assert says in result.err


def test_a_file_that_is_not_there_is_named(cli: Cli, tmp_path: Path) -> None:
    """One sentence."""
    result = cli("serve", "--config", tmp_path / "none.toml")
    assert result.code == 2
    assert "none.toml" in result.err


def test_an_address_of_kubernetes_is_no_port(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service called trt-mtp-gateway gives pods a variable of the option's name."""
    monkeypatch.setenv("TRT_MTP_GATEWAY_PORT", "tcp://10.0.0.7:8001")
    result = cli("gateway", "--triton", "127.0.0.1:1")
    assert result.code == 2
    assert "set enableServiceLinks: false" in result.err


def test_input_errors_are_ours(tmp_path: Path) -> None:
    """They are raised as such, for the exit code."""
    (tmp_path / "c.toml").write_text("[serve]\nx = 1")
    with pytest.raises(InputError, match="unknown option"):
        options(serve, "--config", str(tmp_path / "c.toml"))


def test_variables_are_called_as_the_options_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of commands in groups, too, whatever their arguments are called in the code."""
    monkeypatch.setenv("TRT_MTP_GATEWAY_CORS_ORIGIN", "http://a http://b")
    monkeypatch.setenv("TRT_MTP_GATEWAY_SSE_KEEP_ALIVE_S", "7")
    root = click.Context(cli_group, info_name="trt-mtp", **SETTINGS)  # type: ignore[arg-type]
    command = cli_group.get_command(root, "gateway")
    assert command is not None
    with command.make_context("gateway", ["--triton", "127.0.0.1:1"], parent=root) as context:
        assert context.params["origins"] == ("http://a", "http://b")
        assert context.params["keep_alive_s"] == 7
    group = cli_group.get_command(root, "profile")
    assert isinstance(group, click.Group)
    [name] = [each.envvar for each in group.commands["merge"].params if each.name == "out"]
    assert name == "TRT_MTP_PROFILE_MERGE_OUTPUT"
