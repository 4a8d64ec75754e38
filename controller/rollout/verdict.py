"""What a rollout's gates say so far, in one sentence: the first line of `rollout explain`."""

from typing import TYPE_CHECKING

from trt_mtp.controller.rollout.store import Phase

if TYPE_CHECKING:
    from trt_mtp.controller.rollout.control import Status

ENDED = {
    Phase.SUCCESSFUL: "the new side serves all requests",
    Phase.ABORTED: "taken back, the old side serves all requests",
    Phase.FAILED: "taken back, because an action could not be done",
    Phase.INCONCLUSIVE: "none, for want of requests; resume, promote or abort it",
    Phase.ERROR: "none, an error stopped it; start it again, or abort it",
}


def verdict(seen: "Status", min_requests: int) -> str:
    """`verdict: …` of a rollout whose steps need `min_requests` of the canary each.

    "So far" says that a gate may still fail.
    """
    phase, progress = seen.rollout.phase, seen.progress
    if phase in ENDED:
        return f"verdict: {ENDED[phase]}"
    if seen.rollout.direction == "back":
        return "verdict: worse than allowed, or aborted by a person; it is being taken back"
    num = progress.get("num_requests", 0)
    if num < min_requests:
        return f"verdict so far: none, {num:,} of {min_requests:,} requests of the canary were seen"
    return (
        f"verdict so far: no gate failed in {num:,} requests of the canary "
        f"({min_requests:,} are needed)"
    )
