"""Fixtures of the engine's tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed checkpoint whose drafts are right about half of the time."""
    from tests.engine_fixtures import make_drafting_checkpoint, pack  # numba: not for every run

    folder = tmp_path_factory.mktemp("drafting")
    return pack(make_drafting_checkpoint(folder / "checkpoint"), folder / "packed")
