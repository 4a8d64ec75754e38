"""Prompt sets: the shipped one, any JSONL, and the formats of Spec-Bench and SPEED-Bench.

A line is one of
- `{"task": …, "prompt": …}` or `{"task": …, "messages": […], "tools": […], "max_tokens": …}`;
- `{"category": …, "turns": […]}`, as in question.jsonl of hemingkx/Spec-Bench and as the rows of
  nvidia/SPEED-Bench are. The first turn is asked; later ones need answers to the earlier.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trt_mtp.controller.client import Prompt
from trt_mtp.controller.request import CHARS_PER_TOKEN
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError
from trt_mtp.files import nearest, read_text

SHIPPED = "shipped"
SHIPPED_PATH = Path(__file__).parents[1] / "data" / "calibration_prompts.jsonl"
DEFAULT_MAX_TOKENS = 256
KEYS = ("task", "prompt", "messages", "tools", "max_tokens")
EXPECTED = {
    "task": "; expected `task` with `prompt` or `messages`, or `category` with `turns`",
    "category": "; expected the kind of its `turns`, such as coding",
}
# Spec-Bench's categories that have another name here (evaluation/speed.py in hemingkx/Spec-Bench);
# the others, and SPEED-Bench's eleven, are tasks by their own name
CATEGORY_TASKS = {
    "extraction": "structured_output",
    "translation": "multilingual",
    "math_reasoning": "math",
}
# how the rows of nvidia/SPEED-Bench begin until its preparation has filled them in
# (specdec_bench/datasets/speed.py in NVIDIA/Model-Optimizer)
PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts by task, in the order of the file."""

    name: str
    digest: str  # of the file's bytes
    prompts: Mapping[str, tuple[Prompt, ...]]

    @property
    def label(self) -> str:
        """The name and a short hash, as a profile keeps it."""
        return f"{self.name} {self.digest[:8]}"

    def chosen(self, tasks: Sequence[str]) -> "PromptSet":
        """Only `tasks`; raises InputError for one without a prompt."""
        for task in tasks:
            if task not in self.prompts:
                raise InputError(
                    f"--tasks: {self.name} has no prompt of {task!r}{nearest(task, self.prompts)}; "
                    f"it has {', '.join(self.prompts)}"
                )
        return replace(self, prompts={task: self.prompts[task] for task in tasks})

    def asked(self, task: str, places: Sequence[int], context_tokens: int = 0) -> list[Prompt]:
        """Prompts of a task, behind about so many tokens of other prompts' text."""
        part = [self.prompts[task][place] for place in places]
        if not context_tokens:
            return part
        filler = self._filler(round(CHARS_PER_TOKEN * context_tokens))
        before = {"role": "user", "content": f"{filler}\n\nPut all of that aside."}
        reply = {"role": "assistant", "content": "I have."}
        return [replace(prompt, messages=[before, reply, *prompt.messages]) for prompt in part]

    def _filler(self, num_chars: int) -> str:
        """Text of the set's prompts, over and over."""
        contents = [str(m.get("content", "")) for part in self.prompts.values() for p in part
                    for m in p.messages]  # fmt: skip
        text = "\n\n".join(contents)
        return (text * (num_chars // max(len(text), 1) + 1))[:num_chars]

    def drawn(self, max_tokens: int | None, temperature: float, seed: int) -> "PromptSet":
        """The same prompts with how to draw their answers."""
        prompts = {
            task: tuple(
                replace(
                    prompt,
                    max_tokens=max_tokens or prompt.max_tokens,
                    temperature=temperature,
                    seed=seed + number,
                )
                for number, prompt in enumerate(part)
            )
            for task, part in self.prompts.items()
        }
        return replace(self, prompts=prompts)


def read_prompt_set(source: str) -> PromptSet:
    """The prompts in a file, or `shipped`.

    Raises InputError that names the file and the line of what can't be used.
    """
    path = SHIPPED_PATH if source == SHIPPED else Path(source)
    if path.suffix == ".parquet":
        raise InputError(
            f"{path} is a Parquet file; write its rows as JSON lines first, for instance with "
            f"pandas.read_parquet(path).to_json('prompts.jsonl', orient='records', lines=True)"
        )
    text = read_text(path)
    if text.lstrip().startswith("["):
        raise InputError(
            f"{path} is a JSON list; write its rows as JSON lines first (`jq -c '.[]' {path}`)"
        )
    prompts: dict[str, list[Prompt]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            task, prompt = read_prompt(line, f"{path}, line {number}")
            prompts.setdefault(task, []).append(prompt)
    if not prompts:
        raise InputError(f"{path} has no prompts: expected one JSON object a line")
    name = SHIPPED if source == SHIPPED else path.name
    ordered = {task: tuple(prompts[task]) for task in TASKS if task in prompts}
    return PromptSet(name, hashlib.sha256(text.encode()).hexdigest(), ordered)


def read_prompt(line: str, where: str) -> tuple[str, Prompt]:
    """The task and the prompt in one line; raises InputError that begins with `where`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object")
    if "turns" in row:
        return _task(row, "category", where), Prompt(_turn(row, where), (), DEFAULT_MAX_TOKENS)
    max_tokens = row.get("max_tokens", DEFAULT_MAX_TOKENS)
    if type(max_tokens) is not int or not 0 < max_tokens < 2**31:
        raise InputError(f"{where}: max_tokens is {max_tokens!r:.40}: expected a positive integer")
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"{where}: tools is {tools!r:.40}: expected a list of objects")
    return _task(row, "task", where), Prompt(_messages(row, where), tools, max_tokens)


def _task(row: Mapping[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise InputError(f"{where} has no {key!r}{nearest(key, row) or EXPECTED[key]}")
    value = row[key]
    task = CATEGORY_TASKS.get(str(value), value) if key == "category" else value
    if task not in TASKS:
        known = [*TASKS, *CATEGORY_TASKS] if key == "category" else TASKS
        hint = nearest(str(value), known) or f"; expected one of {', '.join(known)}"
        raise InputError(f"{where}: {key} {value!r:.40} is none that is known{hint}")
    return str(task)


def _messages(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    if ("prompt" in row) == ("messages" in row):
        hint = next((nearest(key, KEYS) for key in row if key not in KEYS), "")
        raise InputError(f"{where}: expected either `prompt` or `messages`{hint}")
    if "prompt" in row:
        return [{"role": "user", "content": _content(row["prompt"], "prompt", where)}]
    messages = row["messages"]
    if not (isinstance(messages, list) and messages):
        raise InputError(f"{where}: messages is {messages!r:.40}: expected a list of messages")
    for message in messages:
        if not (isinstance(message, dict) and isinstance(message.get("role"), str)):
            raise InputError(f"{where}: {message!r:.60} is not a message with a role")
    return messages


def _turn(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    turns = row["turns"]
    if not (isinstance(turns, list) and turns):
        raise InputError(f"{where}: turns is {turns!r:.40}: expected a list of texts")
    text = _content(turns[0], "turns", where)
    if text.startswith(PLACEHOLDER):
        raise InputError(
            f"{where} is a placeholder, not a prompt: fetch SPEED-Bench's texts with "
            f"prepare_data.py of examples/specdec_bench in NVIDIA/Model-Optimizer first"
        )
    return [{"role": "user", "content": text}]


def _content(value: Any, key: str, where: str) -> str:
    if not (isinstance(value, str) and value.strip()):
        raise InputError(f"{where}: {key} is {value!r:.40}: expected a text")
    return value
