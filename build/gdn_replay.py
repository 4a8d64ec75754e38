"""How a Gated-DeltaNet model goes back to an accepted token: by replay, or by a state for each.

Replay keeps the inputs of the last updates and computes the state again. It came with pull request
16464 (opened 16 July 2026) and is the default for eligible workloads since pull request 16768, both
in NVIDIA/TensorRT-LLM. No release notes name the first release candidate with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trt_mtp.build.gpus import Gpu
from trt_mtp.build.memory import MemoryPlan, estimate
from trt_mtp.build.preflight import Finding
from trt_mtp.build.trtllm_version import Version, parse_version

VARIABLE = "TRTLLM_USE_GDN_REPLAY"
SOURCE = "https://github.com/NVIDIA/TensorRT-LLM/pull/16768"
LARGEST_DRAFT_LENGTH = 7  # K + 1 <= 8: tensorrt_llm/_torch/pyexecutor/_util.py, pull request 16464
SMALLEST_SM = 80  # the same
STATE_DTYPES = ("float32", "bfloat16", "float16")  # the same
NOT_IN = parse_version("1.3.0rc20")  # published 30 June 2026
# "GDN state replay" is in the feature list of NVIDIA's deployment guide for release:1.3.0rc27
# (gh-pages 1acecaf5, deployment-guide-for-qwen3.8-qwen3.5-on-trtllm.md)
SURE_SINCE = parse_version("1.3.0rc27")
SURE_FAMILIES = ("qwen3.5", "qwen3.5-moe")  # as in build/checkpoint.py; that guide's models


@dataclass(frozen=True, slots=True)
class Replay:
    """Whether a variant goes back by replay, as far as it is known."""

    is_planned: bool
    is_possible: bool  # also where no source says whether this version has it
    reason: str


def wants_replay(draft_length: int, args: Mapping[str, Any]) -> bool:
    """Whether a variant is asked to replay: a chain of 1 to 7 drafts."""
    has_tree = (args.get("speculative_config") or {}).get("use_dynamic_tree", False)
    return 1 <= draft_length <= LARGEST_DRAFT_LENGTH and not has_tree


def replay_of(
    version: Version,
    draft_length: int,
    args: Mapping[str, Any],
    state_dtype: str,
    family: str,
    sm: int | None,
) -> Replay:
    """Whether a variant replays; `sm` is the GPU's compute capability, None where it is unknown."""
    if not draft_length:
        return Replay(False, False, "nothing is drafted")
    if not wants_replay(draft_length, args):
        reason = f"replay is for chains of at most {LARGEST_DRAFT_LENGTH} drafts"
        return Replay(False, False, reason)
    if state_dtype not in STATE_DTYPES:
        return Replay(False, False, f"replay does not take states in {state_dtype}")
    if sm is not None and sm < SMALLEST_SM:
        return Replay(False, False, f"replay needs compute capability 8.0, this GPU has {sm / 10}")
    if version <= NOT_IN:
        return Replay(False, False, f"{version} is older than replay")
    if family not in SURE_FAMILIES:
        return Replay(False, True, f"no source says whether {family} has replay")
    if version < SURE_SINCE:
        return Replay(False, True, f"no source says whether {version} has replay")
    return Replay(True, True, f"{VARIABLE}=1, which NVIDIA's guide for {SURE_SINCE} supports")


def fitting_plan(
    plan: MemoryPlan, replay: Replay, gpu: Gpu
) -> tuple[MemoryPlan, tuple[Finding, ...]]:
    """`plan` with the way back that it fits with, and what to know of it.

    Refused is only what is certain not to fit: where no source says whether a version has replay,
    a variant that fits only with it is planned with it, under a warning.
    """
    if not plan.draft_length:
        return plan, ()
    needed = estimate(plan, gpu).rollback_scratch / 1e9
    other = replace(plan, has_replay=not plan.has_replay)
    needed_else = estimate(other, gpu).rollback_scratch / 1e9
    if plan.has_replay:
        text = (
            f"rejected drafts are undone by replay ({replay.reason}), for which {needed:.1f} GB "
            f"are planned; without it they would take {needed_else:.1f} GB: look for "
            "'GDN MTP replay is requested' in the log"
        )
        return plan, (Finding("gdn-replay", "info", text, SOURCE),)
    if replay.is_possible and not estimate(plan, gpu).fits and estimate(other, gpu).fits:
        text = (
            f"it fits only if rejected drafts are undone by replay, in {needed_else:.1f} GB "
            f"instead of {needed:.1f} GB, and {replay.reason}"
        )
        return other, (Finding("gdn-replay-unknown", "warning", text, SOURCE),)
    text = f"the state after each draft is planned to be kept, {needed:.1f} GB: {replay.reason}"
    return plan, (Finding("gdn-states", "info", text, SOURCE),)
