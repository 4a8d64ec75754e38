"""How kernels are compiled, and where the compiled code is kept."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def cache_folder() -> Path:
    """Where compiled kernels of this very source are kept, for the user who runs this.

    numba looks only at the file of each function, not at the functions it has inlined; a folder
    for each state of all sources keeps what it finds there right.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "trt-mtp" / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a service user without a home: compile once a boot
        folder = Path(tempfile.gettempdir()) / f"trt-mtp-{os.getuid()}" / folder.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


numba.config.CACHE_DIR = str(cache_folder())


def kernel(function: Function) -> Function:
    """Compile without the GIL, with fused multiply-add, and never reordering a sum."""
    options = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    return cast(Function, numba.njit(**options)(function))


def reduction(function: Function) -> Function:
    """Like `kernel`, for sums over one row of a fixed length, which may be vectorised."""
    fastmath = {"contract", "reassoc", "nsz"}
    options = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": fastmath}
    return cast(Function, numba.njit(**options)(function))
