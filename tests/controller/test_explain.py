"""`trt-mtp explain`, `replay` and `simulate` as a user types them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policy_fixtures import outcome, request, variants
from trt_mtp.controller.decision_log import DecisionLog
from trt_mtp.controller.explain import explain_jsonl, idle_variants
from trt_mtp.controller.json_request import features_from_json
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.policy_cli import explain, replay
from trt_mtp.errors import InputError

RUNNER = CliRunner()


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    return RUNNER.invoke(explain, list(arguments), input=stdin)


def test_a_prompt_is_explained_for_people() -> None:
    """Task, variant, reasons and every candidate's parts are shown."""
    result = run("Write a Rust function that reverses a list")
    assert result.exit_code == 0
    for word in ("coding", "variant", "why", "score", "k0", "k5"):
        assert word in result.output


def test_lines_in_lines_out_with_stable_keys() -> None:
    """Every request line gives one decision line, in order, with its id."""
    lines = [
        {"prompt": "Translate to German: hello", "id": 7},
        {"messages": [{"role": "user", "content": "Write a poem"}], "temperature": 1.0},
        {"prompt": "x", "draft_length": 1, "task": "auto"},
    ]
    result = run("--jsonl", "-", "--json", stdin="\n".join(json.dumps(line) for line in lines))
    assert result.exit_code == 0
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["task"] for row in found[:2]] == ["multilingual", "writing"]
    assert found[0]["id"] == 7
    assert found[2]["variant"] == "k1"
    keys = {"task", "task_probabilities", "variant", "scores", "reasons", "decision_us"}
    assert all(keys <= set(row) for row in found)


def test_a_bad_line_is_reported_and_the_others_are_decided() -> None:
    """Broken JSON, unknown keys and wrong hints don't stop the rest; the exit code is 2."""
    wrong = ["{", '{"promt": "x"}', '{"prompt": "x", "task": "codin"}']
    lines = [*wrong, '{"prompt": "Solve 2+2"}']
    result = run("--jsonl", "-", "--json", stdin="\n".join(lines))
    assert result.exit_code == 2
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert "not JSON" in found[0]["error"]
    assert "did you mean prompt" in found[1]["error"]
    assert "did you mean coding" in found[2]["error"]
    assert found[3]["task"] == "math"


def test_ten_megabytes_are_explained() -> None:
    """The size of a prompt is no reason to fail."""
    line = json.dumps({"prompt": "Translate to German: " + "word " * 2_000_000})
    result = run("--jsonl", "-", "--json", stdin=line.encode() + b"\n")
    assert json.loads(result.stdout)["task"] == "multilingual"


def test_invalid_utf8_is_read_with_replacements() -> None:
    """Bytes that are no UTF-8 are no reason to fail."""
    result = run("--jsonl", "-", "--json", stdin=b'{"prompt": "Solve \xff\xfe 2x = 4"}\n')
    assert result.exit_code == 0
    assert json.loads(result.stdout)["task"] == "math"


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"prompt": "x", "messages": []},
        {"prompt": 3},
        {"messages": "x"},
        {"messages": [3]},
        {"prompt": "x", "temperature": -1},
        {"prompt": "x", "temperature": True},
        {"prompt": "x", "max_tokens": "many"},
        {"prompt": "x", "draft_length": -1},
        {"prompt": "x", "draft_length": 1.5},
        {"prompt": "x", "session_id": 3},
    ],
)
def test_wrong_requests_are_refused(value: object) -> None:
    """A request of the wrong shape is one sentence."""
    with pytest.raises(InputError):
        features_from_json(value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)


@given(JSON_VALUES)
def test_any_json_value_gives_a_decision_or_an_error(value: object) -> None:
    """No value of any shape ends in a traceback."""
    line = json.dumps({"messages": [value], "tools": value}).encode()
    for result in explain_jsonl(Policy(), [line], idle_variants((0, 3))):
        assert "error" in result or result["variant"] in ("k0", "k3")


@pytest.mark.parametrize(
    "arguments", [[], ["a", "--jsonl", "-"], ["--decision", "x"], ["a", "--draft-lengths", "1,1"],
                  ["a", "--draft-lengths", "x"], ["a", "--state", "/nonexistent"]]
)  # fmt: skip
def test_wrong_usage_is_one_sentence(arguments: list[str]) -> None:
    """Missing, contradicting and malformed options are InputErrors."""
    assert isinstance(run(*arguments).exception, InputError)


