"""The results of `trt-mtp bench` as files: JSON, a table, and a line per request."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from trt_mtp.controller.calibrate.bench import LATENCIES, Target, TaskAnswers, TaskResult
from trt_mtp.controller.calibrate.confidence import rounded
from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.prompt_sets import PromptSet
from trt_mtp.controller.calibration import Percentiles

SCHEMA_VERSION = 1


def report(
    target: Target, prompts: PromptSet, concurrency: int, results: Sequence[TaskResult]
) -> dict[str, Any]:
    """The output of `trt-mtp bench --json`; null where the server tells nothing of its drafts."""
    *tasks, every = [line.as_json() for line in results]
    lengths = {line["task"]: line["Category_AL"] for line in tasks}
    return {
        "schema_version": SCHEMA_VERSION,
        "url": target.url,
        "model": target.model,
        "prompts": prompts.label,
        "concurrency": concurrency,
        "tasks": tasks,
        "all": every,
        "Category_AL": lengths,
        "Average_AL": every["Category_AL"],
        "notes": list(target.notes),
    }


def to_csv(results: Sequence[TaskResult]) -> str:
    """One line per task; joint acceptance has one column per number of tokens."""
    deepest = max(len(line.joint) for line in results)
    rates = [f"Joint_Acceptance_Rate_{n}" for n in range(1, deepest + 1)]
    latencies = [f"{name}_{p}_ms" for name in LATENCIES for p in Percentiles._fields]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["task", "request_count", "error_request_count", "total_output_tokens"]
    head += ["output_token_throughput", *latencies, "Category_AL", "acceptance_rate", *rates]
    writer.writerow(head)
    for line in results:
        values: list[Any] = [line.task, line.request_count, line.error_request_count]
        values += [line.output_tokens, line.output_token_throughput]
        values += [value for name in LATENCIES for value in line.latencies[name]]
        values += [line.category_al, line.acceptance_rate] if line.joint else ["", ""]
        values += line.joint
        writer.writerow(values + [""] * (deepest - len(line.joint)))
    return out.getvalue()


def to_records(model: str, concurrency: int, measured: Sequence[TaskAnswers]) -> str:
    """A JSON line for each request, in the form of AIPerf's profile_export.jsonl.

    That is metadata, metrics with their units, and an error or null (docs/tutorials of
    ai-dynamo/aiperf, "Working with Profile Exports"); Request_AL is specdec_bench's. `prompt` is
    the place among the task's prompts.
    """
    lines: list[str] = []
    for one in measured:
        for prompt, answer in enumerate(one.answers):
            metadata = {
                "session_num": len(lines),
                "benchmark_phase": "profiling",
                "model": model,
                "concurrency": concurrency,
                "task": one.task,
                "prompt": prompt,
            }
            record = {
                "metadata": metadata,
                "metrics": {} if answer.error else dict(_metrics(answer)),
                "error": {"message": answer.error} if answer.error else None,
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def _metrics(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "input_sequence_length", _value(answer.num_input_tokens, "tokens")
    yield "output_sequence_length", _value(answer.num_output_tokens, "tokens")
    yield "time_to_first_token", _value(_ms(answer.ttft_s), "ms")
    yield "request_latency", _value(_ms(answer.ttft_s + answer.decode_s), "ms")
    if answer.tpot_s > 0:
        yield "inter_token_latency", _value(_ms(answer.tpot_s), "ms")
        rate = rounded(1 / answer.tpot_s)
        yield "output_token_throughput_per_user", _value(rate, "tokens/sec/user")
    yield "inter_chunk_latency", _value([_ms(gap) for gap in answer.itl_s], "ms")
    yield "num_steps", _value(answer.num_steps, "steps")
    if answer.num_steps:
        accepted = answer.accepted_per_position
        yield "Request_AL", _value(rounded(1 + sum(accepted) / answer.num_steps), "tokens")
        yield "accepted_per_position", _value(list(accepted), "steps")


def _value(value: Any, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit}


def _ms(seconds: float) -> float:
    return rounded(1e3 * seconds)
