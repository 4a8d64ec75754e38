"""Clients that don't read what they asked for."""

import asyncio

from benchmarks.gateway import started_gateway
from benchmarks.openai_door import NUM_SLOW_READERS, slow_readers_mb
from trt_mtp.serve.triton import TritonServer

MOST_MB = 60


def test_unread_answers_take_little_memory(doubles: TritonServer) -> None:
    """Sixteen answers of 10 MB stay where they are made, nearly all of them."""
    with started_gateway(doubles.grpc_url, "--http-port", "0") as (ready, pid):
        assert NUM_SLOW_READERS * 10 > 2 * MOST_MB
        assert asyncio.run(slow_readers_mb(ready["http"], pid)) < MOST_MB
