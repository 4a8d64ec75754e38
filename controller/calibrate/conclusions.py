"""The profile of a calibration: both factors, every cell, and the advice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner, temperature_band
from trt_mtp.controller.calibrate.advice import (
    crossovers,
    prediction_quality,
    recommendation,
    step_ratios,
)
from trt_mtp.controller.calibrate.confidence import (
    interval,
    percentiles_ms,
    quantile,
    ratio_interval,
    rounded,
)
from trt_mtp.controller.calibrate.context_fit import context_price, missing_price
from trt_mtp.controller.calibrate.fit import Estimates, estimate
from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.plan import ended
from trt_mtp.controller.calibrate.results import Results, Settings
from trt_mtp.controller.calibration import Calibration, Cell, CellKey, Interval
from trt_mtp.controller.cells import prediction_errors
from trt_mtp.controller.position_counts import trials
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile

FEWEST_FOR_PREFILL = 8  # answers
DEFAULT_PREFILL_TOKENS_PER_S = 2000.0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The facts about a run in its profile, besides its results."""

    fingerprint: str
    measured_on: Mapping[str, str]
    environment: Mapping[str, str]
    created: str
    prompts: str
    temperature: float
    max_tokens: int
    shared_device: bool
    is_settled: bool  # measured until no choice was open; false if the budget ended it


def profile_of(settings: Settings, results: Results, run_info: RunInfo) -> Profile:
    """The profile; cells without a measurement are predicted, or keep published values."""
    estimates = estimate(settings, results)
    plain = {load: results.plain_steps(load) for load in settings.concurrencies}
    learner = _learn(settings, results, run_info.temperature)
    values = {
        "fingerprint": run_info.fingerprint,
        "measured_on": dict(run_info.measured_on),
        "shared_device": run_info.shared_device,
        "plain_step_s": {b: rounded(quantile(sorted(s), 0.5)) for b, s in plain.items() if s},
        "prefill_tokens_per_s": _prefill_rate(results, settings.concurrencies[0]),
        "acceptance": {task: _first_acceptance(results, task) for task in estimates.acceptance},
        "posteriors": {
            # of a gateway that starts: an alarm within a calibration is not its own
            scope.removeprefix("cell/"): {
                name: [rounded(value) for value in column]
                for name, column in replace(counts, epoch=0, counted=0.0).to_json().items()
            }
            for scope, counts in sorted(learner.own.items())
            if scope.startswith("cell/")
        },
        "calibration": _calibration(settings, results, estimates, run_info),
    }
    price = context_price(results)
    if price is not None:
        values["context_cost"] = price
    if estimates.ratios:  # else published ones stand in, as for acceptance
        values["step_ratio"] = step_ratios(estimates)
    return Profile.model_validate(values)


def _calibration(
    settings: Settings, results: Results, estimates: Estimates, run_info: RunInfo
) -> Calibration:
    keys = [key for key in settings.cells() if results.answers[key] or key in results.errors]
    cells = tuple(_cell(settings, results, run_info, key) for key in keys)
    missing = missing_price(settings, results)
    calibration = Calibration(
        created=run_info.created,
        seed=settings.seed,
        prompts=run_info.prompts,
        temperature=run_info.temperature,
        max_tokens=run_info.max_tokens,
        duration_s=rounded(results.elapsed_s),
        tasks=settings.tasks,
        draft_lengths=settings.draft_lengths,
        concurrencies=settings.concurrencies,
        environment={
            **run_info.environment,
            "disturbed_answers": str(results.num_disturbed),
            **({"context_not_measured": missing} if missing else {}),
        },
        cells=cells,
        unmeasured=tuple(key for key in settings.cells() if key not in keys),
        crossovers=tuple(crossovers(estimates)),
        recommendation=recommendation(estimates) if estimates.speedups else None,
    )
    prediction = prediction_quality(prediction_errors(calibration))
    return calibration.model_copy(update={"prediction": prediction})


