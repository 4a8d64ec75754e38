"""Profiles of one deployment joined, and the advice that follows from all their cells.

The answers behind the cells are gone, so the two factors are fitted to the cells themselves: a
cell's log R is log AL less the log of its speedup, known as well as its interval is narrow;
acceptance is what a gateway that starts with the profile expects.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner, temperature_band
from trt_mtp.controller.calibrate.advice import (
    crossovers,
    prediction_quality,
    recommendation,
    step_ratios,
)
from trt_mtp.controller.calibrate.draws import FAILED, NUM_DRAWS, Array
from trt_mtp.controller.calibrate.fit import Estimates, combined
from trt_mtp.controller.calibrate.results import Batch
from trt_mtp.controller.calibration import Calibration
from trt_mtp.controller.cells import prediction_errors
from trt_mtp.controller.position_counts import MAX_POSITIONS, PositionCounts
from trt_mtp.controller.profile import Profile, differing_parts
from trt_mtp.errors import InputError

NORMAL_95 = 1.96  # half of an interval in standard deviations
WIDEST = 0.3  # standard deviation of a logarithm: cells of fewer answers say nothing


def merged(profiles: Sequence[Profile]) -> Profile:
    """All profiles joined: counts are pooled; of each cell, the latest run's is kept.

    R, crossovers and advice are those of all cells. Raises InputError if two are of different
    deployments.
    """
    ordered = sorted(profiles, key=_created)
    for other in ordered[1:]:
        _require_same(ordered[0], other)
    calibrations = [p.calibration for p in ordered if p.calibration is not None]
    plain = {load: step_s for p in ordered for load, step_s in p.plain_step_s.items()}
    joined = ordered[-1].model_copy(
        update={
            "plain_step_s": dict(sorted(plain.items())),
            "step_ratio": _ratios([p.step_ratio for p in ordered]),
            "acceptance": {task: p for one in ordered for task, p in one.acceptance.items()},
            "posteriors": _pooled([p.posteriors for p in ordered]),
            "calibration": _joined(calibrations) if calibrations else None,
        }
    )
    return _advised(joined, calibrations)


def _created(profile: Profile) -> str:
    return profile.calibration.created if profile.calibration else ""


def _require_same(one: Profile, other: Profile) -> None:
    if one.fingerprint != other.fingerprint:
        parts = differing_parts(one.measured_on, other.measured_on)
        raise InputError(
            f"the profiles are of {one.fingerprint or 'no fingerprint'} and "
            f"{other.fingerprint or 'none'}{parts}: only profiles of one deployment can be merged"
        )


def _ratios(tables: Sequence[Mapping[int, Mapping[int, float]]]) -> dict[int, dict[int, float]]:
    curves: dict[int, dict[int, float]] = defaultdict(dict)
    for length, curve in (pair for table in tables for pair in table.items()):
        curves[length] |= curve
    return {length: dict(sorted(curve.items())) for length, curve in sorted(curves.items())}


def _pooled(
    parts: Sequence[Mapping[str, dict[str, list[float]]]],
) -> dict[str, dict[str, list[float]]]:
    return {
        key: PositionCounts.total(
            PositionCounts.from_json(p[key]) for p in parts if key in p
        ).to_json()
        for key in sorted({key for part in parts for key in part})
    }


def _joined(parts: Sequence[Calibration]) -> Calibration:
    """The latest calibration with the cells of all, before new conclusions."""
    cells = {cell.key: cell for part in parts for cell in part.cells}
    unmeasured = {place for part in parts for place in part.unmeasured} - set(cells)
    return parts[-1].model_copy(
        update={
            "tasks": tuple(dict.fromkeys(task for part in parts for task in part.tasks)),
            "draft_lengths": tuple(sorted({k for part in parts for k in part.draft_lengths})),
            "concurrencies": tuple(sorted({c for part in parts for c in part.concurrencies})),
            "prompts": ", ".join(dict.fromkeys(part.prompts for part in parts)),
            "duration_s": sum(part.duration_s for part in parts),
            "cells": tuple(cells[place] for place in sorted(cells)),
            "unmeasured": tuple(sorted(unmeasured)),
        }
    )


def _advised(joined: Profile, parts: Sequence[Calibration]) -> Profile:
    """The profile with new conclusions from its cells; unchanged if nothing can be compared."""
    calibration = joined.calibration
    if calibration is None:
        return joined
    estimates = _estimates(joined, calibration, parts)
    if not estimates.speedups:
        return joined
    return joined.model_copy(
        update={
            "step_ratio": step_ratios(estimates),
            "calibration": calibration.model_copy(
                update={
                    "prediction": prediction_quality(prediction_errors(calibration)),
                    "crossovers": tuple(crossovers(estimates)),
                    "recommendation": recommendation(estimates),
                }
            ),
        }
    )


def _estimates(
    joined: Profile, calibration: Calibration, parts: Sequence[Calibration]
) -> Estimates:
    rng = np.random.default_rng(calibration.seed)
    lengths, failed = calibration.draft_lengths, defaultdict(set)
    for cell in calibration.cells:
        if cell.ended == "failed":
            failed[cell.task].add(cell.draft_length)
    learner = AcceptanceLearner(joined.priors(), decay_ratio=joined.decay_ratio)
    learner.merge(joined.learned())
    band = temperature_band(calibration.temperature)
    acceptance = {}
    for task in dict.fromkeys(cell.task for cell in calibration.cells if cell.speedup):
        draws = _acceptance(learner, AcceptanceKey(task, band, False), lengths, rng)
        draws[:, [k in failed[task] - {0} for k in lengths]] = FAILED
        acceptance[task] = draws
    batches = [batch for part in parts for batch in _batches(part)]
    return combined(acceptance, batches, lengths, calibration.concurrencies, rng)


def _acceptance(
    learner: AcceptanceLearner, key: AcceptanceKey, lengths: Sequence[int], rng: np.random.Generator
) -> Array:
    """log AL by draft length; the errors of all lengths go together."""
    known, at = learner.estimate(key), [min(k, MAX_POSITIONS) for k in lengths]
    mean, deviation = np.array(known.lengths)[at], np.array(known.deviations)[at]
    off = np.concatenate([[0.0], rng.normal(size=NUM_DRAWS)])
    return np.asarray(np.log(np.maximum(mean + off[:, None] * deviation, 1.0)))


def _batches(calibration: Calibration) -> Iterator[Batch]:
    """For each task and load a batch of two values a length, as far apart as its interval says."""
    ratios_of_cells: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(dict)
    for cell in calibration.cells:
        if cell.speedup is None or not cell.num_steps or cell.speedup.low <= 0:
            continue
        error = math.log(cell.speedup.high / cell.speedup.low) / 2 / NORMAL_95
        if error < WIDEST:
            ratio = math.log(cell.acceptance_length / cell.speedup.value)
            values = [ratio - error, ratio + error]
            ratios_of_cells[cell.task, cell.concurrency][cell.draft_length] = values
    for (task, load), ratios in ratios_of_cells.items():
        yield Batch(task, load, ratios)
