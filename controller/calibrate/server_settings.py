"""What to write into other servers' settings after a calibration: the draft length by load.

Names are those of TensorRT-LLM's llm_args.py, of vLLM's docs ("Dynamic Speculative Decoding",
v0.25), of SGLang's ("Adaptive Speculative Decoding") and of llama-server --help (b11549).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence

from trt_mtp.build.trtllm_config import draft_len_schedule
from trt_mtp.build.vllm import ranges
from trt_mtp.controller.calibrate.measured_schedule import inverse_lengths
from trt_mtp.controller.calibration import CellKey
from trt_mtp.controller.cells import by_key
from trt_mtp.controller.profile import Profile
from trt_mtp.errors import InputError
from trt_mtp.files import nearest

LARGEST_BATCH = 1024  # beyond the highest load measured its length holds, up to here
Lengths = Mapping[int, int]  # draft lengths by their largest batch, ascending; they never rise


def settings_for(kind: str, profile: Profile) -> list[str]:
    """The settings of a kind of server, line by line, for all tasks alike.

    Raises InputError for an unknown kind, and for a profile without a calibration.
    """
    if kind not in SETTINGS:
        known = ", ".join(SETTINGS)
        raise InputError(f"--server {kind!r} is not known{nearest(kind, SETTINGS)}: it is {known}")
    return SETTINGS[kind](lengths_by_load(profile))


def lengths_by_load(profile: Profile) -> dict[int, int]:
    """The draft length that takes the least time per token at each load measured, by that load.

    Lengths never rise with the load: where noise says otherwise the longer one holds. Raises
    InputError for a profile without a calibration.
    """
    calibration = profile.calibration
    if calibration is None or calibration.recommendation is None:
        raise InputError("the profile has no calibration with draft length 0: nothing was measured")
    times = _expected_times if "step_ratio" in profile.model_fields_set else _measured_times
    lengths: dict[int, int] = {}
    longest = 0
    for load in sorted(calibration.concurrencies, reverse=True):
        by_length = times(profile, load, calibration.draft_lengths)
        longest = max(longest, min(by_length, key=lambda k: (by_length[k], k)))
        lengths[load] = longest
    return dict(sorted(lengths.items()))


def _expected_times(profile: Profile, load: int, lengths: Sequence[int]) -> dict[int, float]:
    """R / AL of all measured tasks alike, in plain steps."""
    tasks = tuple(profile.acceptance)
    inverse = inverse_lengths(profile, {task: 1 / len(tasks) for task in tasks})
    return {k: profile.step_cost().ratio(k, load) * inverse[k] if k else 1.0 for k in lengths}


def _measured_times(profile: Profile, load: int, lengths: Sequence[int]) -> dict[int, float]:
    """The mean over tasks of the time per token, where acceptance was not told."""
    assert profile.calibration is not None
    cells = by_key(profile.calibration)
    times = {0: 1.0}
    for length in lengths:
        found = [cells.get(CellKey(task, length, load)) for task in profile.calibration.tasks]
        own = [1 / cell.speedup.value for cell in found if cell is not None and cell.speedup]
        if own:
            times[length] = math.fsum(own) / len(own)
    return times


def tensorrt_llm(lengths: Lengths) -> list[str]:
    """Lines of the YAML of --extra_llm_api_options; a schedule never goes down to 0."""
    longest = max(lengths.values())
    if not longest:
        return ["# without speculative_config: no draft length is faster"]
    lines = ["speculative_config:", "  decoding_type: MTP", f"  max_draft_len: {longest}"]
    schedule = draft_len_schedule(_changes(lengths), longest, LARGEST_BATCH)
    return [*lines, f"  draft_len_schedule: {schedule}"] if schedule else lines


def vllm(lengths: Lengths) -> list[str]:
    """The option --speculative-config."""
    longest = max(lengths.values())
    if not longest:
        return ["(no --speculative-config: no draft length is faster)"]
    config: dict[str, object] = {"method": "mtp", "num_speculative_tokens": longest}
    changes = _changes(lengths)
    if len(changes) > 1:
        config["num_speculative_tokens_per_batch_size"] = ranges(changes, longest, LARGEST_BATCH)
    return [f"--speculative-config '{json.dumps(config)}'"]


def sglang(lengths: Lengths) -> list[str]:
    """Options, and the file of --speculative-adaptive-config, whose tiers begin at a batch size."""
    longest = max(lengths.values())
    if not longest:
        return ["(no --speculative-algorithm: no draft length is faster)"]
    options = (
        f"--speculative-algorithm EAGLE --speculative-eagle-topk 1 --speculative-num-steps "
        f"{longest} --speculative-num-draft-tokens {longest + 1}"
    )
    changes = _changes(lengths)
    if len(changes) == 1:
        return [options]
    firsts = [1, *(bound + 1 for bound in changes)]
    tiers = {
        str(first): {"candidate_steps": [max(length, 1)]}
        for first, length in zip(firsts, changes.values(), strict=False)
    }
    return [
        f"{options} --speculative-adaptive --speculative-adaptive-config tiers.json",
        f"tiers.json: {json.dumps(tiers)}",
    ]


def llama_cpp(lengths: Lengths) -> list[str]:
    """Options; one length for all loads, that of the lowest one."""
    length = next(iter(lengths.values()))
    if not length:
        return ["--spec-type none"]
    return [f"--spec-type draft-mtp --spec-draft-n-max {length}"]


SETTINGS: dict[str, Callable[[Lengths], list[str]]] = {
    "tensorrt_llm": tensorrt_llm,
    "vllm": vllm,
    "sglang": sglang,
    "llamacpp": llama_cpp,
}


def _changes(lengths: Lengths) -> dict[int, int]:
    """The same with one entry for neighbors that are equal: the largest batch of each length.

    >>> _changes({1: 3, 4: 3, 8: 1})
    {4: 3, 8: 1}
    """
    last = {length: bound for bound, length in lengths.items()}
    return {bound: length for length, bound in last.items()}