def _cell(settings: Settings, results: Results, run_info: RunInfo, key: CellKey) -> Cell:
    answers = results.answers[key]
    length = key.draft_length
    speedups = results.speedups.get(key)
    return Cell(
        task=key.task,
        draft_length=length,
        concurrency=key.concurrency,
        num_requests=len(answers),
        num_output_tokens=sum(answer.num_output_tokens for answer in answers),
        num_steps=sum(answer.num_steps for answer in answers),
        accepted_per_position=accepted_steps(answers, length),
        ttft_ms=percentiles_ms([answer.ttft_s for answer in answers]),
        tpot_ms=percentiles_ms([answer.tpot_s for answer in answers if answer.tpot_s > 0]),
        itl_ms=percentiles_ms([gap for answer in answers for gap in answer.itl_s]),
        tokens_per_s=_tokens_per_s(answers, key.concurrency),
        speedup=ratio_interval(speedups, results.effect(key.concurrency)) if speedups else None,
        ended=ended(settings, results, key) or ("settled" if run_info.is_settled else "budget"),
    )


def accepted_steps(answers: Sequence[Answer], draft_length: int) -> tuple[int, ...]:
    """Steps whose first j + 1 drafts were accepted, [K], as if none had been cut.

    In a step that an answer's end cut, later drafts were not seen to fail. So each draft's
    acceptance is that among the steps that showed it, and their product is counted on all steps.
    """
    seen, tried = [0.0] * draft_length, [0.0] * draft_length
    for answer in answers:
        accepted = answer.accepted_per_position[:draft_length]
        shown = trials(answer.num_steps, accepted, answer.cut_after)
        for j, (count, num_tried) in enumerate(zip(accepted, shown, strict=True)):
            seen[j] += count
            tried[j] += num_tried
    survived, found = float(sum(answer.num_steps for answer in answers)), []
    for j in range(draft_length):
        survived *= seen[j] / tried[j] if tried[j] else 0.0
        found.append(round(survived))
    return tuple(found)


def _tokens_per_s(answers: Sequence[Answer], concurrency: int) -> Interval:
    """Tokens per second of `concurrency` requests: that many times one request's."""
    if not answers:
        return Interval(0.0, 0.0, 0.0)
    seconds = [answer.ttft_s + answer.decode_s for answer in answers]
    rate = concurrency * sum(answer.num_output_tokens for answer in answers) / sum(seconds)
    each = ratio_interval(
        [math.log(a.num_output_tokens / s) for a, s in zip(answers, seconds, strict=True)]
    )
    return interval(rate, rate * each.low / each.value, rate * each.high / each.value)


def _first_acceptance(results: Results, task: str) -> float:
    """The chance that a first draft is accepted; Laplace's rule keeps it off 0 and 1."""
    parts = [p for key, own in results.survival.items() if key.task == task for p in own.values()]
    accepted, steps = sum(p.accepted[0] for p in parts), sum(p.steps[0] for p in parts)
    return rounded((accepted + 1) / (steps + 2))


def _learn(settings: Settings, results: Results, temperature: float) -> AcceptanceLearner:
    """A learner that has seen every drafted answer, like a gateway's."""
    learner = AcceptanceLearner(PUBLISHED_ACCEPTANCE)
    for key in settings.cells():
        if key.draft_length:
            share = {AcceptanceKey(key.task, temperature_band(temperature), False): 1.0}
            for answer in results.answers[key]:
                learner.update(
                    share, answer.num_steps, answer.accepted_per_position, answer.cut_after
                )
    return learner


def _prefill_rate(results: Results, concurrency: int) -> float:
    """Prompt tokens per second: the slope of TTFT over prompt tokens, by least squares."""
    points = [
        (answer.num_input_tokens, answer.ttft_s)
        for key, answers in results.answers.items()
        if key.concurrency == concurrency
        for answer in answers
        if answer.num_input_tokens
    ]
    if len(points) < FEWEST_FOR_PREFILL:
        return DEFAULT_PREFILL_TOKENS_PER_S
    tokens, seconds = np.array(points).T
    spread = float(np.var(tokens))
    slope = float(np.mean((tokens - tokens.mean()) * seconds)) / spread if spread else 0.0
    return rounded(1 / slope if slope > 0 else float(tokens.sum() / seconds.sum()))
