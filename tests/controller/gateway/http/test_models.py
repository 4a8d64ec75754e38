"""What the gateway says over HTTP of the server and of its one model, beside what Triton says."""

from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.http

from tests.gateway_fixtures import raw_stream, running_gateway, script_request, wait_until
from tests.http_client import ask
from trt_mtp.controller.gateway.public_model import REFUSED_EXTENSIONS
from trt_mtp.serve.contract import VARIANT_ONLY
from trt_mtp.serve.triton import TritonServer

MODEL = "/v2/models/qwen_mtp"
KEYS = ("count", "ns")


@pytest.fixture(scope="module")
def url(doubles: TritonServer) -> Iterator[str]:
    """A gateway's HTTP port; each variant has answered a request."""
    with running_gateway(doubles.grpc_url, http_port=0) as thread:
        with raw_stream(thread.gateway.address) as stream:
            for length in (0, 1, 3):
                stream.send(script_request(tokens=2, parameters={"draft_length": length}))
                stream.receive()
                stream.receive()
        yield str(thread.gateway.http_address)


def get(address: str | None, path: str) -> Any:
    """The JSON at a path."""
    reply = ask(str(address), "GET", path)
    assert reply.status == 200
    return reply.json()


def test_the_server_is_triton(url: str, doubles: TritonServer) -> None:
    """Its name, version and extensions, less those whose calls are refused here."""
    own, tritons = get(url, "/v2"), get(doubles.http_url, "/v2")
    assert set(tritons["extensions"]) > REFUSED_EXTENSIONS
    kept = [name for name in tritons["extensions"] if name not in REFUSED_EXTENSIONS]
    assert own == {**tritons, "extensions": kept}


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_the_configuration_is_tritons(url: str, doubles: TritonServer, version: str) -> None:
    """Key for key a variant's, under the public name; the parameters alone are the model's own."""
    own = get(url, f"{MODEL}{version}/config")
    tritons = get(doubles.http_url, f"{MODEL}_k3{version}/config")
    tritons["instance_group"][0]["name"] = "qwen_mtp_0"
    for key in ("input", "output"):
        tritons[key] = [t for t in tritons[key] if t["name"] not in VARIANT_ONLY]
    assert own["parameters"] == {"draft_lengths": {"string_value": "0,1,3"}}
    assert own == tritons | {"name": "qwen_mtp", "parameters": own["parameters"]}


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_statistics_are_those_of_one_model(url: str, doubles: TritonServer, version: str) -> None:
    """The keys of Triton's, whose numbers are those of all variants together."""

    def one_and_each() -> tuple[Any, list[Any]]:
        [own] = get(url, f"{MODEL}{version}/stats")["model_stats"]
        paths = [f"{MODEL}_k{length}/stats" for length in (0, 1, 3)]
        return own, [get(doubles.http_url, path)["model_stats"][0] for path in paths]

    def are_summed() -> bool:
        own, each = one_and_each()
        total = [sum(one["inference_stats"]["success"][key] for one in each) for key in KEYS]
        return [own["inference_stats"]["success"][key] for key in KEYS] == total

    wait_until(are_summed)  # Triton counts an answer after its last message
    own, each = one_and_each()
    assert own.keys() == each[0].keys()
    assert (own["name"], own["version"]) == ("qwen_mtp", "1")
    assert own["inference_stats"].keys() == each[0]["inference_stats"].keys()
    assert own["response_stats"].keys() == each[2]["response_stats"].keys()
    [name, *others] = [s["name"] for s in get(url, "/v2/models/stats")["model_stats"]]
    assert name == "qwen_mtp"
    assert {"qwen_mtp_k0", "other"} < set(others)


def test_a_stock_client_describes_the_model(url: str) -> None:
    """tritonclient.http asks for all of them."""
    client = tritonclient.http.InferenceServerClient(url)
    assert client.get_server_metadata()["name"] == "triton"
    assert client.get_model_config("qwen_mtp")["name"] == "qwen_mtp"
    assert client.get_inference_statistics("qwen_mtp")["model_stats"][0]["name"] == "qwen_mtp"
    first, *_ = client.get_model_repository_index()
    assert first == {"name": "qwen_mtp", "version": "1", "state": "READY"}
    client.close()


@pytest.mark.parametrize(
    ("body", "sentence"), [(b"[1]", "JSON object"), (b'{"ready": 1}', "expected true or false")]
)
def test_a_wrong_question_is_refused(url: str, body: bytes, sentence: str) -> None:
    """The index takes nothing but ready."""
    reply = ask(url, "POST", "/v2/repository/index", body)
    assert (reply.status, sentence in reply.error) == (400, True)


def test_a_long_question_is_refused(url: str) -> None:
    """The index has one key to be asked by, and nothing is read beyond that."""
    assert ask(url, "POST", "/v2/repository/index", b" " * 2_000).status == 413
