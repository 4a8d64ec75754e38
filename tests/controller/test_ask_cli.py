"""`trt-mtp ask` at a real gateway in front of real variants."""

import json
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import CliResult
from tests.gateway_fixtures import running_gateway
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.up_cli import ready_text
from trt_mtp.serve.processes import free_ports
from trt_mtp.serve.triton import TritonServer

Cli = Callable[..., CliResult]


@pytest.fixture(scope="module")
def gateway(small_triton: TritonServer) -> Iterator[str]:
    """The address of a gateway that chooses."""
    with running_gateway(small_triton.grpc_url, Policy()) as running:
        yield f"127.0.0.1:{running.gateway.port}"


def test_the_answer_is_on_stdout_and_its_way_on_stderr(cli: Cli, gateway: str) -> None:
    """Text as it comes; then the variant, the task, the reasons and the speed."""
    shown = cli("ask", "The name is Ada.", "--url", gateway, "--max-tokens", "8")
    assert shown.code == 0
    assert shown.out.endswith("\n")
    way, speed = shown.err.splitlines()[-2:]
    assert way.startswith("k")
    assert ", task " in way
    assert "finishes first" in way
    assert "8 tokens, first after " in speed


def test_json_has_what_was_chosen_and_why(cli: Cli, gateway: str) -> None:
    """A length that is asked for is taken; the tokens are those of every other length."""
    answers = {}
    for length in ("0", "3"):
        shown = cli("ask", "Hi", "--url", gateway, "--draft-length", length, "--json")
        answers[length] = json.loads(shown.out)
        assert answers[length]["schema_version"] == 1
        assert answers[length]["variant"] == f"k{length}"
        assert "the request names its draft length" in answers[length]["reasons"]
    assert answers["0"]["token_ids"] == answers["3"]["token_ids"]


def test_a_length_that_is_not_hosted_is_one_sentence(cli: Cli, gateway: str) -> None:
    """The gateway's refusal is what the user reads."""
    refused = cli("ask", "Hi", "--url", gateway, "--draft-length", "9")
    assert refused.code == 1
    assert "draft_length is '9': expected auto or a hosted draft length (0, 1, 3)" in refused.err


def test_no_gateway_is_one_sentence(cli: Cli) -> None:
    """Where nothing listens, the address is named."""
    port = free_ports({"nobody": 0})["nobody"]
    refused = cli("ask", "Hi", "--url", f"127.0.0.1:{port}")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert f"no gateway answers at 127.0.0.1:{port}" in refused.err


@pytest.mark.parametrize("url", ["127.0.0.1", "[::1]", "::1", "localhost:x", "localhost:99999"])
def test_an_address_without_a_port_is_none(cli: Cli, url: str) -> None:
    """It is refused for what it is, not for who doesn't answer there."""
    for command in (["ask", "Hi"], ["bench", "--model", "qwen_mtp"], ["calibrate"]):
        refused = cli(*command, "--url", url)
        assert (refused.code, f"--url is {url!r}: expected HOST:PORT" in refused.err) == (2, True)


def test_an_empty_question_is_not_asked(cli: Cli) -> None:
    """Nothing is sent for it."""
    ended = cli("ask", " ")
    assert (ended.code, "PROMPT is empty" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("address", "option"),
    [("127.0.0.1:8001", ""), ("127.0.0.1:5", " --url 127.0.0.1:5 \\\n ")],
)
def test_up_says_how_to_ask(address: str, option: str) -> None:
    """Its line for people has every address, and a command that works as it is, in 80 columns."""
    ready = {
        "gateway": address,
        "http": "127.0.0.1:8000",
        "openai": "http://127.0.0.1:8000/v1",
        "admin": "127.0.0.1:9001",
        "variants": [{"name": "k0"}, {"name": "k3"}],
        "triton": {"grpc": "127.0.0.1:8101"},
    }
    text = ready_text(ready)
    lines = text.splitlines()
    assert lines[0] == (
        f"gateway at {address}, OpenAI's API at http://127.0.0.1:8000/v1, "
        "Triton at 127.0.0.1:8101; qwen_mtp is k0, k3"
    )
    assert f'\nTry: trt-mtp ask{option} "Return JSON with' in text
    assert "\nWatch: trt-mtp top --admin 127.0.0.1:9001\n" in text
    assert max(map(len, lines[1:])) <= 80
