"""Write the held-out prompts: ``python prompts.py`` -> prompts.jsonl beside the model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

import sources
from tasks import TASKS

PER_TASK = 64
SEED = 20_000
MAX_TOKENS = 128
OPEN_ENDED = ("writing", "roleplay")


def prompt_lines(words: sources.Sources) -> list[str]:
    """JSON lines with ``PER_TASK`` distinct prompts of each task, from held-out words only."""
    lines: list[str] = []
    for number, (task, make) in enumerate(TASKS.items()):
        if task == "copying":
            continue
        rng = Random(SEED + number)
        seen: dict[str, str] = {}
        while len(seen) < PER_TASK:
            example = make(rng, words)
            line: dict[str, Any] = {"task": task, "messages": example.messages}
            if example.tools:
                line["tools"] = example.tools
            if task not in OPEN_ENDED:
                line["expected"] = example.expected or example.answer
            line["max_tokens"] = MAX_TOKENS
            seen.setdefault(json.dumps(example.messages), json.dumps(line, ensure_ascii=False))
        lines += seen.values()
    return lines


def main() -> None:
    """Read the command line and write the file."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, default=here / "packages")
    parser.add_argument("-o", "--output", type=Path, default=here.parent)
    args = parser.parse_args()
    words = sources.split(sources.load(args.sources), held=True)
    text = "\n".join(prompt_lines(words)) + "\n"
    (args.output / "prompts.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
