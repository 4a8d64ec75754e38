"""Real variants on vLLM, which has an environment of its own: `make test-vllm`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.vllm import build_vllm
from trt_mtp.build.vllm_environment import check_environment, find_environment
from trt_mtp.serve.serving import resolve_variants, serving
from trt_mtp.serve.triton import TritonServer

ASSET = Path(__file__).parents[2] / "assets" / "qwen-mtp-tiny"


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants of the small checkpoint with draft lengths 0 and 3."""
    folder = tmp_path_factory.mktemp("vllm") / "engines"
    found = read_checkpoint(ASSET)
    environment = find_environment(Path(os.environ["TRT_MTP_VLLM_PYTHON"]))
    check_environment(environment, found)
    build_vllm(
        found, (0, 3), folder, environment, max_batch_size=8, max_seq_len=1024, schedule=None
    )
    return folder


@pytest.fixture(scope="session")
def triton(engines: Path) -> Iterator[TritonServer]:
    """A Triton of both variants; a test that kills one has `check` start it again."""
    with serving(resolve_variants([engines])) as server:
        yield server
