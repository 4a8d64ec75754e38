"""What routing gains and loses on published mixes, and whether the model predicts what was seen.

Run `python -m benchmarks.regret [--json] [--requests N] [--seeds N]`. Targets: at least 0.98 of the
oracle, 1.00 of the best static length per load on average, 0.99 of none in every task; speedups
predicted with a median error of at most 6%, and the best draft length within 1 in 85%.
"""

import json
from typing import Any

import click

from tools.published.check import check
from tools.published.measurements import MEASUREMENTS_PATH, STEP_COSTS_PATH
from trt_mtp.controller.simulate.regret import report


@click.command()
@click.option("--requests", default=3000, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(requests: int, seeds: int, as_json: bool) -> None:
    """Both reports in one run."""
    published = check(MEASUREMENTS_PATH, STEP_COSTS_PATH)
    routing = report(requests, range(seeds))
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "published": published, "routing": routing}))
        return
    click.echo(f"predicted {published['rows_predicted']} published speedups: median error "
               f"{published['median_abs_error']:.3f}, best K within 1 in "
               f"{published['best_k_within_1']:.3f}")  # fmt: skip
    for row in routing["scenarios"]:
        click.echo(_line(row))
    for key in ("over_oracle_min", "over_best_static_mean", "worst_task_over_none"):
        click.echo(f"{key}: {routing[key]}")
    click.echo(f"recovery_over_oracle: {routing['recovery_over_oracle']}")


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['mix']:<14}{row['load']:<11} oracle {row['over_oracle']:.3f}  "
        f"{row['best_static']} {row['over_best_static']:.3f}  none {row['over_none']:.3f}  "
        f"worst task {row['worst_task']} {row['worst_task_over_none']:.3f} of none"
    )


if __name__ == "__main__":
    main()
