"""What `trt-mtp top` shows: two looks at a gateway's statistics, as lines of 80 columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 80
MAX_NAME = 22  # characters of a task or a variant
TASK_LINE = "{:<20}{:>8}{:>9}{:>8}{:>7}  {}"
VARIANT_LINE = "{:<22}{:>3}  {:<9}{:>8}"


@dataclass(frozen=True, slots=True)
class Look:
    """A gateway's statistics (`GET /statistics` of its admin port) at one moment."""

    at_s: float  # monotonic
    statistics: Mapping[str, Any]


def screen(before: Look | None, now: Look, height: int) -> str:
    """The lines of one screen; rates are those since `before`, totals where there is none."""
    shown = now.statistics
    lines = [
        *_head(shown),
        "",
        *_variants(shown["variants"], max(height // 3, 4)),
        "",
    ]
    lines += _tasks(before, now, max(height - len(lines) - 1, 4))
    return "\n".join(line[:WIDTH].rstrip() for line in lines[: height - 1])


def _head(shown: Mapping[str, Any]) -> Sequence[str]:
    running = sum(variant["num_running"] for variant in shown["variants"].values())
    failed = sum(task["num_failed"] for task in shown["tasks"].values())
    moved = sum(task["num_failed_over"] for task in shown["tasks"].values())
    return (
        f"{shown['model']} at {shown['gateway']}",
        f"in flight {running:,}   waiting {shown['num_waiting']:,}   "
        f"refused {shown['num_refused']:,}   failed over {moved:,}   failed {failed:,}",
    )


def _variants(variants: Mapping[str, Mapping[str, Any]], room: int) -> list[str]:
    """The variants, those in trouble first if there are too many."""
    lines = [VARIANT_LINE.format("VARIANT", "K", "STATE", "RUNNING")]
    found = sorted(variants.items(), key=lambda item: _state(item[1]) == "ready")
    kept = found if len(found) < room else found[: room - 2]
    lines += [
        VARIANT_LINE.format(
            name[-MAX_NAME:], one["draft_length"], _state(one), f"{one['num_running']:,}"
        )
        for name, one in kept
    ]
    if len(kept) < len(found):
        lines.append(f"and {len(found) - len(kept)} more, {_state(found[-1][1])}")
    return lines


def _state(variant: Mapping[str, Any]) -> str:
    if not variant["is_ready"]:
        return "not ready"
    return "ejected" if variant["is_ejected"] else "ready"


def _tasks(before: Look | None, now: Look, room: int) -> list[str]:
    """The tasks with the most tokens, and what was chosen for them."""
    titles = ("req/s", "tok/s") if before else ("requests", "tokens")
    lines = [TASK_LINE.format("TASK", *titles, "ACCEPT", "DRIFT", "CHOSEN")]
    rows = [
        (_since(before, now, task, "num_output_tokens"), task) for task in now.statistics["tasks"]
    ]
    for tokens, task in sorted(rows, key=lambda row: -row[0])[: room - 1]:
        counters = now.statistics["tasks"][task]
        drafts = counters["num_draft_tokens"]
        accepted = f"{counters['num_accepted_draft_tokens'] / drafts:.0%}" if drafts else "-"
        lines.append(
            TASK_LINE.format(
                task[:20],
                _rate(_since(before, now, task, "num_requests")),
                _rate(tokens),
                accepted,
                counters["num_drifts"],
                _chosen(counters["chosen"]),
            )
        )
    if not rows:
        lines.append("no requests yet")
    return lines


def _since(before: Look | None, now: Look, task: str, counter: str) -> float:
    """A counter's increase per second; its value without a look before, or after a restart."""
    value = float(now.statistics["tasks"][task][counter])
    if before is None:
        return value
    earlier = float(before.statistics["tasks"].get(task, {}).get(counter, 0))
    grown = value - earlier if value >= earlier else value
    return grown / max(now.at_s - before.at_s, 1e-3)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _chosen(chosen: Mapping[str, int]) -> str:
    """Draft lengths with their shares, the most frequent first."""
    total = max(sum(chosen.values()), 1)
    return " ".join(
        f"K={length} {count / total:.0%}"
        for length, count in sorted(chosen.items(), key=lambda item: (-item[1], int(item[0])))
    )
