"""Prompt sets: what each format means, and what is said of a line that can't be used."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.calibrate.prompt_sets import (
    PLACEHOLDER,
    SHIPPED,
    read_prompt,
    read_prompt_set,
)
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["task", "prompt", "messages", "tools", "max_tokens", "turns", "category", "question_id"]
)


def write(folder: Path, *rows: object) -> str:
    """A JSONL file of `rows`."""
    file = folder / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_prompts_and_messages_are_read(tmp_path: Path) -> None:
    """A text becomes a user's message; messages, tools and max_tokens come as they are."""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    tools = [{"type": "function"}]
    row = {"task": "tool_call", "messages": messages, "tools": tools, "max_tokens": 9}
    found = read_prompt_set(write(tmp_path, {"task": "qa", "prompt": "Why?"}, row))
    assert list(found.prompts) == ["qa", "tool_call"]
    assert found.prompts["qa"][0].messages == [{"role": "user", "content": "Why?"}]
    second = found.prompts["tool_call"][0]
    assert (second.messages, second.tools, second.max_tokens) == (messages, tools, 9)


@pytest.mark.parametrize(
    ("category", "task"),
    [
        ("extraction", "structured_output"),
        ("translation", "multilingual"),
        ("math_reasoning", "math"),
        ("rag", "rag"),
        ("roleplay", "roleplay"),
    ],
)
def test_benchmark_rows_are_read(tmp_path: Path, category: str, task: str) -> None:
    """A row of Spec-Bench or SPEED-Bench asks its first turn, as the task of its category."""
    row = {"question_id": 81, "category": category, "turns": ["first", "second"]}
    found = read_prompt_set(write(tmp_path, row))
    assert found.prompts[task][0].messages == [{"role": "user", "content": "first"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task": "codng", "prompt": "x"}, "task 'codng' is none that is known; did you mean cod"),
        ({"tsk": "qa", "prompt": "x"}, "has no 'task'; did you mean tsk"),
        ({"task": "qa", "promt": "x"}, "either `prompt` or `messages`; did you mean prompt"),
        ({"task": "qa", "prompt": " "}, "prompt is ' ': expected a text"),
        ({"task": "qa", "messages": []}, "expected a list of messages"),
        ({"task": "qa", "messages": [{"content": "x"}]}, "is not a message with a role"),
        ({"task": "qa", "prompt": "x", "max_tokens": 0}, "max_tokens is 0"),
        ({"task": "qa", "prompt": "x", "tools": "t"}, "tools is 't'"),
        ({"category": "low_entropy", "turns": ["x"]}, "category 'low_entropy' is none"),
        ({"category": "qa", "turns": []}, "expected a list of texts"),
        ({"category": "qa", "turns": [f"{PLACEHOLDER}\n\n{{question}}"]}, "prepare_data.py"),
        ({"conversations": []}, "no 'task'; expected `task` with `prompt` or `messages`, or `cat"),
        ({"turns": ["x"]}, "has no 'category'; expected the kind of its `turns`"),
        ([], "is not a JSON object"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: object, said: str) -> None:
    """What is wrong is one sentence with the file, the line, and the nearest known name."""
    file = write(tmp_path, {"task": "qa", "prompt": "x"}, row)
    with pytest.raises(InputError) as error:
        read_prompt_set(file)
    assert f"{file}, line 2" in str(error.value)
    assert said in str(error.value)


@given(st.dictionaries(KEYS, JSON))
def test_any_object_is_a_prompt_or_refused(row: dict[str, object]) -> None:
    """Whatever a line holds, it is a prompt of a known task or an InputError."""
    try:
        task, prompt = read_prompt(json.dumps(row), "here")
    except InputError:
        return
    assert task in TASKS
    assert prompt.messages
    assert prompt.max_tokens > 0


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    """Missing, empty, binary and Parquet files, and a JSON list, each have their sentence."""
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        read_prompt_set(str(tmp_path / "none.jsonl"))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="it is not UTF-8"):
        read_prompt_set(str(tmp_path / "b.jsonl"))
    with pytest.raises(InputError, match="has no prompts"):
        read_prompt_set(write(tmp_path))
    (tmp_path / "list.json").write_text(json.dumps([{"task": "qa", "prompt": "x"}], indent=1))
    with pytest.raises(InputError, match=r"is a JSON list; write its rows as JSON lines first"):
        read_prompt_set(str(tmp_path / "list.json"))
    with pytest.raises(InputError, match="Parquet"):
        read_prompt_set(str(tmp_path / "test.parquet"))


def test_tasks_are_chosen_by_name(tmp_path: Path) -> None:
    """A task that the set has no prompt of is refused with those that it has."""
    found = read_prompt_set(write(tmp_path, {"task": "qa", "prompt": "x"}))
    assert list(found.chosen(["qa"]).prompts) == ["qa"]
    with pytest.raises(InputError, match="has no prompt of 'math'; it has qa"):
        found.chosen(["math"])


def test_the_shipped_set_covers_every_task() -> None:
    """At least 20 prompts for each task; tools with tool calls, a schema with structured output."""
    found = read_prompt_set(SHIPPED)
    assert {task: len(part) >= 20 for task, part in found.prompts.items()} == dict.fromkeys(
        TASKS, True
    )
    assert all(prompt.tools for prompt in found.prompts["tool_call"])
    for prompt in found.prompts["structured_output"]:
        assert '"type"' in json.dumps(prompt.messages).replace("\\", "")
    texts = [json.dumps(p.messages) for part in found.prompts.values() for p in part]
    assert len(set(texts)) == len(texts)
