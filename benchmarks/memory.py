"""Memory of Triton with one variant and with four: `python -m benchmarks.memory [--json]`.

Proportional set size (PSS) of tritonserver and its models' processes, after each model answered:
a page that several processes map counts once. The weights are in such pages; the interpreter,
numba's compiler and the caches of each variant are not, so that small checkpoints gain nothing. The
second checkpoint has random weights and half a gigabyte of them.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.engine_fixtures import ASSET
from tests.tiny_model import make_checkpoint
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.cpu import build_cpu
from trt_mtp.serve.processes import pss_bytes
from trt_mtp.serve.serving import resolve_variants, serving

DRAFT_LENGTHS = (0, 1, 2, 3)
MAX_RATIO = 1.5  # of four variants to one, where weights are what takes the memory
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one checkpoint takes; sizes in megabytes."""

    checkpoint: str
    weights_mb: float
    one_variant_mb: float
    four_variants_mb: float
    ratio: float


def served_bytes(engines: list[Path]) -> int:
    """PSS of a Triton that serves `engines`, its models' processes included."""
    with serving(resolve_variants(engines), on_progress=lambda text: None) as server:
        return sum(map(pss_bytes, (server.pid, *server.stub_pids)))


def measure(name: str, checkpoint: Path, folder: Path) -> Footprint:
    """Build and serve `checkpoint`, one variant and then four."""
    print(f"measuring {name}", file=sys.stderr)
    build_cpu(
        read_checkpoint(checkpoint),
        DRAFT_LENGTHS,
        folder,
        max_batch_size=8,
        max_seq_len=512,
        progress=lambda *_: None,
    )
    weights = sum(file.stat().st_size for file in (folder / ".shared").glob("*/weights.bin"))
    one, four = served_bytes([folder / "k3"]), served_bytes([folder])
    megabytes = [round(size / 1e6, 1) for size in (weights, one, four)]
    return Footprint(name, megabytes[0], megabytes[1], megabytes[2], round(four / one, 2))


def main() -> None:
    """Measure and print; exit code 1 when the large checkpoint's ratio is over its limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = make_checkpoint(folder / "checkpoint", dtype="bfloat16", **LARGE)
        found = [
            measure("assets/qwen-mtp-tiny", ASSET, folder / "small"),
            measure("random weights", large, folder / "large"),
        ]
    if options.json:
        rows = [asdict(footprint) for footprint in found]
        print(json.dumps({"schema_version": 1, "footprints": rows, "max_ratio": MAX_RATIO}))
    else:
        print("checkpoint             weights  one variant  four variants  ratio   (MB of PSS)")
        for one in found:
            print(
                f"{one.checkpoint:22} {one.weights_mb:7.0f}  {one.one_variant_mb:11.0f}  "
                f"{one.four_variants_mb:13.0f}  {one.ratio:5.2f}"
            )
    sys.exit(found[-1].ratio > MAX_RATIO)


if __name__ == "__main__":
    main()
