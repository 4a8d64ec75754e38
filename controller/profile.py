"""The calibrated policy file: step costs of a rig, acceptance of each task, for one fingerprint."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trt_mtp.build.variant import MAX_DRAFT_LENGTH
from trt_mtp.controller.acceptance import DECAY_RATIO
from trt_mtp.controller.calibration import Calibration, cells_table
from trt_mtp.controller.context_cost import NO_CONTEXT, ContextCost
from trt_mtp.controller.cost import UNKNOWN_RATIO, Curve, StepCost
from trt_mtp.controller.position_counts import PositionCounts
from trt_mtp.controller.tasks import TASKS
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError
from trt_mtp.files import nearest, read_json, to_compact_json, write_atomic

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, lt=1)]

# First-draft acceptance p by task, of Qwen's MTP heads of the 27B class with thinking off; medians
# over published series, see controller/data/SOURCES.md. A profile's own values replace them.
PUBLISHED_ACCEPTANCE = {
    "coding": 0.92,
    "math": 0.91,
    "reasoning": 0.84,
    "stem": 0.82,
    "humanities": 0.78,
    "qa": 0.82,
    "rag": 0.90,
    "summarization": 0.86,
    "multilingual": 0.84,
    "writing": 0.68,
    "roleplay": 0.70,
    "structured_output": 0.96,
    "tool_call": 0.92,
}
# R of a composite of published rigs, for a dense model of 27B. At one request: llama.cpp on an RTX
# 5090 (sudoingX/qwen38-mtp). At 2, 4 and 8: risen about as vLLM's on an RTX 3090 (R(3) of 1.28,
# 1.22, 1.40, 1.84). Published loads end there; at 128 stands the compute-bound limit, K + 1.
PUBLISHED_RATIOS = {
    1: {1: 1.22, 2: 1.22, 4: 1.27, 8: 1.45, 128: 2.0},
    2: {1: 1.34, 2: 1.36, 4: 1.48, 8: 1.80, 128: 3.0},
    3: {1: 1.52, 2: 1.54, 4: 1.72, 8: 2.20, 128: 4.0},
    5: {1: 1.85, 2: 1.90, 4: 2.20, 8: 3.00, 128: 6.0},
}
MAX_DIFFERING = 4  # parts of a fingerprint that a sentence names
BANDS = ("greedy", "low", "high")  # of temperature
MAX_POSTERIOR_STEPS = 500.0  # effective steps that a profile's posterior counts as
MEASURED_RATIO = 0.05  # SD of the error of log R(3, B) of a calibrated profile's table


class ContextPrice(BaseModel):
    """What the tokens in the caches add to a step, see controller/context_cost.py."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of a request, in the tables
    plain_s: Annotated[float, Field(ge=0, le=1)]  # seconds per token in flight
    draft_s: Annotated[float, Field(ge=0, le=1)]  # the same, more per draft


