"""Where compiled kernels are kept: a folder that we can write, and that no other user can."""

import atexit
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def usable_folder(name: str) -> Path:
    """A folder called `name` in the user's cache, or where that can't be written, elsewhere.

    What lies in one that can't be written, as in a container that is read-only, is copied: numba
    loads nothing from such a folder.
    """
    filled: Path | None = None
    # a service user without a home compiles once a boot
    temporary = Path(tempfile.gettempdir()) / f"trt-mtp-{os.getuid()}"
    usual = user_cache()
    for folder in ([usual / "trt-mtp" / name] if usual else []) + [temporary / name]:
        if can_write(folder):
            fill(folder, filled)
            return folder
        if filled is None and is_readable(folder):
            filled = folder
    fresh = tempfile.mkdtemp(prefix="trt-mtp-kernels-")
    atexit.register(shutil.rmtree, fresh, ignore_errors=True)
    fill(Path(fresh), filled)
    return Path(fresh)


def user_cache() -> Path | None:
    """$XDG_CACHE_HOME, or ~/.cache; None for a user without a home, as `docker run --user` has."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return cache if cache.is_absolute() else None


def can_write(folder: Path) -> bool:
    """Whether we, and no other user, can put files into `folder`, which is made if it can be."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        if not is_ours(folder):
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def is_readable(folder: Path) -> bool:
    """Whether `folder` is there, and no other user can have put files into it."""
    try:
        return folder.is_dir() and os.access(folder, os.R_OK | os.X_OK) and is_ours(folder)
    except OSError:
        return False


def fill(folder: Path, filled: Path | None) -> None:
    """Copy `filled`, if there is one, to a `folder` that is empty, as a whole or not at all."""
    if filled is None:
        return
    staging = tempfile.mkdtemp(dir=folder.parent)
    with suppress(OSError, shutil.Error):  # then it is compiled
        shutil.copytree(filled, staging, dirs_exist_ok=True)
        os.replace(staging, folder)  # which the system refuses unless it is empty
    shutil.rmtree(staging, ignore_errors=True)


def is_ours(folder: Path) -> bool:
    """True where no other user can put files: numba unpickles, and so runs, what it finds there.

    Root may, and so may the own group; where all may, as in /tmp, nobody can replace a folder of
    ours.
    """
    uid, path = os.getuid(), Path(os.path.abspath(folder))
    for part in (path, *path.parents):
        status = part.lstat()
        is_sticky = part != path and status.st_mode & stat.S_ISVTX
        is_open = status.st_mode & stat.S_IWOTH or (
            status.st_mode & stat.S_IWGRP and status.st_gid not in (0, os.getgid())
        )
        is_link = stat.S_ISLNK(status.st_mode)
        if status.st_uid not in (0, uid) or (is_open and not is_sticky and not is_link):
            return False
    real = path.resolve()
    return real == path or is_ours(real)
