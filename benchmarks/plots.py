"""Draw the plots of docs/how-it-decides.md from the code's own output.

Run `python -m benchmarks.plots docs/plots` with matplotlib installed (nothing else needs it).
"""

import sys
from pathlib import Path
from typing import Any

from tools.published.measurements import MEASUREMENTS_PATH, read_measurements
from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE
from trt_mtp.controller.simulate.regret import LOADS, report
from trt_mtp.controller.simulate.workload import published_cost

LENGTHS = range(1, 8)
KINDS = {
    "structured/json/extraction": "structured_output",
    "code": "coding",
    "factual-qa": "qa",
    "creative/roleplay": "writing",
}


def acceptance(plt: Any, folder: Path) -> None:
    """Published acceptance lengths over the priors' curves."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    rows = read_measurements(MEASUREMENTS_PATH)
    for i, (kind, task) in enumerate(KINDS.items()):
        own = [r for r in rows if r.task_norm == kind and r.acceptance_length and r.method == "mtp"]
        own = [r for r in own if r.draft_length in LENGTHS]
        axes.plot([r.draft_length + 0.08 * (i - 1.5) for r in own],
                  [r.acceptance_length for r in own], ".", color=f"C{i}", alpha=0.35)  # fmt: skip
        curve = acceptance_lengths(prior_conditionals(PUBLISHED_ACCEPTANCE[task]))
        axes.plot(LENGTHS, curve[1:8], color=f"C{i}", label=task)
    axes.set(xlabel="draft length K", ylabel="acceptance length AL(K)")
    axes.legend()
    _save(figure, folder / "acceptance.svg")


def cost(plt: Any, folder: Path) -> None:
    """R(K, B) of the composite rig, and the AL that a task needs to win."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    loads = [2 ** (i / 4) for i in range(29)]
    table = published_cost()
    for k in (1, 2, 3, 5):
        axes.plot(loads, [table.ratio(k, load) for load in loads], label=f"R({k}, B)")
    for task in ("coding", "writing"):
        length = acceptance_lengths(prior_conditionals(PUBLISHED_ACCEPTANCE[task]))[3]
        axes.axhline(length, linestyle=":", color="grey")
        axes.text(1, length + 0.05, f"AL(3) of {task}", color="grey")
    axes.set(xscale="log", xlabel="requests in flight B", ylabel="step time in plain steps")
    axes.legend()
    _save(figure, folder / "cost.svg")


def regret(plt: Any, folder: Path) -> None:
    """Throughput over the oracle's by mix and load."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    rows = report(1500)["scenarios"]
    mixes = list(dict.fromkeys(row["mix"] for row in rows))
    for i, load in enumerate(LOADS):
        own = [row for row in rows if row["load"] == load]
        at = [j + 0.25 * (i - 1) for j in range(len(mixes))]
        axes.bar(at, [1 - row["over_oracle"] for row in own], 0.22, color=f"C{i}", label=load)
        static = [1 - row["over_oracle"] / row["over_best_static"] for row in own]
        axes.plot(at, static, "_k", label="best static length" if i == 0 else None)
    axes.set_xticks(range(len(mixes)), mixes)
    axes.set(ylabel="regret against the oracle")
    axes.legend()
    _save(figure, folder / "regret.svg")


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """All three, into the folder given."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "trt-mtp"
    from matplotlib import pyplot

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (acceptance, cost, regret):
        draw(pyplot, folder)


if __name__ == "__main__":
    main()