class Profile(BaseModel):
    """The numbers that a policy starts from.

    `plain_step_s` maps batch to seconds of a step at draft length 0; `step_ratio` maps draft
    length to R by batch; `acceptance` maps tasks to the chance that a first draft is accepted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    fingerprint: str = ""  # what the numbers were measured on; empty fits anything
    shared_device: bool = False  # the variants share one machine: load is the sum over all
    plain_step_s: dict[int, Positive] = Field(default={1: 0.02, 8: 0.024, 128: 0.06}, min_length=1)
    step_ratio: dict[int, dict[int, Positive]] = PUBLISHED_RATIOS
    # SD of the error of log R(3, B) of a table that was not calibrated here
    step_ratio_deviation: Annotated[float, Field(gt=0, le=1)] = UNKNOWN_RATIO
    context_cost: ContextPrice | None = None  # None: nobody knows
    prefill_tokens_per_s: Positive = 2000.0
    acceptance: dict[str, Probability] = PUBLISHED_ACCEPTANCE
    decay_ratio: Annotated[float, Field(gt=0, le=1)] = DECAY_RATIO
    exploration: Annotated[float, Field(ge=0, le=0.5)] = 0.02  # share of requests that probe
    hysteresis: Annotated[float, Field(ge=0, le=0.5)] = 0.01  # gain that a change of length needs
    notes: str = ""
    # what `trt-mtp calibrate` adds: the parts behind the fingerprint, effective counts by
    # `task/band/direct|thinking` as acceptance.py keeps them, and what was measured
    measured_on: dict[str, str] = {}
    posteriors: dict[str, dict[str, list[float]]] = {}
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _check(self) -> "Profile":
        for task in self.acceptance:
            if task not in TASKS:
                raise ValueError(f"acceptance.{task} is not a task{nearest(task, TASKS)}")
        for length, curve in self.step_ratio.items():
            if not 1 <= length <= MAX_DRAFT_LENGTH or not curve:
                raise ValueError(
                    f"step_ratio.{length}: lengths are 1 to {MAX_DRAFT_LENGTH}, with a batch each"
                )
        if any(
            batch < 1 for curve in (self.plain_step_s, *self.step_ratio.values()) for batch in curve
        ):
            raise ValueError("a batch is less than 1")
        for key, value in self.posteriors.items():
            _check_posterior(key, value)
        return self

    def step_cost(self) -> StepCost:
        """The cost table to start from."""
        return StepCost(
            _curve(self.plain_step_s),
            {k: _curve(curve) for k, curve in self.step_ratio.items()},
            MEASURED_RATIO if self.calibration else self.step_ratio_deviation,
            ContextCost(**self.context_cost.model_dump()) if self.context_cost else NO_CONTEXT,
        )

    def priors(self) -> dict[str, float]:
        """First-draft acceptance of every task; a published value if the profile has none."""
        return {**PUBLISHED_ACCEPTANCE, **self.acceptance}

    def learned(self) -> dict[str, Any]:
        """The posteriors as a peer's state, for `AcceptanceLearner.merge`.

        They count as MAX_POSTERIOR_STEPS at most, so that different traffic soon outweighs them.
        """
        counts: dict[str, PositionCounts] = {}
        for key, value in self.posteriors.items():
            own = PositionCounts.from_json(value)
            own.scale(min(1.0, MAX_POSTERIOR_STEPS / max(own.trials[0], 1.0)))
            task = f"task/{key.partition('/')[0]}"
            counts[f"cell/{key}"] = own
            counts[task] = PositionCounts.total([counts[task], own]) if task in counts else own
        if not counts:
            return {"replicas": {}}
        created = self.calibration.created if self.calibration else "2000-01-01T00:00:00+00:00"
        version = int(datetime.fromisoformat(created).timestamp())
        kept = {scope: own.to_json() for scope, own in counts.items()}
        return {"replicas": {"profile": {"version": version, "counts": kept}}}


def _check_posterior(key: str, value: Any) -> None:
    task, _, rest = key.partition("/")
    band, _, mode = rest.partition("/")
    if task not in TASKS or band not in BANDS or mode not in ("direct", "thinking"):
        raise ValueError(f"posteriors.{key}: expected task/band/direct or task/band/thinking")
    try:
        PositionCounts.from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"posteriors.{key}: {error}") from None


def _curve(values: dict[int, float]) -> Curve:
    return tuple(sorted(values.items()))


def read_profile(path: Path, fingerprint: str = "") -> Profile:
    """The profile in `path`.

    Raises InputError if it is missing, malformed, has an unknown key, or was measured on
    something else than `fingerprint`.
    """
    profile = parse_profile(read_json(path), str(path))
    require_measured_on(profile, str(path), {fingerprint: {}}, "this is")
    return profile


def differing_parts(measured: Mapping[str, str], other: Mapping[str, str]) -> str:
    """What a profile was measured on and what is there instead, to append to a sentence.

    >>> differing_parts({"device": "H100", "engine": "cpu"}, {"device": "H200", "engine": "cpu"})
    ' (device is H200, not H100)'
    """
    parts = [
        f"{key} is {other.get(key, 'unknown'):.40}, not {measured.get(key, 'unknown'):.40}"
        for key in sorted({*measured, *other})
        if measured.get(key) != other.get(key)
    ]
    if len(parts) > MAX_DIFFERING:
        parts[MAX_DIFFERING:] = [f"{len(parts) - MAX_DIFFERING} more"]
    return f" ({'; '.join(parts)})" if parts and measured and other else ""


def require_measured_on(
    profile: Profile, where: str, hosted: Mapping[str, Mapping[str, str]], whose: str
) -> None:
    """Raise InputError if the profile from `where` was measured on none of the `hosted` variants.

    `hosted` maps fingerprints to their parts; `whose` begins the sentence about them, such as
    "Triton hosts". A profile or deployment without a fingerprint fits anything.
    """
    known = {fingerprint: parts for fingerprint, parts in hosted.items() if fingerprint}
    if profile.fingerprint and known and profile.fingerprint not in known:
        if "server" in profile.measured_on:  # of `calibrate --openai`
            raise InputError(
                f"{where} was measured on a server of OpenAI's API "
                f"({profile.measured_on['server']:.40}), not on variants of Triton: measure these "
                f"with `trt-mtp calibrate --url`"
            )
        parts = differing_parts(profile.measured_on, next(iter(known.values())))
        raise InputError(
            f"{where} was measured on {profile.fingerprint}, and {whose} "
            f"{', '.join(sorted(known))}{parts}: calibrate again, or remove its fingerprint to use "
            f"it all the same"
        )


def parse_profile(value: Any, where: str) -> Profile:
    """The profile in a JSON value that came from `where`; raises InputError."""
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a profile: expected a JSON object")
    try:
        return Profile.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error, Profile.model_fields)}") from None


def write_profile(path: Path, profile: Profile) -> None:
    """Write `profile` atomically; `read_profile` gives it back."""
    write_atomic(path, profile_json(profile))


def profile_json(profile: Profile) -> str:
    """`profile` as its file: cells as a table, so that hundreds of them stay small.

    A published R that stands in for one that nobody measured is left out.
    """
    value = profile.model_dump(mode="json", exclude={"step_ratio"} - profile.model_fields_set)
    if value["calibration"] is not None:
        value["calibration"]["cells"] = cells_table(value["calibration"]["cells"])
    return to_compact_json(value)
