"""How kernels are compiled, and where the compiled code is kept."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import binding as llvm

from trt_mtp.serve.engine.kernel_cache import usable_folder

COMPILED = (
    "compiler",
    "cycle",
    "forward",
    "kernels",
    "linear",
    "sampling",
)  # all modules with kernels
Function = TypeVar("Function", bound=Callable[..., Any])


def cache_folder() -> Path:
    """Where compiled kernels of this very source are kept, for the user who runs this.

    numba looks only at the file of each function, not at the functions it has inlined; a folder
    for each state of all compiled modules keeps what it finds there right.
    """
    digest = hashlib.sha256()
    for name in COMPILED:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return usable_folder(f"kernels-{digest.hexdigest()[:16]}")


numba.config.CACHE_DIR = str(cache_folder())  # type: ignore[attr-defined]


def use_wide_vectors() -> None:
    """Let LLVM use all of AVX-512, where by default it takes half its width on Intel's cores."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        numba.config.CPU_NAME = llvm.get_host_cpu_name()  # type: ignore[attr-defined]
        features_wanted = f"{features.flatten()},-prefer-256-bit"
        numba.config.CPU_FEATURES = features_wanted  # type: ignore[attr-defined]


use_wide_vectors()


def kernel(function: Function) -> Function:
    """Compile without the GIL, with fused multiply-add, and never reordering a sum."""
    decorate = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
    return cast(Function, decorate(function))


def reduction(function: Function) -> Function:
    """Like `kernel`, for sums over one row of a fixed length, which may be vectorised."""
    decorate = numba.njit(
        cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}
    )
    return cast(Function, decorate(function))
