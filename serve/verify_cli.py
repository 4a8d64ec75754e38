"""`trt-mtp verify`."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from trt_mtp.build.variant import EngineVariant
from trt_mtp.errors import InputError
from trt_mtp.files import to_json


@click.command()
@click.argument(
    "variants", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False)
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(variants: tuple[Path, ...], as_json: bool) -> None:
    """Run variants, compare their answers with no speculation, measure them, and record it.

    VARIANTS are variants, or folders of variants; draft length 0 must be among them. Each is
    started in a process of its own. Exit code 1 when an answer differs: the record then has both
    continuations.

    Example: trt-mtp verify engines
    """
    from trt_mtp.serve.serving import resolve_variants

    found = resolve_variants(variants)
    outcomes = verify_each(found)
    click.echo(outcomes_json(found, outcomes) if as_json else outcomes_text(found, outcomes))
    if not all(outcome["is_identical"] for outcome in outcomes):
        sys.exit(1)


def verify_each(variants: Sequence[EngineVariant]) -> list[dict[str, Any]]:
    """Probe each variant, compare it with draft length 0, and write the outcome into its record."""
    from trt_mtp.build.variant import with_verification
    from trt_mtp.serve.probe import probe_variant
    from trt_mtp.serve.verify import compare

    if variants[0].draft_length != 0:
        raise InputError(
            "no variant without speculation to compare with; "
            "build draft length 0 too, as in --draft-lengths 0,3"
        )
    outcomes = []
    for variant in variants:
        click.echo(f"running {variant.folder}", err=True)
        probe = probe_variant(variant.folder)
        if variant is variants[0]:
            reference = probe
        compared = compare(probe.requests, reference.answers, probe.answers)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        outcome = {"verified": now, **compared.to_json(), "measured": probe.measured()}
        with_verification(variant, outcome)
        outcomes.append(outcome)
    return outcomes


def outcomes_json(variants: Sequence[EngineVariant], outcomes: Sequence[dict[str, Any]]) -> str:
    """What `--json` prints."""
    entries = [
        {"name": variant.name, "folder": str(variant.folder), **outcome}
        for variant, outcome in zip(variants, outcomes, strict=True)
    ]
    return to_json({"schema_version": 1, "variants": entries}).rstrip()


def outcomes_text(variants: Sequence[EngineVariant], outcomes: Sequence[dict[str, Any]]) -> str:
    """A few lines for each variant."""
    lines = []
    for variant, outcome in zip(variants, outcomes, strict=True):
        measured = outcome["measured"]
        same = "same answers" if outcome["is_identical"] else "OTHER answers"
        memory = f"{measured['host_bytes'] / 1e6:.0f} MB"
        if measured["gpu_bytes"] is not None:
            memory += f", {measured['gpu_bytes'] / 1e9:.1f} GB on GPUs"
        lines.append(
            f"{variant.name}  {same} as without speculation ({outcome['num_tokens']} tokens), "
            f"acceptance length {outcome['acceptance_length']:.2f}; "
            f"loaded in {measured['load_s']:.1f} s, {memory}"
        )
        steps = [f"{s['batch_size']}: {s['step_ms']:.2f} ms" for s in measured["steps"]]
        lines.append(f"    step by batch size  {', '.join(steps)}")
        lines += [
            f"    prompt {d['prompt']} at temperature {d['temperature']} leaves at token "
            f"{d['position']}: expected {list(d['expected'])}, got {list(d['got'])}"
            for d in outcome["divergences"]
        ]
    return "\n".join(lines)
