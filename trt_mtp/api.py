"""The Python API: what notebooks and scripts need of profiles, decisions, logs and simulations.

The names in `__all__` stay as they are within a major version; those of other modules may change.

>>> decision = decide("Write a Rust function that reverses a list.", draft_lengths=(0, 1, 3, 5))
>>> decision.task, decision.draft_length
('coding', 5)
>>> busy = decide("Tell me a story about a lighthouse.", load=60)
>>> busy.task, busy.draft_length
('writing', 0)
>>> policy = Policy(load_profile())  # for many requests
>>> answers = ["Solve for x: 3x + 7 = 22", "Write a short poem about the sea in winter"]
>>> [decide(prompt, policy=policy).task for prompt in answers]
['math', 'writing']
>>> round(load_profile().step_cost().ratio(3, 8), 1)  # a step of K=3 at batch 8, in plain steps
2.2
>>> [result.policy for result in simulate({"coding": 1.0}, ["none", "learned"], num_requests=100)]
['none', 'learned']
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from trt_mtp.controller.decision import Decision
from trt_mtp.controller.decision_log import LogRecord
from trt_mtp.controller.decision_log import read_log as _read_log
from trt_mtp.controller.explain import idle_variants
from trt_mtp.controller.json_request import features_from_json
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.position_counts import MAX_POSITIONS
from trt_mtp.controller.profile import Profile, read_profile
from trt_mtp.controller.replay import replay as _replay
from trt_mtp.controller.simulate.simulate import Result, Settings, simulate_all
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError, TrtMtpError

__all__ = [
    "TASKS",
    "Decision",
    "InputError",
    "LogRecord",
    "Outcome",
    "Policy",
    "Profile",
    "Result",
    "TrtMtpError",
    "decide",
    "load_profile",
    "read_log",
    "replay",
    "simulate",
]


def load_profile(path: str | PathLike[str] | None = None) -> Profile:
    """The profile in a file that `trt-mtp calibrate` wrote; without one, the published values.

    Raises InputError for a file that is missing or no profile.
    """
    return Profile() if path is None else read_profile(Path(path))


def decide(
    request: str | Mapping[str, Any],
    profile: Profile | None = None,
    *,
    draft_lengths: Sequence[int] = (0, 1, 3, 5),
    load: int = 0,
    seed: int = 0,
    policy: Policy | None = None,
) -> Decision:
    """What a gateway that starts with `profile` would choose, as `trt-mtp explain` shows it.

    `request` is a prompt, or an object as `trt-mtp explain --request` takes it: a body of OpenAI's
    chat completions, say. `load` is the requests in flight on each variant.

    With `policy`, a `Policy` made once, many requests are decided faster, and what it learned by
    `policy.update(decision, outcome)` counts; `profile` and `seed` are then its own. Raises
    InputError for a wrong request, draft length or load.
    """
    lengths = sorted(set(draft_lengths))
    if not lengths or not all(0 <= length <= MAX_POSITIONS for length in lengths):
        raise InputError(
            f"draft_lengths is {tuple(draft_lengths)}: expected numbers from 0 to {MAX_POSITIONS}"
        )
    if load < 0:
        raise InputError(f"load is {load}: expected the requests in flight, 0 or more")
    value = {"prompt": request} if isinstance(request, str) else _object(request)
    if policy is None:
        policy = Policy(profile, seed=seed)
    elif profile is not None:
        raise InputError("give a profile or a policy: a policy has its own profile")
    return policy.choose(features_from_json(value), idle_variants(lengths, load), now_s=0.0)


def _object(request: object) -> object:
    return dict(request) if isinstance(request, Mapping) else request


def read_log(path: str | PathLike[str]) -> Iterator[LogRecord]:
    """The decisions of a gateway's log with their outcomes, rotated files first.

    Raises InputError for a line that is none, when it is reached.
    """
    return _read_log(Path(path))


def replay(
    path: str | PathLike[str],
    profile: Profile | None = None,
    *,
    policy: str = "logged",
    seed: int = 0,
) -> dict[str, Any]:
    """What a log's choices cost against the best ones, as `trt-mtp replay --json` prints it.

    `policy` is `logged` (what was done), `learned` or `heuristics`. Raises InputError for a log
    without a finished answer.
    """
    return _replay(read_log(path), policy=policy, profile=profile, seed=seed)


def simulate(
    mix: Mapping[str, float],
    policies: Sequence[str] = ("none", "static", "learned", "oracle"),
    *,
    fleet: Mapping[int, float] | None = None,
    num_replicas: int = 20,
    rate_per_s: float = 20.0,
    num_requests: int = 20_000,
    seed: int = 0,
) -> list[Result]:
    """A fleet under each policy with the same requests, as `trt-mtp simulate` has it.

    `mix` has shares of requests by task, `fleet` shares of replicas by draft length. Raises
    InputError for an unknown policy, or a fleet that is too small for its lengths.
    """
    settings = Settings(
        mix=dict(mix),
        num_replicas=num_replicas,
        rate_per_s=rate_per_s,
        num_requests=num_requests,
        seed=seed,
    )
    if fleet is not None:
        settings = dataclasses.replace(settings, shares=dict(fleet))
    return list(simulate_all(settings, policies))
