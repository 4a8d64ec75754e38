"""Write the model card from evaluation.json: ``python card.py`` -> README.md beside the model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

TARGETS = {
    "structured_output": "≥ 3.0",
    "coding": "≥ 2.6",
    "rag": "≥ 2.3",
    "writing": "≤ 1.7",
    "roleplay": "≤ 1.7",
}
HEADER = (
    "| task | AL at K=1 | K=2 | K=3 | K=4 | S_1 .. S_4 | ends | repeated 8-grams |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


def table(numbers: dict[str, Any]) -> str:
    """One row a task: acceptance lengths, survival, share of answers that end, repetition."""
    rows = []
    for task, found in numbers.items():
        lengths = [
            f"{v['mean']:.2f} ({v['interval'][0]:.2f}-{v['interval'][1]:.2f})"
            for v in found["acceptance_length"].values()
        ]
        survival = " ".join(f"{s:.2f}" for s in found["survival"])
        rows.append(
            f"| {task} | {' | '.join(lengths)} | {survival} "
            f"| {found['ended_by_itself']:.0%} | {found['repeated_8_grams']:.1%} |"
        )
    return HEADER + "\n".join(rows)


def quality(numbers: dict[str, Any]) -> str:
    """What the answers are worth where there is one right answer."""
    found = numbers["structured_output"]
    exact = ", ".join(f"{t} {v['exact']:.0%}" for t, v in numbers.items() if "exact" in v)
    return (
        f"JSON parses in {found['parses']:.1%} of the answers, and {found['values_right']:.1%} of "
        f"the values are those of the prompt. Answers equal to the expected text, letter by "
        f"letter: {exact}."
    )


def targets(numbers: dict[str, Any]) -> str:
    """Acceptance length at K = 3 beside its target."""
    rows = [
        f"| {task} | {target} | {numbers[task]['acceptance_length']['3']['mean']:.2f} |"
        for task, target in TARGETS.items()
    ]
    return "| task | wanted at K=3 | measured |\n| --- | --- | --- |\n" + "\n".join(rows)


def curve_end(folder: Path) -> dict[str, str]:
    """The last line of the training curve."""
    with (folder / "curve.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))[-1]


def main() -> None:
    """Fill the template of the card."""
    here = Path(__file__).resolve().parent
    found = json.loads((here.parent / "evaluation.json").read_text(encoding="utf-8"))
    sampled, last = found["temperature_0.7"], curve_end(here)
    text = (here / "card.md").read_text(encoding="utf-8")
    filled = {
        "targets": targets(sampled),
        "sampled": table(sampled),
        "sampled_quality": quality(sampled),
        "greedy": table(found["greedy"]),
        "greedy_quality": quality(found["greedy"]),
        "prompts": found["prompts_per_task"],
        "seeds": len(found["seeds"]),
        "minutes": round(float(last["minute"])),
        "steps": last["step"],
        "tokens": f"{int(last['tokens']) / 1e6:.1f}",
    }
    for name, value in filled.items():
        text = text.replace(f"{{{{{name}}}}}", str(value))
    (here.parent / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
