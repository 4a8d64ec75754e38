"""Clients that look whether their connection lives."""

import threading
import time
from collections.abc import Iterator

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.gateway_fixtures import running_gateway
from tests.programs import TIMEOUT_S
from trt_mtp.serve.triton import TritonServer

PINGING = (
    ("grpc.keepalive_time_ms", 1_100),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
NUM_PINGS = 5  # by default gRPC ends a connection at the fourth


def requests(end: threading.Event) -> Iterator[service_pb2.ModelInferRequest]:
    """None, until the end."""
    end.wait(TIMEOUT_S)
    yield from ()


def test_pings_end_no_connection(doubles: TritonServer) -> None:
    """A stream on which nothing comes for long outlives keepalives, here and at Triton."""
    with running_gateway(doubles.grpc_url) as thread:
        end, calls, channels = threading.Event(), [], []
        for address in (thread.gateway.address, doubles.grpc_url):
            channel = grpc.insecure_channel(address, PINGING)
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            channels.append(channel)
            calls.append(stub.ModelStreamInfer(requests(end), timeout=TIMEOUT_S))
        time.sleep(1.1 * NUM_PINGS)  # what must not come can't be waited for
        end.set()
        for call, channel in zip(calls, channels, strict=True):
            assert list(call) == []
            channel.close()
