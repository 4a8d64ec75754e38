"""Engines: the interface is base.py; one file for each kind, imported when it is opened."""

from pathlib import Path

from trt_mtp.errors import InputError
from trt_mtp.files import nearest, read_json
from trt_mtp.serve.engine.base import Engine

KINDS = ("cpu", "tensorrt-llm")


def open_engine(variant_folder: Path) -> Engine:
    """Open the engine of the variant in `variant_folder`, of the kind its record names.

    Raises InputError when the record is missing or names a kind that does not exist.
    """
    record = read_json(variant_folder / "variant.json")
    kind = record["engine"]
    if kind == "cpu":
        from trt_mtp.serve.engine.cpu import CpuEngine

        return CpuEngine(
            variant_folder / record["shared"],
            draft_length=record["draft_length"],
            max_batch_size=record["max_batch_size"],
            max_seq_len=record["max_seq_len"],
        )
    if kind == "tensorrt-llm":
        from trt_mtp.serve.engine.tensorrt_llm import TrtllmEngine

        return TrtllmEngine(variant_folder)
    raise InputError(
        f"{variant_folder / 'variant.json'} names the engine {kind!r}; expected one of "
        f"{', '.join(KINDS)}{nearest(str(kind), KINDS)}"
    )
