"""Fixtures of the controller's tests: real variants, served."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_mtp.serve.triton import TritonServer


@pytest.fixture(scope="session")
def small_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real variants with draft lengths 0, 1 and 3, of two requests at a time; read-only."""
    from tests.variants import build_engines  # numba: not for every run

    return build_engines(tmp_path_factory.mktemp("small"), (0, 1, 3))


@pytest.fixture(scope="session")
def small_triton(small_engines: Path) -> Iterator[TritonServer]:
    """One Triton of them for all tests that leave it alive."""
    from trt_mtp.serve.serving import resolve_variants, serving

    with serving(resolve_variants([small_engines])) as server:
        yield server
