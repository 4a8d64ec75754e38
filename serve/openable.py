"""A folder's path that this process can open, whatever letters are in it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def openable(folder: str) -> Iterator[Path]:
    """`folder`, or a link to it where the process's locale can't write its path.

    The Python inside Triton takes paths for ASCII. The link is gone at the end.
    """
    try:
        os.fsencode(folder)
    except UnicodeEncodeError:
        pass
    else:
        yield Path(folder)
        return
    links = tempfile.mkdtemp(prefix="trt-mtp-link-")
    try:
        link = os.path.join(links, "variant")
        os.symlink(folder.encode(), os.fsencode(link))
        yield Path(link)
    finally:
        shutil.rmtree(links, ignore_errors=True)
