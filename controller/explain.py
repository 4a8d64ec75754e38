"""The decision for a request and its reasons, without a server."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trt_mtp.controller.decision import Decision, VariantState
from trt_mtp.controller.decision_log import LogRecord, log_files, read_log
from trt_mtp.controller.json_request import features_from_json
from trt_mtp.controller.outcome import Outcome, outcome_problem
from trt_mtp.controller.policy import Policy
from trt_mtp.errors import InputError, TrtMtpError

MAX_TASKS = 5  # of a decision, for people
MAX_PROMPT_CHARS = 600  # the same


def idle_variants(
    lengths: Sequence[int], load: int = 0, context_tokens: float | None = None
) -> list[VariantState]:
    """Variants to choose from, with `load` requests in flight on each.

    `context_tokens` are those of each of the requests; None: as in the table of step times.
    """
    tokens = None if context_tokens is None else load * context_tokens
    slots = max(load + 1, 64)
    return [
        VariantState(f"k{k}", k, True, load, slots, 1 << 20, context_tokens=tokens) for k in lengths
    ]


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
    """One result per line, in order; a line that is not a request gives its `error` instead."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = request_value(line)
            decision, micros = explain_line(policy, value, variants)
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


def request_value(data: bytes) -> Any:
    """The JSON value of a request; replaces bytes that are not UTF-8. Raises InputError."""
    try:
        return json.loads(data.decode("utf-8", "replace").strip())
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"the request is not JSON ({at}: {error.msg})") from None
    except (ValueError, RecursionError):
        raise InputError(
            "the request is not JSON that can be read: it is nested too deeply, or has a number of "
            "thousands of digits"
        ) from None


def logged(log: Path, decision_id: str) -> dict[str, Any]:
    """A decision in a log or its rotated files, with its prompt and outcome.

    Raises InputError if there is none.
    """
    for file in log_files(log):
        for record in read_log(file):
            if record.decision.decision_id == decision_id:
                return _with_outcome(record)
    raise InputError(f"{log} has no decision {decision_id!r:.80}")


def _with_outcome(record: LogRecord) -> dict[str, Any]:
    outcome = asdict(record.outcome)
    return {**summary(record.decision), "prompt": record.prompt, "outcome": outcome}


def _tasks(probabilities: Mapping[str, float]) -> str:
    shown = [f"{task} {share:.0%}" for task, share in list(probabilities.items())[:MAX_TASKS]]
    left = len(probabilities) - len(shown)
    return ", ".join(shown) + (f", {left} others" if left else "")


def _excerpt(prompt: str) -> list[str]:
    """Both ends of a prompt, without control characters."""
    if len(prompt) > MAX_PROMPT_CHARS:
        half = MAX_PROMPT_CHARS // 2
        prompt = f"{prompt[:half]}\n…\n{prompt[-half:]}"
    lines = prompt.splitlines()
    return [
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in x) for x in lines
    ]


def _answer(outcome: Mapping[str, Any] | None) -> Iterator[str]:
    """The outcome of a logged decision, as text."""
    if outcome is not None:
        steps = 0 if outcome_problem(Outcome(**outcome)) else outcome["num_steps"]
        per_step = (
            f", {1 + outcome['num_accepted_draft_tokens'] / steps:.2f} a step" if steps else ""
        )
        yield (
            f"{outcome['num_output_tokens']} tokens in {outcome['duration_s']:.3f} s{per_step} "
            f"({outcome['finish_reason']})"
        )


def to_text(result: Mapping[str, Any]) -> str:
    """A decision for people."""
    prompt = _excerpt(result.get("prompt") or "")
    width = max(8, *(len(c["variant"]) for c in result["candidates"])) + 2
    lines = [
        *(f"{'' if i else 'prompt':<9}{line}" for i, line in enumerate(prompt)),
        f"task     {_tasks(result['task_probabilities'])}",
        f"variant  {result['variant']}",
        *(f"why      {reason}" for reason in result["reasons"]),
        *(f"answer   {text}" for text in _answer(result.get("outcome"))),
        "",
        f"{'variant':<{width}}{'K':>2}{'load':>6}{'context':>9}{'AL':>6}{'step ms':>9}{'wait s':>8}"
        f"{'prefill s':>11}{'total s':>9}{'score':>7}",
    ]
    for c in result["candidates"]:
        name = f"{c['variant']:<{width}}{c['draft_length']:>2}"
        if c["rejected"]:
            lines.append(f"{name}  {c['rejected']}")
            continue
        lines.append(
            f"{name}{c['load']:>6}{c['context_tokens']:>9.0f}{c['acceptance_length']:>6.2f}"
            f"{1000 * c['step_s']:>9.2f}{c['wait_s']:>8.2f}{c['prefill_s']:>11.2f}"
            f"{c['total_s']:>9.3f}{c['score']:>7.3f}"
        )
    return "\n".join(lines)
