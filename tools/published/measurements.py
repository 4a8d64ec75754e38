"""Published measurements of MTP: one row per number that somebody reported, with its source."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trt_mtp.errors import InputError
from trt_mtp.files import nearest

MEASUREMENTS_PATH = Path(__file__).parents[1] / "data" / "mtp_measurements.csv"
STEP_COSTS_PATH = Path(__file__).parents[1] / "data" / "mtp_step_costs.csv"
MAX_LENGTH = 64  # nobody drafts further

_MEASUREMENT_COLUMNS = (
    "source_url", "model", "quant", "engine", "hardware", "concurrency", "temperature", "thinking",
    "context_tokens", "method", "K", "p_min", "task_source", "task_norm", "accept_rate",
    "accept_def", "mean_accept_len", "speedup_calc", "tps_mtp", "tps_base",
)  # fmt: skip
_COST_COLUMNS = (
    "source_url", "model", "quant", "engine", "hardware", "quantity", "K_or_tokens", "batch",
    "context", "value", "unit", "basis",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row; a number that the source doesn't give is None."""

    source: str
    model: str
    rig: str  # model, quantization, engine and hardware
    method: str
    task_source: str  # the source's own word for what was asked
    task_norm: str
    temperature: str
    thinking: str
    gate: float  # p-min: drafts less likely than this aren't made; 0 is off
    draft_length: int
    concurrency: int
    context: int
    acceptance_length: float | None  # bonus token included; None if drafts are gated
    speedup: float | None


@dataclass(frozen=True, slots=True)
class StepRatio:
    """A step's time in plain steps, from a source's own timing."""

    source: str
    model: str
    rig: str
    draft_length: int
    batch: int
    context: int
    ratio: float
    is_derived: bool  # computed from speedups, so it can't be used to predict them


def read_measurements(path: Path) -> tuple[Measurement, ...]:
    """The rows with a draft length and at least one usable number; raises InputError."""
    rows = [_measurement(row) for row in _read_rows(path, _MEASUREMENT_COLUMNS)]
    return tuple(
        row
        for row in rows
        if row is not None and (row.speedup is not None or row.acceptance_length is not None)
    )


def read_step_ratios(path: Path) -> tuple[StepRatio, ...]:
    """The rows of whole steps in units of a plain step; raises InputError."""
    ratios = []
    for row in _read_rows(path, _COST_COLUMNS):
        value, length = _number(row["value"]), _whole(row["K_or_tokens"])
        is_round = row["quantity"].startswith(("R(K)", "R ", "round")) or row["quantity"] == "R"
        is_length = length is not None and 0 < length <= MAX_LENGTH
        if row["unit"] == "x" and is_round and value and value > 0 and length and is_length:
            ratios.append(
                StepRatio(
                    row["source_url"], row["model"], _rig(row), length,
                    _whole(row["batch"]) or 1, _whole(row["context"]) or 0, value,
                    row["basis"] == "derived",
                )
            )  # fmt: skip
    return tuple(ratios)


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            present = reader.fieldnames or []
            if not present:
                raise InputError(f"{path} is empty: expected a header and rows")
            for column in columns:
                if column not in present:
                    raise InputError(f"{path} has no column {column!r}{nearest(column, present)}")
            return [{key: row.get(key) or "" for key in columns} for row in reader]
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} can't be read as CSV: {error}") from None


def _measurement(row: Mapping[str, str]) -> Measurement | None:
    length = _whole(row["K"])
    if not length or length > MAX_LENGTH:
        return None  # adaptive, not said, or no draft length
    gate = _number(row["p_min"]) or 0.0
    return Measurement(
        source=row["source_url"],
        model=row["model"],
        rig=_rig(row),
        method=row["method"],
        task_source=row["task_source"],
        task_norm=row["task_norm"],
        temperature=row["temperature"],
        thinking=row["thinking"],
        gate=gate,
        draft_length=length,
        concurrency=_whole(row["concurrency"]) or 1,
        context=_whole(row["context_tokens"]) or 0,
        acceptance_length=None if gate else _acceptance_length(row, length),
        speedup=_speedup(row),
    )


def _acceptance_length(row: Mapping[str, str], length: int) -> float | None:
    """AL as reported, or 1 + K · (accepted / drafted); None if it can't be true."""
    reported = _number(row["mean_accept_len"])
    rate = _number(row["accept_rate"])
    if reported is None and rate is not None and row["accept_def"].startswith("accepted/drafted"):
        reported = 1 + length * rate
    return reported if reported is not None and 1 <= reported <= length + 1.05 else None


def _speedup(row: Mapping[str, str]) -> float | None:
    speedup = _number(row["speedup_calc"])
    if speedup is None:
        fast, plain = _number(row["tps_mtp"]), _number(row["tps_base"])
        speedup = fast / plain if fast and plain else None
    return speedup if speedup is not None and speedup > 0 else None


def _rig(row: Mapping[str, str]) -> str:
    return " | ".join(row[key] for key in ("model", "quant", "engine", "hardware"))


def _number(text: str) -> float | None:
    """A finite number, or None for anything else that a cell holds."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(text: str) -> int | None:
    """The number that a cell begins with; `4 steps/3 draft tokens` are 3 drafts."""
    drafts = re.search(r"(\d+) draft tokens", text)
    match = drafts or re.match(r"(\d+)(?:\.0*)?(?![\d.])", text)
    return int(match[1]) if match and len(match[1]) < 10 else None
