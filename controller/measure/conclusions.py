"""The profile that a calibration ends with: both factors, every cell, and what to do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner, temperature_band
from trt_mtp.controller.calibration import Calibration, Cell, Interval
from trt_mtp.controller.measure.advice import (
    crossovers,
    prediction_quality,
    recommendation,
    step_ratios,
)
from trt_mtp.controller.measure.confidence import (
    interval,
    percentiles_ms,
    quantile,
    ratio_interval,
    rounded,
)
from trt_mtp.controller.measure.fit import Estimates, estimate, prediction_errors
from trt_mtp.controller.measure.load_client import Answer
from trt_mtp.controller.measure.plan import ended
from trt_mtp.controller.measure.results import CellKey, Results, Settings
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile

FEWEST_FOR_PREFILL = 8  # answers
DEFAULT_PREFILL_TOKENS_PER_S = 2000.0


@dataclass(frozen=True, slots=True)
class About:
    """What a profile says of the run besides its numbers."""

    fingerprint: str
    measured_on: Mapping[str, str]
    environment: Mapping[str, str]
    created: str
    prompts: str
    temperature: float
    max_tokens: int
    shared_device: bool
    is_settled: bool  # measured until no choice was open; false where the budget ended it


def profile_of(settings: Settings, results: Results, about: About) -> Profile:
    """The profile; what was not measured is predicted, or left to published values."""
    found = estimate(settings, results)
    plain = {load: results.plain_steps(load) for load in settings.concurrencies}
    learner = _learn(settings, results, about.temperature)
    values = {
        "fingerprint": about.fingerprint,
        "measured_on": dict(about.measured_on),
        "shared_device": about.shared_device,
        "plain_step_s": {b: rounded(quantile(sorted(s), 0.5)) for b, s in plain.items() if s},
        "step_ratio": step_ratios(found),
        "prefill_tokens_per_s": _prefill_rate(results, settings.concurrencies[0]),
        "acceptance": {task: _first_acceptance(results, task) for task in found.acceptance},
        "posteriors": {
            scope.removeprefix("cell/"): {
                name: [rounded(value) for value in column]
                for name, column in counts.to_json().items()
            }
            for scope, counts in sorted(learner.own.items())
            if scope.startswith("cell/")
        },
        "calibration": _calibration(settings, results, found, about),
    }
    return Profile.model_validate(values)


def _calibration(
    settings: Settings, results: Results, found: Estimates, about: About
) -> Calibration:
    keys = [key for key in settings.cells() if results.answers[key] or key in results.errors]
    cells = tuple(_cell(settings, results, about, key) for key in keys)
    return Calibration(
        created=about.created,
        seed=settings.seed,
        prompts=about.prompts,
        temperature=about.temperature,
        max_tokens=about.max_tokens,
        duration_s=rounded(results.elapsed_s),
        tasks=settings.tasks,
        draft_lengths=settings.draft_lengths,
        concurrencies=settings.concurrencies,
        environment={**about.environment, "disturbed_answers": str(results.num_disturbed)},
        cells=cells,
        unmeasured=tuple(key for key in settings.cells() if key not in keys),
        prediction=prediction_quality(prediction_errors(settings, results)),
        crossovers=tuple(crossovers(found)),
        recommendation=recommendation(found) if found.speedups else None,
    )


def _cell(settings: Settings, results: Results, about: About, key: CellKey) -> Cell:
    answers = results.answers[key]
    length = key.draft_length
    accepted = [0] * length
    for answer in answers:
        for position, count in enumerate(answer.accepted_per_position[:length]):
            accepted[position] += count
    speedups = results.speedups.get(key)
    return Cell(
        task=key.task,
        draft_length=length,
        concurrency=key.concurrency,
        num_requests=len(answers),
        num_output_tokens=sum(answer.num_output_tokens for answer in answers),
        num_steps=sum(answer.num_steps for answer in answers),
        accepted_per_position=tuple(accepted),
        ttft_ms=percentiles_ms([answer.ttft_s for answer in answers]),
        tpot_ms=percentiles_ms([answer.tpot_s for answer in answers if answer.tpot_s > 0]),
        itl_ms=percentiles_ms([gap for answer in answers for gap in answer.itl_s]),
        tokens_per_s=_tokens_per_s(answers, key.concurrency),
        speedup=ratio_interval(speedups, results.effect(key.concurrency)) if speedups else None,
        ended=ended(settings, results, key) or ("settled" if about.is_settled else "budget"),
    )


def _tokens_per_s(answers: Sequence[Answer], concurrency: int) -> Interval:
    """Of `concurrency` requests together: so many times one request's tokens a second."""
    if not answers:
        return Interval(0.0, 0.0, 0.0)
    seconds = [answer.ttft_s + answer.decode_s for answer in answers]
    rate = concurrency * sum(answer.num_output_tokens for answer in answers) / sum(seconds)
    each = ratio_interval(
        [math.log(a.num_output_tokens / s) for a, s in zip(answers, seconds, strict=True)]
    )
    return interval(rate, rate * each.low / each.value, rate * each.high / each.value)


def _first_acceptance(results: Results, task: str) -> float:
    """p, the chance that a first draft is accepted; Laplace's rule keeps it off 0 and 1."""
    parts = [p for key, own in results.survival.items() if key.task == task for p in own.values()]
    accepted, steps = sum(p.accepted[0] for p in parts), sum(p.steps[0] for p in parts)
    return rounded((accepted + 1) / (steps + 2))


def _learn(settings: Settings, results: Results, temperature: float) -> AcceptanceLearner:
    """A learner that saw every drafted answer, as a gateway would have."""
    learner = AcceptanceLearner(PUBLISHED_ACCEPTANCE)
    for key in settings.cells():
        if key.draft_length:
            share = {AcceptanceKey(key.task, temperature_band(temperature), False): 1.0}
            for answer in results.answers[key]:
                learner.update(share, answer.num_steps, answer.accepted_per_position)
    return learner


def _prefill_rate(results: Results, concurrency: int) -> float:
    """Prompt tokens a second: how TTFT rises with the prompt, by least squares."""
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
