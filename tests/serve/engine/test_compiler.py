"""Where compiled kernels are kept: never where another user can put files."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trt_mtp.serve.engine import kernel_cache
from trt_mtp.serve.engine.compiler import cache_folder
from trt_mtp.serve.engine.kernel_cache import is_ours


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's usual place, and another one for what doesn't fit there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "home"


def test_the_cache_is_its_users_alone(home: Path) -> None:
    """The folder is made with the mode 0700, in the user's cache."""
    folder = cache_folder()
    assert folder.parent.parent == home
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder


@pytest.mark.parametrize("what", ["folder", "parent", "link"])
def test_a_cache_that_others_can_write_is_not_used(home: Path, tmp_path: Path, what: str) -> None:
    """Nor one below such a folder, nor a link to it; nothing that lies there is loaded."""
    folder = cache_folder()
    if what == "link":
        folder.rmdir()
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs").chmod(0o777)
        folder.symlink_to(tmp_path / "theirs")
    else:
        (folder if what == "folder" else home).chmod(0o777)
    other = cache_folder()
    assert other.is_relative_to(tmp_path / "tmp")
    assert is_ours(other)


def test_a_predictable_folder_that_somebody_made_is_not_used(home: Path, tmp_path: Path) -> None:
    """Where the name in /tmp is taken, a fresh private folder takes its place, and is removed."""
    home.touch()  # no cache at home
    planted = cache_folder()
    assert planted.is_relative_to(tmp_path / "tmp")
    planted.chmod(0o777)
    program = (
        "from trt_mtp.serve.engine.compiler import cache_folder as f; import os, pathlib;"
        "p = f(); assert p.is_dir() and p.stat().st_mode & 0o777 == 0o700; print(p)"
    )
    environment = {"XDG_CACHE_HOME": str(home), "TMPDIR": str(tmp_path / "tmp"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    fresh = Path(done.stdout.strip())
    assert fresh.name.startswith("trt-mtp-kernels-")
    assert not fresh.exists()


def test_a_user_without_a_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id that no one knows, and no HOME: kernels are kept in the temporary folder."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as it does then
    assert cache_folder().is_relative_to(tmp_path / "tmp")


def test_a_filled_cache_that_can_not_be_written_is_copied(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `docker run --read-only` finds in its image is loaded, not compiled again."""
    filled = cache_folder()
    (filled / "cycle.nbi").write_text("index")
    usual = kernel_cache.can_write
    # tests may run as root, who writes everywhere
    monkeypatch.setattr(
        kernel_cache, "can_write", lambda folder: folder != filled and usual(folder)
    )
    copied = cache_folder()
    assert copied.is_relative_to(tmp_path / "tmp")
    assert (copied / "cycle.nbi").read_text() == "index"
    assert cache_folder() == copied
    assert [entry.name for entry in copied.parent.iterdir()] == [copied.name]
