"""Acceptance from a server's Prometheus counters before and after a batch.

vLLM and llama.cpp (`--metrics`) count steps and accepted drafts by position under the same names;
SGLang (`--enable-metrics`) counts verify calls; TensorRT-LLM counts drafts, at /prometheus/metrics
(its docs, and github.com/NVIDIA/TensorRT-LLM/pull/12636). Whatever else a server answers meanwhile
is counted as well.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.openai.speculation import shared_out, survival_of
from trt_mtp.controller.position_counts import MAX_POSITIONS

PATHS = {"tensorrt_llm": "/prometheus/metrics"}  # by kind of server; else:
PATH = "/metrics"
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? +(\d[\d.eE+-]*)(?: +-?\d+)?$")
_POSITION = re.compile(r'(?:^|,)position="(\d)"')
MAX_COUNT = 1e18  # that is believed
DRAFTS = "spec_decode_num_drafts_total"
ACCEPTED = "spec_decode_num_accepted_tokens_total"
ACCEPTED_AT = "spec_decode_num_accepted_tokens_per_pos_total"
TRTLLM_DRAFTED = "trtllm_spec_decode_num_draft_tokens_total"
TRTLLM_ACCEPTED = "trtllm_spec_decode_num_accepted_tokens_total"
SGLANG_STEPS = "sglang:spec_verify_calls_total"
SGLANG_TOKENS = "sglang:generation_tokens_total"
SGLANG_REQUESTS = "sglang:num_requests_total"

Counters = Mapping[str, float]  # by name, summed over labels; per position as NAME[0], NAME[1] …


def parse_counters(text: str) -> dict[str, float]:
    """The samples in Prometheus' text format; lines that aren't one are skipped."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line.strip())
        if not match:
            continue
        name = match[1].removeprefix("vllm:").removeprefix("llamacpp:")
        if name == ACCEPTED_AT:
            position = _POSITION.search(match[2] or "")
            name = f"{name}[{position[1]}]" if position else name
        try:
            value = float(match[3])
        except ValueError:
            continue
        if abs(value) < MAX_COUNT:
            sums[name] = sums.get(name, 0.0) + value
    return sums


def survival_between(
    before: Counters, after: Counters, draft_length: int | None
) -> tuple[float, ...]:
    """S_1 … S_K, the share of a batch's steps whose first j drafts were accepted.

    Empty if the counters don't tell. Where they have no positions, acceptance is taken to decay as
    usual.
    """
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    steps, accepted = _totals(grown, draft_length)
    if steps < 1 or accepted < 0:
        return ()
    positions = [grown.get(f"{ACCEPTED_AT}[{j}]", 0.0) for j in range(MAX_POSITIONS)]
    if any(positions):
        depth = draft_length or max(j for j, count in enumerate(positions, 1) if count)
        return tuple(min(count / steps, 1.0) for count in positions[:depth])
    mean = accepted / steps
    return survival_of(mean, min(draft_length or max(math.ceil(mean), 1), MAX_POSITIONS))


def _totals(grown: Counters, draft_length: int | None) -> tuple[float, int]:
    """Steps and drafts accepted; 0 steps where they can't be known."""
    if grown.get(DRAFTS, 0) > 0:
        return grown[DRAFTS], round(grown.get(ACCEPTED, 0.0))
    if grown.get(SGLANG_STEPS, 0) > 0:
        steps = grown[SGLANG_STEPS]
        rest = grown.get(SGLANG_TOKENS, 0.0) - grown.get(SGLANG_REQUESTS, 0.0) - steps
        return steps, max(round(rest), 0)
    if draft_length and grown.get(TRTLLM_DRAFTED, 0) > 0:
        return grown[TRTLLM_DRAFTED] / draft_length, round(grown.get(TRTLLM_ACCEPTED, 0.0))
    return 0.0, 0


def has_positions(counters: Counters) -> bool:
    """Whether accepted drafts are counted by position."""
    return any(name.startswith(f"{ACCEPTED_AT}[") for name in counters)


def with_positions(answer: Answer, survival: tuple[float, ...]) -> Answer:
    """An answer whose accepted drafts are shared out as those of its batch are."""
    total = sum(answer.accepted_per_position)
    positions = shared_out(total, answer.num_steps, survival)
    return replace(answer, accepted_per_position=positions)


def with_survival(answer: Answer, survival: tuple[float, ...]) -> Answer:
    """An answer whose steps nobody told, with those that its batch's mean acceptance gives."""
    rest = answer.num_output_tokens - 1
    if answer.error or rest <= 0:
        return answer
    steps = max(round(rest / (1 + sum(survival))), 1)
    accepted = tuple(round(steps * share) for share in survival)
    return replace(answer, num_steps=steps, accepted_per_position=accepted)
