"""What an acceptance showed to be otherwise than the docs of trt-mtp say."""

from collections.abc import Iterator

from trt_mtp.controller.accept.record import Record, VariantLine
from trt_mtp.controller.accept.verdict import REASONS

MEMORY_TOLERANCE = 0.1  # of the plan: docs/nvidia.md calls it a plan
LEVEL = 0.001  # as in serve/sampled.py


def differences(record: Record) -> list[str]:
    """A sentence each; empty if all was as the docs say, as far as it was tried."""
    return [
        *_steps(record),
        *(line for variant in record.variants for line in _variant(variant)),
        *_checks(record),
        *_replay(record),
    ]


def _steps(record: Record) -> Iterator[str]:
    for step in record.steps:
        if step.status in ("failed", "bad input"):
            yield f"the step {step.name} {'failed' if step.status == 'failed' else 'was refused'}"
        elif step.status == "over budget":
            yield f"the step {step.name} was not done after {step.budget_s:.0f} s"
    for one in record.cells:
        if one.is_failed:
            yield f"calibrate: {one.task} failed at K={one.draft_length}, load {one.concurrency}"


def _variant(variant: VariantLine) -> Iterator[str]:
    name = variant.name
    if variant.left_at and variant.is_exact:
        yield f"{name}: answers are not those without drafts, as the CPU engine's always are"
    elif variant.left_at and variant.is_passed is False:
        yield f"{name}: a greedy answer leaves at token {variant.left_at[0]}, before the 50th"
    if variant.p_value is not None and variant.p_value < LEVEL:
        yield f"{name}: sampled answers have another distribution (p = {variant.p_value:.4f})"
    measured, planned = variant.gpu_bytes, variant.planned_bytes
    if measured and planned and abs(measured / planned - 1) > MEMORY_TOLERANCE:
        yield (
            f"{name}: {measured / 1e9:.1f} GB of GPU memory were used and "
            f"{planned / 1e9:.1f} GB were planned"
        )


def _checks(record: Record) -> Iterator[str]:
    for check in record.checks:
        if check.status in ("failed", "noted"):
            yield f"{check.name}: {REASONS.get(check.reason, check.reason)}"


def _replay(record: Record) -> Iterator[str]:
    if record.asks_for_replay and record.says_replay is False:
        yield (
            "TRTLLM_USE_GDN_REPLAY=1 was set, and the end of the log has no line "
            "`GDN MTP replay is requested`"
        )
