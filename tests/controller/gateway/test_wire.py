"""Bytes that are no HTTP, or no gRPC: the gateway lives, answers others, and keeps its memory."""

import shutil
from pathlib import Path

from tests.controller.gateway.gateway_process import gateway_process
from tests.fuzz.fuzz_wire import CORPUS, fuzz
from tests.fuzz.wire_seeds import write_tokens
from trt_mtp.serve.triton import TritonServer

NUM_RUNS = 600  # beside those of tests.fuzz.fuzz_wire by hand, of which docs/reliability.md tells


def test_the_wire_fuzzer_finds_nothing(doubles: TritonServer, tmp_path: Path) -> None:
    """All of the corpus, and some more that come of it."""
    corpus = shutil.copytree(CORPUS, tmp_path / "corpus")
    options = ("--triton", doubles.grpc_url, "--port", "0", "--http-port", "0")
    tokens = write_tokens(tmp_path / "tokens.json")
    with gateway_process(tmp_path / "log", *options, "--tokens", str(tokens)) as gateway:
        *_, last = fuzz(gateway, NUM_RUNS, 1, corpus, NUM_RUNS)
    assert f"http {NUM_RUNS} runs" in last
    assert f"grpc {NUM_RUNS} runs" in last