@pytest.mark.parametrize(
    ("value", "same"),
    [
        ({"text_input": "Write a poem", "streaming": True, "parameters": {"draft_length": "3"},
          "sampling_param_temperature": 0.9, "sampling_param_max_tokens": 9},
         {"prompt": "Write a poem", "draft_length": 3, "temperature": 0.9, "max_tokens": 9}),
        ({"messages": '[{"role": "user", "content": "hi"}]', "enable_thinking": True},
         {"prompt": "hi", "thinking": True}),
        ({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True,
          "response_format": {"type": "text"}, "max_completion_tokens": 7, "temperature": None},
         {"prompt": "hi", "max_tokens": 7}),
    ],
)  # fmt: skip
def test_bodies_that_clients_send_are_requests(value: object, same: object) -> None:
    """Triton's generate and OpenAI's chat completions say the same in other keys."""
    assert features_from_json(value) == features_from_json(same)


def test_what_a_terminal_can_not_show_is_no_reason_to_fail() -> None:
    """Half a surrogate in an id goes out as it came; a number of 5,000 digits is one sentence."""
    lines = [
        '{"prompt": "x", "id": "\\ud800"}',
        '{"prompt": "x", "max_tokens": ' + "9" * 5000 + "}",
    ]
    result = run("--jsonl", "-", "--json", stdin="\n".join(lines))
    one, other = (json.loads(line) for line in result.stdout.splitlines())
    assert one["id"] == "\ud800"
    assert "thousands of digits" in other["error"]


def test_a_logged_decision_is_explained_and_replayed(tmp_path: Path) -> None:
    """The id that a response carries finds its decision in the log."""
    path = tmp_path / "log.jsonl"
    log, policy = DecisionLog(path), Policy()
    for _ in range(5):
        decision = policy.choose(request("Write a poem"), variants(0, 1, 3), now_s=0.0)
        log.append(decision, outcome(decision.draft_length))
    log.close()
    result = run("--log", str(path), "--decision", decision.decision_id, "--json")
    shown = json.loads(result.stdout)
    assert (shown["decision_id"], shown["prompt"]) == (decision.decision_id, None)
    assert shown["outcome"]["finish_reason"] == "stop"
    missing = run("--log", str(path), "--decision", "nope")
    assert isinstance(missing.exception, InputError)
    replayed = RUNNER.invoke(replay, [str(path), "--json"])
    assert json.loads(replayed.stdout)["requests"] == 5
    lines = RUNNER.invoke(replay, [str(path)]).output.splitlines()
    assert lines[1].split("  ")[-1].strip() == "over none"
    assert max(map(len, lines)) <= 80


def logged(path: Path, *prompts: str | None) -> list[str]:
    """The ids of decisions in a log that keeps these prompts, one line in each file of it."""
    log, policy, ids = DecisionLog(path, max_bytes=1), Policy(), []
    for prompt in prompts:
        decision = policy.choose(request(prompt or ""), variants(0, 1, 3), now_s=0.0)
        log.append(decision, outcome(decision.draft_length), prompt)
        ids.append(decision.decision_id)
    log.close()
    return ids


def test_a_logged_prompt_is_shown_with_its_answer(tmp_path: Path) -> None:
    """Also from a file that was rotated away; long ones by their ends, without what steers."""
    long = "BEGIN" + "\x1b[31m word" * 400 + "END"
    first, second = logged(tmp_path / "log", "Write a poem\nabout rain", long)
    text = run("--log", str(tmp_path / "log"), "--decision", first).output
    assert text.startswith("prompt   Write a poem\n         about rain\ntask ")
    assert "answer   " in text
    text = run("--log", str(tmp_path / "log"), "--decision", second).output
    assert "BEGIN" in text
    assert "END" in text
    assert "\x1b" not in text
    assert len(text) < 2000
    whole = run("--log", str(tmp_path / "log"), "--decision", second, "--json")
    assert json.loads(whole.stdout)["prompt"] == long


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever stands in place of a value: explain and replay answer, or name the line."""
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    [name] = logged(path, "Write a poem")
    record = json.loads(path.read_text())
    parent = data.draw(st.sampled_from(list(objects(record))))
    keys = sorted(parent) if isinstance(parent, dict) else range(len(parent))
    key = data.draw(st.sampled_from(keys))
    if data.draw(st.booleans()):
        del parent[key]
    else:
        parent[key] = data.draw(JSON_VALUES | st.integers() | st.just(10**400))
    path.write_text(json.dumps(record) + "\n")
    results = [run("--log", str(path), "--decision", name)]
    for policy in ("logged", "learned"):
        results.append(RUNNER.invoke(replay, [str(path), "--policy", policy]))
    assert all(r.exception is None or isinstance(r.exception, InputError) for r in results)


def objects(value: Any) -> Iterator[Any]:
    """All objects and lists in a JSON value that hold something."""
    if isinstance(value, dict | list) and value:
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from objects(child)
