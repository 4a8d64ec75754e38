"""The profile that a calibration ends with: both factors, every cell, and what to do."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner, temperature_band
from trt_mtp.controller.calibration import (
    BestLength,
    Calibration,
    Cell,
    Crossover,
    Interval,
    PredictionQuality,
    Recommendation,
)
from trt_mtp.controller.measure.confidence import (
    interval,
    percentiles_ms,
    quantile,
    ratio_interval,
    rounded,
)
from trt_mtp.controller.measure.fit import (
    Array,
    Estimates,
    estimate,
    likely_losses,
    prediction_errors,
)
from trt_mtp.controller.measure.load_client import Answer
from trt_mtp.controller.measure.plan import ended
from trt_mtp.controller.measure.results import CellKey, Results, Settings
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile

TIE = 0.01  # a shorter draft length that gives away no more wins within the uncertainty
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
    measured = [task for task in settings.tasks if any(t == task for t, _ in found.speedups)]
    ratios = {
        str(length): {
            str(load): rounded(float(curve[at])) for load, curve in sorted(found.ratios.items())
        }
        for at, length in enumerate(settings.draft_lengths)
        if length > 0
    }
    plain = {load: results.plain_steps(load) for load in settings.concurrencies}
    learner = _learn(settings, results, about.temperature)
    values = {
        "fingerprint": about.fingerprint,
        "measured_on": dict(about.measured_on),
        "shared_device": about.shared_device,
        "plain_step_s": {b: rounded(quantile(sorted(s), 0.5)) for b, s in plain.items() if s},
        "step_ratio": ratios,
        "prefill_tokens_per_s": _prefill_rate(results, settings.concurrencies[0]),
        "acceptance": {task: _first_acceptance(results, task) for task in measured},
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
    errors = sorted(abs(math.expm1(error)) for error in prediction_errors(settings, results))
    prediction = None
    if len(errors) >= 3:
        prediction = PredictionQuality(
            num_cells=len(errors),
            median_abs_error=rounded(quantile(errors, 0.5)),
            p90_abs_error=rounded(quantile(errors, 0.9)),
        )
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
        prediction=prediction,
        crossovers=tuple(_crossovers(settings, found)),
        recommendation=_recommendation(settings, found) if found.speedups else None,
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


def _crossovers(settings: Settings, found: Estimates) -> Iterator[Crossover]:
    """Where the log of the speedup falls through 0, linear in the log of the concurrency."""
    loads = settings.concurrencies
    for task in dict.fromkeys(task for task, _ in found.speedups):
        for at, length in enumerate(settings.draft_lengths):
            if length:
                logs = [float(found.speedups[task, load][0, at]) for load in loads]
                yield Crossover(task=task, draft_length=length, concurrency=crossing(loads, logs))


def crossing(loads: Sequence[int], logs: Sequence[float]) -> float | None:
    """The first load at which `logs` is below 0; None where it never is.

    >>> crossing((1, 4), (0.1, -0.1))
    2.0
    """
    for at, value in enumerate(logs):
        if value < 0:
            if at == 0:
                return float(loads[0])
            before, low, high = logs[at - 1], math.log(loads[at - 1]), math.log(loads[at])
            return rounded(math.exp(low + (high - low) * before / (before - value)))
    return None


def _recommendation(settings: Settings, found: Estimates) -> Recommendation:
    lengths, lowest = settings.draft_lengths, settings.concurrencies[0]
    chosen = {pair: best_index(draws) for pair, draws in found.speedups.items()}
    times = _mean_times([draws for (_, load), draws in found.speedups.items() if load == lowest])
    single = best_index(-np.log(times))
    static_times = _mean_times(list(found.speedups.values()))[:, single]
    routed_times = np.mean([np.exp(-d[:, chosen[p]]) for p, d in found.speedups.items()], axis=0)
    routed = _interval_of(static_times / routed_times)
    return Recommendation(
        draft_length=lengths[single],
        speedup=_interval_of(1 / times[:, single]),
        routed_speedup=routed,
        hold_one=routed.value - 1 <= (routed.high - routed.low) / 2,
        best=tuple(
            BestLength(
                task=task,
                concurrency=load,
                draft_length=lengths[chosen[task, load]],
                speedup=_interval_of(np.exp(draws[:, chosen[task, load]])),
                ties=tuple(lengths[k] for k in _ties(draws, chosen[task, load])),
                may_lose=_may_lose(draws, chosen[task, load]),
            )
            for (task, load), draws in found.speedups.items()
        ),
    )


def best_index(draws: Array) -> int:
    """The place of the best length, or of a shorter one that ties and loses no more than TIE."""
    best = int(np.argmax(draws[0]))
    for at in _ties(draws, best):
        if at < best and draws[0, best] - draws[0, at] <= math.log1p(TIE):
            return at
    return best


def _ties(draws: Array, best: int) -> list[int]:
    """The places of the lengths that 2.5 % of the draws or more find better than `best`."""
    better = (draws[1:] > draws[1:, best : best + 1]).mean(axis=0)
    return [at for at, share in enumerate(better) if at != best and share >= 0.025]


def _may_lose(draws: Array, chosen: int) -> float:
    return rounded(math.expm1(float(likely_losses(draws, chosen).max())))


def _mean_times(found: Sequence[Array]) -> Array:
    """Time per token by draft length, in plain times, all of `found` alike."""
    return np.asarray(np.mean([np.exp(-draws) for draws in found], axis=0))


def _interval_of(values: Array) -> Interval:
    """Of the estimate in row 0 and the draws after it."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    value = float(values[0])
    return interval(value, min(float(low), value), max(float(high), value))


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
