"""What would be decided for a request, and why, without a server."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_mtp.controller.decision import Decision, VariantState
from trt_mtp.controller.decision_log import read_log
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.request import WINDOW_CHARS, RequestFeatures, content_text
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import nearest

DEFAULT_LENGTHS = (0, 1, 3, 5)
_KEYS = (
    "prompt", "messages", "tools", "response_format", "temperature", "max_tokens", "thinking",
    "num_prompt_tokens", "task", "draft_length", "session_id", "tenant", "latency_class",
    "system", "id",
)  # fmt: skip


def idle_variants(lengths: Sequence[int], load: int = 0) -> list[VariantState]:
    """Hosted variants to decide among, with `load` requests in flight on each."""
    return [VariantState(f"k{k}", k, True, load, max(load + 1, 64), 1 << 20) for k in lengths]


def features_from_json(value: Any) -> RequestFeatures:
    """The features of a request given as a JSON object with `prompt` or `messages`.

    Raises InputError for an unknown key or a value of the wrong kind.
    """
    if not isinstance(value, dict):
        raise InputError("a request is a JSON object with prompt or messages")
    for key in value:
        if key not in _KEYS:
            raise InputError(f"unknown key {key[:80]!r}{nearest(key[:80], _KEYS)}")
    if ("prompt" in value) == ("messages" in value):
        raise InputError("a request has either prompt or messages")
    system, text = _texts(value)
    length = value.get("draft_length")
    return RequestFeatures(
        head=text[:WINDOW_CHARS],
        tail=text[-WINDOW_CHARS:],
        num_chars=len(text),
        system=system[:WINDOW_CHARS],
        has_tools=bool(value.get("tools")),
        has_response_format=bool(value.get("response_format")),
        temperature=_number(value, "temperature", 0.0),
        max_tokens=int(_number(value, "max_tokens", 128)),
        thinking=value.get("thinking") is True,
        num_prompt_tokens=_whole(value, "num_prompt_tokens"),
        hint_task=None if value.get("task") == "auto" else _text(value, "task"),
        hint_draft_length=None if length == "auto" else _whole(value, "draft_length"),
        session_id=_text(value, "session_id"),
        tenant=_text(value, "tenant"),
        latency_class=_text(value, "latency_class"),
    )


def _texts(value: Mapping[str, Any]) -> tuple[str, str]:
    """The system prompt and what the user wrote."""
    if "prompt" in value:
        return _text(value, "system") or "", _text(value, "prompt") or ""
    messages = value["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise InputError("messages is a list of objects with role and content")
    system = "\n".join(content_text(m) for m in messages if m.get("role") == "system")
    turns = [content_text(m) for m in messages if m.get("role") not in ("system", "assistant")]
    return system, "\n".join(turns)


def _text(value: Mapping[str, Any], key: str) -> str | None:
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        raise InputError(f"{key} is {found!r:.80}: expected a text")
    return found


def _number(value: Mapping[str, Any], key: str, default: float) -> float:
    found = value.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1e12:
        raise InputError(f"{key} is {found!r:.80}: expected a number that is not negative")
    return float(found)


def _whole(value: Mapping[str, Any], key: str) -> int | None:
    found = value.get(key)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise InputError(f"{key} is {found!r:.80}: expected a whole number that is not negative")
    return found


def explain_line(
    policy: Policy, value: Any, variants: Sequence[VariantState]
) -> tuple[Decision, float]:
    """The decision for one request, and the microseconds that it took."""
    features = features_from_json(value)
    start = time.perf_counter_ns()
    decision = policy.choose(features, variants, now_s=0.0)
    return decision, (time.perf_counter_ns() - start) / 1000


def explain_jsonl(
    policy: Policy, lines: Iterable[bytes], variants: Sequence[VariantState]
) -> Iterator[dict[str, Any]]:
    """One result per line, in order; a line that is no request gives its `error` instead."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8", "replace"))
            decision, micros = explain_line(policy, value, variants)
        except (json.JSONDecodeError, RecursionError) as error:
            yield {"line": number, "error": f"line {number} is not JSON: {error}"}
        except TrtMtpError as error:
            yield {"line": number, "error": f"line {number}: {error}"}
        else:
            result = summary(decision, micros)
            yield result | ({"id": value["id"]} if "id" in value else {})


def summary(decision: Decision, decision_us: float | None = None) -> dict[str, Any]:
    """The stable keys of `explain --json`."""
    candidates = decision.to_json()["candidates"]
    return {
        "schema_version": 1,
        "decision_id": decision.decision_id,
        "task": decision.task,
        "task_probabilities": {t: round(p, 4) for t, p in decision.task_probabilities},
        "variant": decision.variant,
        "draft_length": decision.draft_length,
        "scores": {c.variant: round(c.score, 4) for c in decision.candidates},
        "candidates": candidates,
        "reasons": list(decision.reasons),
        "explored": decision.explored,
        "seed": decision.seed,
        "decision_us": None if decision_us is None else round(decision_us, 1),
    }


def find_decision(log: Path, decision_id: str) -> Decision:
    """The decision with this id in a log; raises InputError when there is none."""
    for record in read_log(log):
        if record.decision.decision_id == decision_id:
            return record.decision
    raise InputError(f"{log} has no decision {decision_id!r}")


def to_text(result: Mapping[str, Any]) -> str:
    """A decision for people."""
    tasks = ", ".join(f"{t} {p:.0%}" for t, p in result["task_probabilities"].items())
    lines = [
        f"task     {tasks}",
        f"variant  {result['variant']}",
        *(f"why      {reason}" for reason in result["reasons"]),
        "",
        f"{'variant':<10}{'load':>5}{'AL':>7}{'step ms':>9}{'wait s':>8}{'total s':>9}{'score':>7}",
    ]
    for c in result["candidates"]:
        if c["rejected"]:
            lines.append(f"{c['variant']:<10}{c['rejected']}")
            continue
        lines.append(
            f"{c['variant']:<10}{c['load']:>5}{c['acceptance_length']:>7.2f}"
            f"{1000 * c['step_s']:>9.2f}{c['wait_s']:>8.2f}{c['total_s']:>9.3f}{c['score']:>7.3f}"
        )
    return "\n".join(lines)
