"""build/data/models.json: the sizes of the released models, from sparse files with their shapes.

`python -m tests.model_sizes` writes it; tests/build/test_released_models.py holds it against them.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.real_checkpoints import NAMES, write_real
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.checkpoint_dtypes import state_dtype
from trt_mtp.build.model_shape import shape_of
from trt_mtp.build.released_models import PRECISIONS

FILE = Path(__file__).parents[1] / "build" / "data" / "models.json"
ABOUT = (
    "Sizes of the released models. shape: build/model_shape.py of the checkpoint in BF16; "
    "precisions: what differs in each. Made by `python -m tests.model_sizes` from the configs in "
    "tests/fixtures/checkpoints, whose README has their sources."
)


def sizes_of(name: str) -> dict[str, Any]:
    """One model's entry."""
    shapes = {}
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            path = write_real(name, Path(folder) / name, precision, stacked=True)
            checkpoint = read_checkpoint(path)
            shapes[precision] = asdict(shape_of(checkpoint))
            states = state_dtype(checkpoint)
    base = shapes["bf16"]
    differing = {
        precision: {key: value for key, value in shape.items() if value != base[key]}
        for precision, shape in shapes.items()
    }
    return {"state_dtype": states, "shape": base, "precisions": differing}


def text() -> str:
    """The whole file, a line for each model's part."""
    models = []
    for name in NAMES:
        entry = sizes_of(name)
        lines = ",\n".join(f"   {json.dumps(key)}: {json.dumps(entry[key])}" for key in entry)
        models.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    head = f' "schema_version": 1,\n "about": {json.dumps(ABOUT)},\n'
    return "{\n" + head + ' "models": {\n' + ",\n".join(models) + "\n }\n}\n"


if __name__ == "__main__":
    FILE.write_text(text())
