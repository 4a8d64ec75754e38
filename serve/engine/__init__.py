"""Engines: the interface is base.py; one file for each kind, imported when it is opened."""

import os
from pathlib import Path

from trt_mtp.errors import InputError
from trt_mtp.extras import require_engine, require_extras
from trt_mtp.files import SMALL, nearest, read_json
from trt_mtp.serve.engine.base import Engine

KINDS = ("cpu", "tensorrt-llm", "vllm")


def open_engine(variant_folder: Path) -> Engine:
    """Open the engine of the variant in `variant_folder`, of the kind its record names.

    Raises InputError when the record is missing or names a kind that does not exist or isn't
    installed.
    """
    file = variant_folder / "variant.json"
    record = read_json(file, SMALL)
    kind = record.get("engine") if isinstance(record, dict) else None
    for key in ("draft_length", "max_batch_size", "max_seq_len") if kind == "cpu" else ():
        value = record.get(key)
        if not isinstance(value, int) or value < (key != "draft_length"):
            raise InputError(f"{file}: {key} is {value!r:.80}; run `trt-mtp build` again")
    if kind == "cpu":
        require_engine(kind)
        # whoever debugs something else with it: kernels written for LLVM can't run as Python
        os.environ.pop("NUMBA_DISABLE_JIT", None)
        from trt_mtp.serve.engine.cpu import CpuEngine

        return CpuEngine(
            variant_folder / record["shared"],
            draft_length=record["draft_length"],
            max_batch_size=record["max_batch_size"],
            max_seq_len=record["max_seq_len"],
        )
    if kind == "tensorrt-llm":
        require_engine(kind)
        from trt_mtp.serve.engine.tensorrt_llm import TrtllmEngine

        return TrtllmEngine(variant_folder)
    if kind == "vllm":
        require_extras("the vllm engine", "vllm")
        from trt_mtp.serve.engine.vllm import VllmEngine

        return VllmEngine(variant_folder)
    raise InputError(
        f"{file} names the engine {kind!r}; expected one of "
        f"{', '.join(KINDS)}{nearest(str(kind), KINDS)}"
    )
