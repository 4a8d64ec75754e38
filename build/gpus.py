"""GPU types: memory, bandwidth and compute capability, with their sources."""

import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trt_mtp.errors import InputError
from trt_mtp.files import nearest, read_json


@dataclass(frozen=True, slots=True)
class Gpu:
    """One type of GPU."""

    name: str  # h100-80gb
    memory_bytes: int
    bandwidth_bytes_s: float
    bf16_flops: float  # of its tensor cores, dense
    sm: int  # compute capability without the dot: 90 is Hopper, 100 Blackwell
    source: str

    @property
    def has_fp8(self) -> bool:
        """Whether its tensor cores multiply FP8 (Ada, Hopper and later)."""
        return self.sm >= 89

    @property
    def has_fp4(self) -> bool:
        """Whether its tensor cores multiply FP4 (Blackwell and later)."""
        return self.sm >= 100


@cache
def gpu_types() -> dict[str, Gpu]:
    """All known types by name."""
    facts = read_json(Path(__file__).with_name("data") / "gpus.json")["gpus"]
    return {
        name: Gpu(
            name=name,
            memory_bytes=int(gpu["memory_gb"] * 1e9),
            bandwidth_bytes_s=gpu["bandwidth_gb_s"] * 1e9,
            bf16_flops=gpu["bf16_tflops"] * 1e12,
            sm=gpu["sm"],
            source=gpu["source"],
        )
        for name, gpu in facts.items()
    }


def find_gpu(name: str) -> Gpu:
    """The type called `name`; raises InputError when there is none, with the nearest one."""
    types = gpu_types()
    if name.lower() not in types:
        raise InputError(
            f"--gpu {name!r} is not known{nearest(name.lower(), types)} (known: {', '.join(types)})"
        )
    return types[name.lower()]


def gpu_by_product_name(product: str) -> Gpu | None:
    """The type for the name that nvidia-smi prints, None when it is not in the list."""
    facts = read_json(Path(__file__).with_name("data") / "gpus.json")["gpus"]
    for name, gpu in facts.items():
        if any(product.endswith(known) or f"{known} " in product for known in gpu["names"]):
            return gpu_types()[name]
    return None


def detect_gpu() -> Gpu | None:
    """The type of this machine's first GPU, None when there is none or it is not in the list."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = done.stdout.strip().splitlines()
    return gpu_by_product_name(names[0].strip()) if done.returncode == 0 and names else None
