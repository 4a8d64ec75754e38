"""The record of an acceptance: an allow-list of what may leave this machine, and nothing else.

A word is in it only if it is one of a list here or has the form of what it should be, such as a
version. A failure is told by the phrases of its sentence that are listed, never by the sentence.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trt_mtp.build.checkpoint import FAMILIES
from trt_mtp.controller.accept.step import PHRASES, EngineName, Status, StepName
from trt_mtp.controller.accept.verdict import REASONS, CheckName, VerdictStatus
from trt_mtp.controller.tasks import TASKS
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError
from trt_mtp.files import SMALL, read_json, to_json

SCHEMA_VERSION = 1
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Words = Annotated[str, Field(max_length=80)]
OTHER = "other"  # in place of a word that is not of the form that it should be
FORMS = {
    "version": r"\d{1,4}(\.\d{1,6}){0,3}((a|b|rc)\d{1,4})?(\.post\d{1,3})?",
    "rule": r"[a-z][a-z0-9-]{0,39}",
    "variant": r"k\d{1,4}",
    "number": r"[a-z][a-z0-9_]{0,39}",
    "hash": r"[0-9a-f]{16}",
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00",
    # makers of processors and GPUs, then the product's words: none holds a path or an address
    "device": r"(NVIDIA|Tesla|Quadro|GeForce|AMD|Intel|Intel\(R\)|ARM|Neoverse|Ampere)"
    r"( [A-Za-z0-9()-]{1,16}){0,6}",
}


def form(name: str) -> Any:
    """A text of one of FORMS, or OTHER."""
    return Annotated[str, Field(pattern=rf"^(?:{FORMS[name]}|{OTHER})$")]


Version, Rule, Variant, Key = form("version"), form("rule"), form("variant"), form("number")
Hash, Time, Device = form("hash"), form("time"), form("device")


def one_of(words: tuple[str, ...]) -> Any:
    """One of `words`, or OTHER."""
    return Literal[(*words, OTHER)]


Family = one_of(tuple(sorted(set(FAMILIES.values()))))
Task, Phrase, Reason = one_of(TASKS), one_of(PHRASES), one_of(("", *REASONS))


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Part):
    """Where it ran."""

    processor: Device  # type: ignore[valid-type]
    num_cores: Count
    python: Version  # type: ignore[valid-type]
    num_gpus: Count
    gpu: Device | None  # type: ignore[valid-type]
    driver: Version | None  # type: ignore[valid-type]
    is_container: bool


class StepLine(_Part):
    """How a step ended."""

    name: StepName
    status: Status
    budget_s: Number
    took_s: Number
    is_resumed: bool
    phrases: tuple[Phrase, ...]  # type: ignore[valid-type]


class Finding(_Part):
    """A finding of doctor or of the preflight rules: its rule says the rest."""

    subject: Variant | Literal["machine"]  # type: ignore[valid-type]
    rule: Rule  # type: ignore[valid-type]
    severity: Literal["error", "warning", "info"]


class StepTime(_Part):
    """A step at a batch size, alone on the machine."""

    batch_size: Count
    step_ms: Number
    tokens_per_s: Number
    acceptance_length: Number


class VariantLine(_Part):
    """A variant, and what verifying it showed; None where it was not verified."""

    name: Variant  # type: ignore[valid-type]
    draft_length: Count
    max_batch_size: Count
    fingerprint: Hash  # type: ignore[valid-type]
    planned_bytes: Count | None
    is_hosted: bool
    is_passed: bool | None = None
    is_exact: bool | None = None
    num_prompts: Count | None = None
    num_tokens: Count | None = None
    left_at: tuple[Count, ...] = ()  # tokens at which greedy answers left draft length 0's
    p_value: Number | None = None  # of sampled answers having one distribution
    acceptance_length: Number | None = None
    load_s: Number | None = None
    host_bytes: Count | None = None
    gpu_bytes: Count | None = None
    steps: tuple[StepTime, ...] = ()


class CheckLine(_Part):
    """The verdict of a smoke check."""

    name: CheckName
    status: VerdictStatus
    reason: Reason  # type: ignore[valid-type]
    numbers: dict[Key, Number]  # type: ignore[valid-type]
    phrases: tuple[Phrase, ...]  # type: ignore[valid-type]


class CellLine(_Part):
    """A measured cell of the calibration; speedups are [value, low, high], 95%."""

    task: Task  # type: ignore[valid-type]
    draft_length: Count
    concurrency: Count
    num_requests: Count
    acceptance_length: Number
    tokens_per_s: Number
    speedup: tuple[Number, Number, Number] | None
    is_failed: bool


class BestLine(_Part):
    """The best draft length of a task at a concurrency."""

    task: Task  # type: ignore[valid-type]
    concurrency: Count
    draft_length: Count
    speedup: tuple[Number, Number, Number]
    is_settled: bool


class Record(_Part):
    """What ran, on what, and how it went."""

    schema_version: Literal[1] = 1
    created: Time  # type: ignore[valid-type]
    engine: EngineName
    family: Family | None  # type: ignore[valid-type]
    versions: dict[
        Literal[
            "trt_mtp", "tensorrt_llm", "vllm", "triton", "torch", "tritonclient", "numpy", "numba"
        ],
        Version,  # type: ignore[valid-type]
    ]
    machine: Machine | None
    steps: tuple[StepLine, ...]
    findings: tuple[Finding, ...]
    variants: tuple[VariantLine, ...]
    checks: tuple[CheckLine, ...]
    cells: tuple[CellLine, ...]
    best: tuple[BestLine, ...]
    says_replay: bool | None  # TensorRT-LLM's log has the line of Gated-DeltaNet replay
    asks_for_replay: bool  # a variant's environment has its variable


def read_record(path: Path) -> Record:
    """The record in `path`.

    Raises InputError if it is none, or of another version.
    """
    value = read_json(path, SMALL)
    if not isinstance(value, dict) or "schema_version" not in value:
        raise InputError(f"{path} is not a record of `trt-mtp accept`: it has no schema_version")
    version = value["schema_version"]
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} is a record of version {version!r:.40}, and this trt-mtp reads version "
            f"{SCHEMA_VERSION}; show it with the trt-mtp that wrote it, or make one here"
        )
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, Record.model_fields)}") from None


def record_json(record: Record) -> str:
    """The record as its file."""
    return to_json(record.model_dump(mode="json"))
