"""`trt-mtp verify`."""

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trt_mtp.build.variant import RECORD, EngineVariant
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.extras import require_engine
from trt_mtp.files import to_json
from trt_mtp.options import FOLDER, json_option

if TYPE_CHECKING:
    from trt_mtp.serve.probe import Probe
    from trt_mtp.serve.verify import Verification


@click.command()
@click.argument("variants", nargs=-1, required=True, type=FOLDER)
@json_option
def verify(variants: tuple[Path, ...], as_json: bool) -> None:
    """Check that each variant answers as no speculation does; record it and its speed.

    VARIANTS are variants, or folders of variants; draft length 0 must be among them. Each is
    started in a process of its own. On TensorRT-LLM and vLLM greedy answers may drift late and
    leave at near ties, and sampled ones must have the same distribution. Exit code 1 when a variant
    answers otherwise than it must: the record then has both continuations.

    Example: trt-mtp verify engines
    """
    from trt_mtp.serve.serving import resolve_variants

    resolved = resolve_variants(variants)
    outcomes = verify_each(resolved)
    to_text = outcomes_json if as_json else outcomes_text
    click.echo(to_text(resolved, outcomes))
    if not all(outcome["is_passed"] for outcome in outcomes):
        sys.exit(1)


def verify_each(variants: Sequence[EngineVariant]) -> list[dict[str, Any]]:
    """Probe each variant, compare it with draft length 0, and write the outcome into its record."""
    from trt_mtp.build.variant import with_verification
    from trt_mtp.serve.probe import margins_of, probe_variant
    from trt_mtp.serve.verify import margin_requests, with_margins

    if variants[0].draft_length != 0:
        raise InputError(
            "no variant without speculation to compare with; "
            "build draft length 0 too, as in --draft-lengths 0,3"
        )
    require_engine(variants[0].engine)
    require_writable(variants)
    outcomes = []
    for variant in variants:
        click.echo(f"running {variant.folder}", err=True)
        probe = probe_variant(variant.folder)
        if variant is variants[0]:
            reference = probe
        now = datetime.now(UTC).isoformat(timespec="seconds")
        compared = compared_with(reference, probe, variant.engine)
        if compared.exact_tokens is not None and compared.divergences:
            asked = margin_requests(compared, reference.requests, reference.answers)
            click.echo(f"asking {variants[0].folder} how near its decisions were", err=True)
            compared = with_margins(compared, margins_of(variants[0].folder, asked))
        outcome = {"verified": now, **compared.to_json(), "measured": probe.measured()}
        with_verification(variant, outcome)
        outcomes.append(outcome)
    return outcomes


def require_writable(variants: Sequence[EngineVariant]) -> None:
    """Raise TrtMtpError for a record that could not take the outcome, before hours of probing."""
    for variant in variants:
        if not os.access(variant.folder, os.W_OK):
            raise TrtMtpError(
                f"can't write to {variant.folder}, whose {RECORD} takes the outcome; verify a copy "
                f"that can be written, or mount it so"
            )


def compared_with(reference: "Probe", probe: "Probe", engine: str) -> "Verification":
    """The verification of what `probe` answered against the variant without speculation."""
    from trt_mtp.serve.sampled import SampledComparison, p_value
    from trt_mtp.serve.verify import EXACT_TOKENS, SAMPLED_TOKENS, TEMPERATURE, compare, is_exact

    sampled = None
    if probe.sampled and probe is not reference:
        sampled = SampledComparison(
            num_answers=sum(map(len, probe.sampled)),
            num_tokens=SAMPLED_TOKENS,
            temperature=TEMPERATURE,
            p_value=p_value(reference.sampled, probe.sampled),
        )
    exact_tokens = None if is_exact(engine) else EXACT_TOKENS
    return compare(probe.requests, reference.answers, probe.answers, exact_tokens, sampled)


def outcomes_json(variants: Sequence[EngineVariant], outcomes: Sequence[dict[str, Any]]) -> str:
    """The output of `--json`."""
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
        memory = f"{measured['host_bytes'] / 1e6:.0f} MB"
        if measured["gpu_bytes"] is not None:
            memory += f", {measured['gpu_bytes'] / 1e9:.1f} GB on GPUs"
        lines.append(
            f"{variant.name}  {comparison(outcome)} ({outcome['num_tokens']} tokens), "
            f"acceptance length {outcome['acceptance_length']:.2f}; "
            f"loaded in {measured['load_s']:.1f} s, {memory}"
        )
        steps = [f"{s['batch_size']}: {s['step_ms']:.2f} ms" for s in measured["steps"]]
        lines += [f"    step by batch size  {', '.join(steps)}", *drift_lines(outcome)]
        lines += sampled_lines(outcome["sampled"])
    return "\n".join(lines)


def comparison(outcome: Mapping[str, Any]) -> str:
    """How the answers compare, in a few words."""
    if outcome["is_identical"]:
        return "same answers as without speculation"
    if outcome["num_early"]:
        return "OTHER answers than without speculation"
    if any(d["position"] < outcome["exact_tokens"] for d in outcome["divergences"]):
        return "same answers as without speculation but for near ties and later drift"
    return f"same first {outcome['exact_tokens']} tokens as without speculation, later drift"


def drift_lines(outcome: Mapping[str, Any]) -> list[str]:
    """How many answers left the reference, where, and how those that may not went on."""
    from trt_mtp.serve.verify import is_near_tie

    divergences, exact = outcome["divergences"], outcome["exact_tokens"]
    lines = []
    if exact is not None and divergences:
        positions = ", ".join(str(at) for at in sorted(d["position"] for d in divergences))
        margins = [d["margin"] for d in divergences if d["margin"] is not None]
        decided = f"; margins of the best token there {sorted(margins)}" if margins else ""
        lines.append(
            f"    {len(divergences)} of {outcome['num_prompts']} greedy answers leave, at token "
            f"{positions}; kernels that round differently do at near ties, and late{decided}"
        )
    return lines + [
        f"    prompt {d['prompt']} at temperature {d['temperature']} leaves at token "
        f"{d['position']}: expected {list(d['expected'])}, got {list(d['got'])}"
        for d in divergences
        if exact is None or (d["position"] < exact and not is_near_tie(d["margin"]))
    ]


def sampled_lines(sampled: Mapping[str, Any] | None) -> list[str]:
    """What the sampled answers show."""
    if sampled is None:
        return []
    is_same = sampled["p_value"] >= sampled["level"]
    return [
        f"    {'same distribution' if is_same else 'OTHER distribution'} of "
        f"{sampled['num_answers']} sampled answers at temperature {sampled['temperature']} "
        f"(p = {sampled['p_value']:.4f}, level {sampled['level']})"
    ]
