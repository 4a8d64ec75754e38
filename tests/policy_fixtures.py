"""Requests, variants and outcomes for the tests of the policy."""

from dataclasses import replace
from typing import Any

from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.request import RequestFeatures

_BLANK = RequestFeatures(temperature=0.7, max_tokens=128)


def request(text: str = "", **changes: Any) -> RequestFeatures:
    """A request with this prompt."""
    features = replace(_BLANK, head=text[:2000], tail=text[-2000:], num_chars=len(text))
    return replace(features, **changes)


def variants(*lengths: int, load: int = 0, **changes: Any) -> list[VariantState]:
    """Hosted variants `k<length>` with `load` requests in flight on each."""
    return [VariantState(f"k{k}", k, True, load, 64, 4096)._replace(**changes) for k in lengths]


def outcome(draft_length: int, acceptance: float = 0.8, num_steps: int = 50) -> Outcome:
    """An answer whose every draft was accepted with this share, each costing 15% of a step."""
    step_s = 0.02 * (1 + 0.15 * draft_length)
    accepted = tuple(int(num_steps * acceptance ** (j + 1)) for j in range(draft_length))
    return Outcome(
        draft_length, num_steps, num_steps * draft_length, sum(accepted), accepted,
        num_steps + sum(accepted), 0.1, 0.1 + step_s * (num_steps - 1), "stop",
    )  # fmt: skip
