"""Which tasks are taken for which, each way of asking held out in turn, and what it costs.

Run `python -m benchmarks.task_confusion [--json]`. A wrong guess costs the difference between the
draft length that is best for the guessed task and the one for the true task, at one request in
flight on the composite rig of controller/profile.py, before anything was learned.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tools.train_task_model import SOURCES, confusion, read_prompts
from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.calibrate.prompt_sets import SHIPPED_PATH
from trt_mtp.controller.json_request import features_from_json
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE
from trt_mtp.controller.simulate.workload import published_cost
from trt_mtp.controller.task import guess_task
from trt_mtp.controller.tasks import TASKS

HOSTED = (0, 1, 2, 3, 5)
# not trained on: the first not at all, of the second some lines of its forms are in the training
UNSEEN = (SHIPPED_PATH, Path(__file__).parents[1] / "assets" / "qwen-mtp-tiny" / "prompts.jsonl")


def speeds(task: str) -> list[float]:
    """Speedup over none of each hosted length."""
    lengths = acceptance_lengths(prior_conditionals(PUBLISHED_ACCEPTANCE[task]))
    return [lengths[k] / published_cost().ratio(k, 1) for k in HOSTED]


def loss(true: str, guessed: str) -> float:
    """The share of the true task's best throughput that a guess gives away."""
    own, other = speeds(true), speeds(guessed)
    return 1 - own[other.index(max(other))] / max(own)


def shares(path: Path) -> tuple[float, int, float]:
    """How many of a file's prompts the shipped model guesses right, of how many, and the loss."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = []
    for row in rows:
        request = {key: row[key] for key in ("messages", "tools") if key in row}
        guessed = guess_task(features_from_json(request)).task
        losses.append((guessed == row["task"], loss(row["task"], guessed)))
    right, lost = np.mean(losses, axis=0)
    return round(float(right), 4), len(rows), round(float(lost), 4)


def main() -> None:
    """Confusions over all held-out prompts, and their cost."""
    prompts = read_prompts()
    counts = np.array([confusion(prompts, source) for source in SOURCES]).sum(axis=0)
    losses = np.array([[loss(true, guessed) for guessed in TASKS] for true in TASKS])
    mean_loss = float((counts * losses).sum() / np.sum(counts))
    accuracy = float(np.trace(counts) / np.sum(counts))
    if "--json" in sys.argv[1:]:
        print(
            json.dumps(
                {
                    "schema_version": 1,
                    "tasks": TASKS,
                    "counts": np.array(counts).tolist(),
                    "accuracy": round(accuracy, 4),
                    "mean_loss": round(mean_loss, 4),
                    "shipped": {str(path): shares(path) for path in UNSEEN},
                }
            )
        )
        return
    print(" " * 18 + " ".join(f"{task[:5]:>5}" for task in TASKS) + "  loss when wrong")
    for i, task in enumerate(TASKS):
        wrong = np.sum(counts[i]) - counts[i][i]
        cost = float((counts[i] * losses[i]).sum() / max(wrong, 1))
        print(f"{task:<18}" + " ".join(f"{n:>5}" for n in counts[i]) + f"  {cost:.1%}")
    print(f"accuracy {accuracy:.3f}, throughput lost to wrong guesses {mean_loss:.2%}")
    for path in UNSEEN:
        right, number, lost = shares(path)
        print(f"{path.name}, by the shipped model: {right:.3f} of {number}, lost {lost:.2%}")


if __name__ == "__main__":
    main()
