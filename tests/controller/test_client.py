"""The client that commands ask with."""

import pytest

from trt_mtp.controller.client import Prompt, StreamClient
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.processes import free_ports


def test_a_lost_stream_is_an_error_each_time() -> None:
    """The first request on a stream that can't be, and every later one, ends in one sentence."""
    port = free_ports({"nobody": 0})["nobody"]
    with StreamClient(f"127.0.0.1:{port}", reply_timeout_s=20) as client:
        for _ in range(3):
            with pytest.raises(TrtMtpError, match="qwen_mtp: "):
                client.ask("qwen_mtp", Prompt([{"role": "user", "content": "Hello"}]))
