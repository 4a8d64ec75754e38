"""Real variants on vLLM, which has an environment of its own: `make test-vllm`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.vllm import THREADS, build_vllm
from trt_mtp.build.vllm_environment import check_environment, find_environment
from trt_mtp.serve.serving import limits_for, resolve_variants, serving
from trt_mtp.serve.triton import TritonServer

LOAD_S = 1500.0  # on a machine that does something else, too
ASSET = Path(__file__).parents[2] / "assets" / "qwen-mtp-tiny"


def built(folder: Path, *lengths: int, schedule: dict[int, int] | None = None) -> Path:
    """Variants of the small checkpoint with a thread each: they share the cores with the tests."""
    found = read_checkpoint(ASSET)
    environment = find_environment(Path(os.environ["TRT_MTP_VLLM_PYTHON"]))
    check_environment(environment, found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(THREADS, "1")
        build_vllm(
            found, lengths, folder, environment,
            max_batch_size=8, max_seq_len=1024, schedule=schedule,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draft lengths 0 and 3."""
    return built(tmp_path_factory.mktemp("vllm"), 0, 3)


@pytest.fixture(scope="session")
def triton(engines: Path) -> Iterator[TritonServer]:
    """A Triton of both variants."""
    with loaded(engines) as server:
        yield server


@pytest.fixture(scope="session")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton with draft length 2 for one request and 1 for more."""
    folder = built(tmp_path_factory.mktemp("scheduled"), 2, schedule={1: 2, 8: 1})
    with loaded(folder) as server:
        yield server


@contextmanager
def loaded(folder: Path) -> Iterator[TritonServer]:
    """A Triton of the variants in `folder`."""
    variants = resolve_variants([folder])
    with serving(variants, limits=limits_for(variants, load_s=LOAD_S)) as server:
        yield server
