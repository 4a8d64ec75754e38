"""The golden configurations of TensorRT-LLM variants.

`python -m tests.build.trtllm_golden` shows what differs from the files, `--write` writes them.
Read the difference against the recipes that tests/build/golden/trtllm/README.md names before it is
committed.
"""

import difflib
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from tests.real_checkpoints import write_real
from trt_mtp.build.checkpoint import Checkpoint, read_checkpoint
from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.tensorrt_llm import options_for, plan_variants, with_checkpoint
from trt_mtp.build.trtllm_version import supported_version

FOLDER = Path(__file__).with_name("golden") / "trtllm"
ALL = ("1.3.0rc18", "1.3.0rc23", "1.3.0rc24", "1.3.0rc27", "1.3.0rc29", "1.4.0rc1")
LATE = ("1.3.0rc27", "1.3.0rc29")


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one kind of GPU, at several versions and draft lengths."""

    model: str
    precision: str
    gpu: str
    tp: int
    ep: int
    batch: int
    state: str
    versions: tuple[str, ...]
    lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.model}-{self.precision}-{self.gpu}-tp{self.tp}-ep{self.ep}"


CASES = (
    Case("qwen3.8-27b", "fp8", "h100-80gb", 1, 1, 32, "auto", ALL, (0, 1, 3)),
    Case("qwen3.8-27b", "bf16", "h100-80gb", 2, 1, 32, "auto", ("1.3.0rc27", "1.4.0rc1"), (0, 3)),
    Case("qwen3.8-27b", "nvfp4", "b200-180gb", 1, 1, 64, "bfloat16", LATE, (0, 3, 5)),
    Case("qwen3.6-35b-a3b", "fp8", "h100-80gb", 1, 1, 32, "auto", ALL[1:5], (0, 1, 3)),
    Case("qwen3.5-122b-a10b", "fp8", "h100-80gb", 4, 4, 16, "auto", ALL[2:4], (0, 2, 4)),
    Case("qwen3.5-397b-a17b", "nvfp4", "b200-180gb", 4, 1, 64, "auto", ALL[:4], (0, 3, 7)),
    Case("qwen3.8-2.4t-a95b", "fp8", "gb300-277gb", 16, 1, 256, "auto", LATE, (0, 3)),
    Case("qwen3.8-flash-next", "bf16", "b200-180gb", 2, 1, 16, "bfloat16", ALL[4:], (0, 3)),
    Case("qwen3.8-flash-next", "fp8", "b200-180gb", 1, 1, 16, "bfloat16", ALL[4:5], (0, 3)),
    Case("qwen3-next-80b-a3b", "bf16", "h100-80gb", 4, 4, 16, "auto", LATE, (0, 1, 3)),
)


@cache
def real_checkpoint(model: str, precision: str) -> Checkpoint:
    """The released model's sizes, read once."""
    with tempfile.TemporaryDirectory() as folder:
        return read_checkpoint(write_real(model, Path(folder), precision, stacked=True))


def render(case: Case) -> str:
    """What the file of `case` holds."""
    checkpoint = real_checkpoint(case.model, case.precision)
    rendered = {}
    for version in case.versions:
        options = options_for(
            checkpoint,
            supported_version(version),
            find_gpu(case.gpu),
            tensor_parallel=case.tp,
            expert_parallel=case.ep,
            max_batch_size=case.batch,
            state_option=case.state,
        )
        options = with_checkpoint(options, Path(f"/models/{case.model}-{case.precision}"))
        for variant in plan_variants(checkpoint, options, case.lengths, Path("/engines")):
            rendered[f"{version} {variant.name}"] = {
                "llm_args": dict(variant.llm_args),
                "environment": dict(variant.environment),
                "command": " ".join(variant.command),
                "findings": [f"{found.severity}: {found.id}" for found in variant.findings],
            }
    return yaml.safe_dump(rendered, sort_keys=False, width=200)


def main() -> None:
    """Show or write what changed."""
    for case in CASES:
        file = FOLDER / f"{case.name}.yaml"
        old = file.read_text() if file.exists() else ""
        new = render(case)
        difference = difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"{file.name} (file)", f"{file.name} (now)", "", ""
        )
        print("\n".join(difference))
        if "--write" in sys.argv:
            FOLDER.mkdir(parents=True, exist_ok=True)
            file.write_text(new)


if __name__ == "__main__":
    main()
