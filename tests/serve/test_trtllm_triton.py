"""TensorRT-LLM variants on a real Triton server, a double of tensorrt_llm inside its models."""

import json
import os
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import np_to_triton_dtype

from tests.gateway_fixtures import running_gateway
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.tensorrt_llm import options_for, plan_variants, write_variants
from trt_mtp.build.trtllm_version import supported_version
from trt_mtp.build.variant import list_variants
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import Profile
from trt_mtp.serve.serving import serving
from trt_mtp.serve.triton import TritonServer

DOUBLES = Path(__file__).parents[1] / "doubles"
VERSION = "1.3.0rc29"  # which reports the drafts of a request


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Triton with the variants k0 and k3 of the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("trtllm-triton") / "engines"
    found = read_checkpoint(checkpoint)
    options = options_for(
        found, supported_version(VERSION), None, max_batch_size=4, max_seq_len=256,
        schedule={1: 3, 3: 2},
    )  # fmt: skip
    write_variants(plan_variants(found, options, (0, 3), folder), found, options, folder)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(DOUBLES)
    patch.setenv("TENSORRT_LLM_DOUBLE_VERSION", VERSION)
    patch.setenv("PYTHONPATH", f"{DOUBLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with serving(list_variants(folder)) as running:
        yield running
    patch.undo()


def infer(url: str, model: str, inputs: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    """Every response of one request; raises what the server answers instead."""
    tensors = []
    for name, value in inputs.items():
        tensor = grpcclient.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = grpcclient.InferenceServerClient(url)
    client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=60)
    client.async_stream_infer(model, tensors, enable_empty_final_response=True)
    results = []
    while True:
        result, error = answers.get(timeout=60)
        if error is not None:
            client.stop_stream()
            client.close()
            raise error
        results.append(result)
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    client.close()
    return results


def request_of(**more: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A prompt of three tokens, 20 tokens wanted."""
    values = {
        "input_ids": np.array([5, 6, 7], np.int32),
        "sampling_param_max_tokens": np.array([20], np.int32),
    }
    return values | {name: np.array([value]) for name, value in more.items()}


def joined(results: list[Any], name: str) -> list[Any]:
    """One output over all responses."""
    parts = [result.as_numpy(name) for result in results]
    return [value for part in parts if part is not None for value in part.tolist()]


def test_both_variants_answer_alike(server: TritonServer) -> None:
    """Both draft lengths give the same tokens, and the counters tell them apart."""
    plain = infer(server.grpc_url, "qwen_mtp_k0", request_of())
    drafted = infer(server.grpc_url, "qwen_mtp_k3", request_of())
    assert joined(plain, "output_ids") == joined(drafted, "output_ids")
    assert len(joined(plain, "output_ids")) == 20
    assert joined(plain, "num_steps") == [19]
    assert joined(plain, "num_draft_tokens") == [0]
    (steps,) = joined(drafted, "num_steps")
    assert steps < 19
    assert joined(drafted, "num_draft_tokens") == [3 * steps]
    assert joined(drafted, "num_accepted_draft_tokens") == [19 - steps]
    assert joined(drafted, "finish_reason") == [b"length"]


def test_streaming(server: TritonServer) -> None:
    """A streaming request brings its tokens in several responses, whole together."""
    whole = infer(server.grpc_url, "qwen_mtp_k3", request_of())
    parts = infer(server.grpc_url, "qwen_mtp_k3", request_of(streaming=True))
    assert len(parts) > 2
    assert joined(parts, "output_ids") == joined(whole, "output_ids")


def test_chat_messages(server: TritonServer) -> None:
    """Chat messages go through the checkpoint's own template."""
    messages = json.dumps([{"role": "user", "content": "hello"}]).encode()
    inputs = request_of() | {"messages": np.array([messages], np.object_)}
    del inputs["input_ids"]
    results = infer(server.grpc_url, "qwen_mtp_k0", inputs)
    assert joined(results, "num_output_tokens") == [20]
    assert joined(results, "num_input_tokens")[0] > 5


def test_too_long_is_refused(server: TritonServer) -> None:
    """A request that can't be run is answered with a sentence."""
    inputs = request_of() | {"input_ids": np.full(256, 5, np.int32)}  # no room for an answer
    with pytest.raises(Exception, match="may be at most 256"):
        infer(server.grpc_url, "qwen_mtp_k3", inputs)


def test_a_gateway_knows_the_schedule_and_learns(server: TritonServer) -> None:
    """What was built as draft_len_schedule decides, and answers teach every position."""
    policy = Policy(Profile(acceptance={"coding": 0.99}, exploration=0.0))
    with running_gateway(server.grpc_url, policy) as thread:
        schedules = {v.name: v.schedule for v in thread.gateway.pool.variants.values()}
        assert schedules["k0"] is None
        assert schedules["k3"] is not None
        assert schedules["k3"].steps == ((1, 3), (3, 2), (4, 1))
        infer(thread.gateway.address, "qwen_mtp", request_of())
        held = request_of(sampling_param_min_tokens=np.int32(9))
        [last] = infer(thread.gateway.address, "qwen_mtp", held)  # k3 can't while it drafts
        assert last.get_response().parameters["variant"].string_param == "k0"
    learned = policy.acceptance.own["all"]
    assert learned.trials[:4] > [0, 0, 0, 0]
    # as the double accepts: of 8 steps, the last was cut before its first draft showed its outcome
    assert learned.successes[0] / learned.trials[0] == pytest.approx(5 / 7)


def test_a_dead_engine_leaves_service(server: TritonServer) -> None:
    """When TensorRT-LLM has shut down, its variant's process ends, and all are started again."""
    said: list[str] = []
    server.check(said.append)
    assert said == []
    failing = request_of() | {"input_ids": np.array([250, 1], np.int32)}
    for _ in range(2):
        with pytest.raises(Exception, match="internal error: CUDA error"):
            infer(server.grpc_url, "qwen_mtp_k3", failing)
    assert len(joined(infer(server.grpc_url, "qwen_mtp_k3", request_of()), "output_ids")) == 20
    with pytest.raises(Exception):  # noqa: B017, PT011 - the last error, or a stream that broke
        infer(server.grpc_url, "qwen_mtp_k3", failing)
    deadline = time.monotonic() + 60
    while not said and time.monotonic() < deadline:
        server.check(said.append)
        time.sleep(0.05)
    assert "; starting again" in said[0]
    assert len(joined(infer(server.grpc_url, "qwen_mtp_k3", request_of()), "output_ids")) == 20
