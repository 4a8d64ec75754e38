"""What each gate has seen, a line per gate in 80 columns: the table of `rollout explain`."""

from collections.abc import Iterator, Sequence

from trt_mtp.controller.rollout.gates import GateResult

LINE = "{:<18}{:<18}{:<14}{:>11}{:>8}{:>10}"
NOTES = (
    "requests: of the canary/of the stable side; may miss: a loss still hidden",
    "beyond: how many more of its requests exceed the stable side's percentile",
)


def gate_table(gates: Sequence[GateResult]) -> Iterator[str]:
    """The lines, the likeliest failures first; nothing if no gate has seen a request."""
    if not gates:
        return
    yield LINE.format("gate", "task", "canary is", "requests", "p", "may miss").rstrip()
    for one in gates:
        missed = "" if one.could_miss is None else f"{one.could_miss:.1%}"
        counts = f"{one.num_canary}/{one.num_stable}"
        last = "FAILED" if one.is_failed else missed
        yield LINE.format(
            one.gate, one.task or "all", _change(one), counts, f"{one.p_value:.2g}", last
        ).rstrip()
    yield f"p: how likely chance alone shows as much; a gate fails at {gates[0].threshold:.2g}"
    yield from NOTES


def _change(one: GateResult) -> str:
    if one.unit == "relative":
        return f"{abs(one.change):.1%} {'worse' if one.change > 0 else 'better'}"
    return f"{one.change:+.1%} {'failed' if one.gate == 'error_rate' else 'beyond'}"
