"""An acceptance's outcomes as its record: each field is taken by name, and nothing else is."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from trt_mtp import __version__
from trt_mtp.build.checkpoint import FAMILIES
from trt_mtp.build.cpu import cpu_name
from trt_mtp.controller.accept.record import (
    FORMS,
    OTHER,
    BestLine,
    CellLine,
    CheckLine,
    Finding,
    Machine,
    Record,
    StepLine,
    StepTime,
    VariantLine,
)
from trt_mtp.controller.accept.step import EngineName, Facts, Outcome, phrases_in
from trt_mtp.controller.accept.verdict import REASONS
from trt_mtp.controller.tasks import TASKS

PACKAGES = ("tensorrt_llm", "torch", "tritonclient", "numpy", "numba")
MEASURED = ("load_s", "host_bytes", "gpu_bytes")
VERIFIED = ("is_passed", "is_exact", "num_prompts", "num_tokens", "left_at", "acceptance_length")


def record_of(outcomes: Sequence[Outcome], engine: EngineName) -> Record:
    """The record of steps that ended so."""
    facts: dict[str, Facts] = {outcome.step: outcome.facts for outcome in outcomes}
    built = variants_in(facts)
    return Record(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=engine,
        family=known(built[0]["family"], FAMILIES.values()) if built else None,
        versions=versions_of(facts),
        machine=machine_of(facts["doctor"]["machine"]) if facts.get("doctor") else None,
        steps=tuple(step_line(outcome) for outcome in outcomes),
        findings=tuple(findings_of(facts, built)),
        variants=tuple(variant_line(variant, facts) for variant in built),
        checks=tuple(check_line(one) for one in facts.get("smoke", {}).get("checks", ())),
        cells=tuple(cell_line(one) for one in facts.get("calibrate", {}).get("cells", ())),
        best=tuple(best_line(one) for one in facts.get("calibrate", {}).get("best", ())),
        says_replay=facts.get("verify", {}).get("says_replay"),
        asks_for_replay=any(variant["asks_for_replay"] for variant in built),
    )


def variants_in(facts: Mapping[str, Facts]) -> list[Facts]:
    """The variants, as the first step that ran describes them."""
    steps = (facts.get(name, {}) for name in ("build", "verify", "serve"))
    return next((list(found["described"]) for found in steps if "described" in found), [])


def formed(name: str, value: Any) -> str:
    """`value` if it has that form, else OTHER.

    >>> formed("version", "1.3.0rc27"), formed("version", "ghp_x")
    ('1.3.0rc27', 'other')
    """
    return str(value) if re.fullmatch(FORMS[name], str(value)) else OTHER


def known(value: Any, words: Any) -> str:
    """`value` if it is one of `words`, else OTHER."""
    return str(value) if value in words else OTHER


def versions_of(facts: Mapping[str, Facts]) -> dict[Any, str]:
    """Versions of what is installed, and of the Triton that ran."""
    found: dict[str, str] = {"trt_mtp": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    for variant in variants_in(facts)[:1]:
        if variant.get("vllm"):  # in an environment of its own
            found["vllm"] = variant["vllm"]
    if "triton" in facts.get("serve", {}):
        found["triton"] = facts["serve"]["triton"]
    return {name: formed("version", version) for name, version in found.items()}


def machine_of(machine: Mapping[str, Any]) -> Machine:
    """The machine that doctor looked at."""
    product, driver = machine["product"], machine["driver"]
    return Machine(
        processor=formed("device", cpu_name()),
        num_cores=machine["num_cores"],
        python=formed("version", machine["python"]),
        num_gpus=machine["num_gpus"],
        gpu=None if product is None else formed("device", product),
        driver=None if driver is None else formed("version", driver),
        is_container=machine["is_container"],
    )


def step_line(outcome: Outcome) -> StepLine:
    """How a step ended, without its sentence."""
    return StepLine(
        name=outcome.step,
        status=outcome.status,
        budget_s=outcome.budget_s,
        took_s=outcome.took_s,
        is_resumed=outcome.is_resumed,
        phrases=outcome.phrases,
    )


def findings_of(facts: Mapping[str, Facts], built: Sequence[Facts]) -> list[Finding]:
    """What doctor and the preflight rules found, once each."""
    found = list(facts.get("doctor", {}).get("findings", ()))
    found += [one for variant in built for one in variant["findings"]]
    lines = [
        Finding(
            subject=one["subject"] if one["subject"] == "machine"
            else formed("variant", one["subject"]),
            rule=formed("rule", one["rule"]),
            severity=one["severity"],
        )
        for one in found
    ]  # fmt: skip
    return list(dict.fromkeys(lines))


def variant_line(variant: Facts, facts: Mapping[str, Facts]) -> VariantLine:
    """A variant with what verifying it showed."""
    entries = facts.get("verify", {}).get("variants", ())
    entry = next((one for one in entries if one["name"] == variant["name"]), None)
    hosted = facts.get("serve", {}).get("hosted", ())
    shown: dict[str, Any] = {}
    if entry is not None:
        shown = {name: entry[name] for name in VERIFIED}
        shown |= {name: entry["measured"][name] for name in MEASURED}
        shown["steps"] = tuple(
            StepTime(**{name: step[name] for name in StepTime.model_fields})
            for step in entry["measured"]["steps"]
        )
        shown["p_value"] = entry["sampled"]["p_value"] if entry["sampled"] else None
    return VariantLine(
        name=formed("variant", variant["name"]),
        draft_length=variant["draft_length"],
        max_batch_size=variant["max_batch_size"],
        fingerprint=formed("hash", variant["fingerprint"]),
        planned_bytes=variant["planned_bytes"],
        is_hosted=variant["name"] in hosted,
        **shown,
    )


def check_line(check: Facts) -> CheckLine:
    """The verdict of a check, without its detail."""
    return CheckLine(
        name=check["name"],
        status=check["status"],
        reason=known(check["reason"], ("", *REASONS)),
        numbers={formed("number", name): value for name, value in check["numbers"].items()},
        phrases=phrases_in(check["detail"]),
    )


def cell_line(cell: Facts) -> CellLine:
    """A cell of the calibration."""
    taken = {name: cell[name] for name in CellLine.model_fields}
    return CellLine(**{**taken, "task": known(cell["task"], TASKS)})


def best_line(best: Facts) -> BestLine:
    """A task's best draft length."""
    taken = {name: best[name] for name in BestLine.model_fields}
    return BestLine(**{**taken, "task": known(best["task"], TASKS)})
