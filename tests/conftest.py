"""Fixtures that more than one file of tests uses."""

from pathlib import Path

import pytest

from tests.tiny_model import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random-weight checkpoint; read-only for tests, which make their own to change."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "qwen-tiny")
