"""A TensorRT-LLM variant's `draft_len_schedule` from a calibration.

The engine drafts one length for its whole batch, so that for a mix of tasks the length that takes
the least time per token wins: R(K, B) · sum over tasks of share / AL(task, K).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner, temperature_band
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.mix import parse_mix
from trt_mtp.controller.position_counts import MAX_POSITIONS
from trt_mtp.controller.profile import Profile, read_profile
from trt_mtp.errors import InputError


def schedules(
    path: Path,
    draft_lengths: Sequence[int],
    max_batch_size: int,
    mix: str | None = None,
) -> dict[int, dict[int, int]]:
    """For each draft length from 1 on, the best length up to it by the largest batch size.

    Without a `mix`, as parse_mix takes it, all measured tasks count alike. Raises InputError for a
    profile without R, and as parse_mix does.
    """
    profile = read_profile(path)
    if "step_ratio" not in profile.model_fields_set or not profile.step_ratio:
        raise InputError(
            f"{path} has no step_ratio, so it says nothing of load; make it with `trt-mtp "
            f"calibrate` on the server"
        )
    shares = _shares(profile, mix)
    inverse = inverse_lengths(profile, shares)
    return {
        length: best_schedule(profile.step_cost(), inverse, length, max_batch_size)
        for length in draft_lengths
        if length > 0
    }


def best_schedule(
    cost: StepCost, inverse: Sequence[float], draft_length: int, max_batch_size: int
) -> dict[int, int]:
    """The fastest length per token, by the largest batch that it holds for.

    `inverse[K]` is the mean of 1 / AL(K). Never 0: drafting that stops and resumes is accepted
    less and less. Of lengths as good the shorter wins.
    """
    schedule: dict[int, int] = {}
    last = 0
    for batch in range(max_batch_size, 0, -1):
        lengths = range(1, min(draft_length, MAX_POSITIONS) + 1)
        best = min(lengths, key=lambda k: (cost.ratio(k, batch) * inverse[k], k))
        if best != last:
            schedule[batch] = last = best
    return dict(sorted(schedule.items()))


def _shares(profile: Profile, mix: str | None) -> dict[str, float]:
    given = parse_mix(mix) if mix else dict.fromkeys(profile.acceptance, 1.0)
    total = sum(given.values())
    return {task: share / total for task, share in given.items()}


def inverse_lengths(profile: Profile, shares: Mapping[str, float]) -> list[float]:
    """The mean of 1 / AL(K) over tasks, by K, as a gateway that starts with `profile` expects."""
    learner = AcceptanceLearner(profile.priors(), decay_ratio=profile.decay_ratio)
    learner.merge(profile.learned())
    temperature = profile.calibration.temperature if profile.calibration else 0.0
    band = temperature_band(temperature)
    lengths = {task: learner.estimate(AcceptanceKey(task, band, False)).lengths for task in shares}
    return [
        sum(share / lengths[task][k] for task, share in shares.items())
        for k in range(MAX_POSITIONS + 1)
    ]
