"""NVIDIA's perf_analyzer, unchanged, through the gateway."""

from benchmarks.perf_analyzer import measure
from tests.gateway_fixtures import running_gateway
from trt_mtp.serve.triton import TritonServer


def test_perf_analyzer_gets_every_answer_whole(doubles: TritonServer) -> None:
    """It finds the public model, streams from it, and all its answers are complete."""
    with running_gateway(doubles.grpc_url) as thread:
        measured = measure(thread.gateway.address, "qwen_mtp", num_requests=40)
    assert measured.num_whole == measured.num_requests == 40
