"""Temporary folders of long-lived processes, which cleaners of /tmp would empty after some days."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trt_mtp.errors import TrtMtpError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep systemd-tmpfiles from `folder`: it passes by what is locked (tmpfiles.d(5), "Age")."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def make_again(folder: Path) -> None:
    """Make `folder` where another cleaner removed it.

    Raises TrtMtpError where that can't be, and where it is another user's: in /tmp anybody can make
    one of its name.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise TrtMtpError(
                f"{folder} was removed, and what is there belongs to another user; start this "
                f"program again"
            ) from None
    except OSError as error:
        raise TrtMtpError(f"can't make {folder} again: {error.strerror or error}") from None
