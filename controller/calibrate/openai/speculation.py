"""What an answer's chunks tell of its drafts, by the form that each kind of server has for it.

All readers are tried on each chunk: their forms have no key in common, so that nobody has to say
which server it is. Sources: vLLM's docs, "Per-Request Acceptance Metrics" (v0.32); for TensorRT-LLM
and SGLang "Per-Request Speculative-Decoding Acceptance" of NVIDIA's AIPerf (docs/reference), and
SGLang's own protocol (`meta_info` of a choice); for llama.cpp its server's `timings`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.position_counts import MAX_POSITIONS

BISECTIONS = 40
MAX_DRAFTS = 1_000  # in a step of a histogram that is believed


@dataclass(frozen=True, slots=True)
class Told:
    """What a server tells of one answer's drafts; None where it doesn't say."""

    num_steps: int | None = None
    num_accepted: int | None = None
    num_drafted: int | None = None
    accepted_per_position: tuple[int, ...] = ()  # steps whose first j + 1 drafts were accepted
    tokens_per_step: float | None = None
    draft_length: int | None = None  # that the server is set to


@dataclass(frozen=True, slots=True)
class Speculation:
    """An answer's verify steps after the prompt, and drafts accepted by position."""

    num_steps: int
    accepted_per_position: tuple[int, ...]
    is_spread: bool = False  # over the positions, because only their sum was told


def told(chunk: Mapping[str, Any]) -> Told | None:
    """What a chunk tells; None if it tells nothing."""
    return next(filter(None, (read(chunk) for read in READERS)), None)


def speculation_of(told: Told, num_tokens: int, draft_length: int | None) -> Speculation | None:
    """The counts behind what was told of an answer; None if they don't follow from it.

    `draft_length` is the server's where it is known; else the drafts per step stand for it.
    """
    if told.num_steps is not None and told.accepted_per_position:
        return Speculation(told.num_steps, told.accepted_per_position)
    steps, accepted = told.num_steps, told.num_accepted
    rest = num_tokens - 1  # the first token comes from the prompt
    if steps is None and told.tokens_per_step:
        steps = round(rest / max(told.tokens_per_step, 1.0))
    if steps is None and accepted is not None:
        steps = rest - accepted
    if accepted is None and steps is not None:
        accepted = rest - steps
    if steps is None or accepted is None or rest <= 0:
        return None
    steps, accepted = max(steps, 1), max(accepted, 0)
    drafted = accepted if told.num_drafted is None else told.num_drafted
    depth = draft_length or max(round(drafted / steps), math.ceil(accepted / steps))
    return Speculation(steps, spread(accepted, steps, depth), is_spread=depth > 1)


def spread(num_accepted: int, num_steps: int, depth: int) -> tuple[int, ...]:
    """A total of accepted drafts over `depth` positions, as acceptance usually decays.

    Sums to the total, or to the most that so many steps can accept.

    >>> spread(12, 10, 3)
    (6, 4, 2)
    """
    depth = min(depth, MAX_POSITIONS)
    total = min(num_accepted, num_steps * depth)
    shares = survival_of(total / num_steps, depth) if num_steps else (0.0,) * depth
    return shared_out(total, num_steps, shares)


def shared_out(total: int, num_steps: int, survival: Sequence[float]) -> tuple[int, ...]:
    """A total of accepted drafts over positions in the proportion of S_1 … S_K.

    >>> shared_out(13, 10, (0.6, 0.4, 0.3))
    (6, 4, 3)
    """
    scale = total / sum(survival) if any(survival) else 0.0
    ends = [round(scale * share) for share in accumulate(survival)]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return _no_more_than(num_steps, sorted(counts, reverse=True))


def _no_more_than(most: int, counts: Sequence[int]) -> tuple[int, ...]:
    """The same total where it fits, with what is too much at one position at the next ones."""
    extra, held = 0, list[int]()
    for count in counts:
        held.append(min(count + extra, most))
        extra += count - held[-1]
    return tuple(held)


def survival_of(mean_accepted: float, depth: int) -> tuple[float, ...]:
    """S_1 … S_depth of the usual decay whose sum is `mean_accepted`; all 1 where that is `depth`.

    The first draft's acceptance is found by bisection; where even 1 gives too little, what is
    missing is taken up by the later positions alike.
    """
    if mean_accepted >= depth:
        return (1.0,) * depth
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if sum(_survival(middle, depth)) < mean_accepted else (low, middle)
        )
    survival = _survival(high, depth)
    missing, room = mean_accepted - sum(survival), depth - sum(survival)
    share = max(missing, 0.0) / room if room > 0 else 0.0
    return tuple(value + share * (1 - value) for value in survival)


def _survival(first: float, depth: int) -> tuple[float, ...]:
    return tuple(accumulate(prior_conditionals(first)[:depth], lambda so_far, c: so_far * c))


def _vllm(chunk: Mapping[str, Any]) -> Told | None:
    """`metrics.speculative_decoding` of the response: vLLM's, and our gateway's."""
    block = _object(_object(chunk.get("metrics")).get("speculative_decoding"))
    return _of_histogram(
        block.get("acceptance_histogram"),
        block.get("num_spec_steps"),
        block.get("num_accepted_draft_tokens"),
        block.get("num_draft_tokens"),
        block.get("num_spec_tokens"),
    )


def _tensorrt_llm(chunk: Mapping[str, Any]) -> Told | None:
    """`speculative_decoding` of a choice, else its `avg_decoded_tokens_per_iter`."""
    choice = _choice(chunk)
    block = _object(choice.get("speculative_decoding"))
    found = _of_histogram(
        block.get("acceptance_histogram"),
        block.get("num_spec_steps"),
        block.get("total_accepted_draft_tokens"),
        block.get("total_draft_tokens"),
        block.get("num_spec_tokens"),
    )
    per_step = choice.get("avg_decoded_tokens_per_iter")
    if found is None and isinstance(per_step, float | int) and 1 <= per_step < math.inf:
        return Told(tokens_per_step=float(per_step))
    return found


def _sglang(chunk: Mapping[str, Any]) -> Told | None:
    """`meta_info` of a choice, which `return_meta_info` asks for."""
    info = _object(_choice(chunk).get("meta_info"))
    histogram = info.get("spec_correct_drafts_histogram", info.get("spec_accept_histogram"))
    accepted = info.get("spec_num_correct_drafts", info.get("spec_accept_token_num"))
    drafted = info.get("spec_num_proposed_drafts", info.get("spec_draft_token_num"))
    return _of_histogram(histogram, info.get("spec_verify_ct"), accepted, drafted, None)


def _llama_cpp(chunk: Mapping[str, Any]) -> Told | None:
    """`timings` of the last chunk, whose drafts have no positions."""
    timings = _object(chunk.get("timings"))
    drafted, accepted = _count(timings.get("draft_n")), _count(timings.get("draft_n_accepted"))
    if not drafted or accepted is None or accepted > drafted:
        return None
    return Told(num_accepted=accepted, num_drafted=drafted)


READERS: tuple[Callable[[Mapping[str, Any]], Told | None], ...] = (
    _vllm,
    _tensorrt_llm,
    _sglang,
    _llama_cpp,
)


def _of_histogram(
    histogram: Any, steps: Any, accepted: Any, drafted: Any, depth: Any
) -> Told | None:
    """What a block of counts tells; a histogram that contradicts its steps is left out.

    histogram[j] is how many steps accepted exactly j drafts.
    """
    num_steps = _count(steps)
    if not num_steps:
        return None
    found = _dense(histogram)
    positions: tuple[int, ...] = ()
    if sum(found) == num_steps:
        longest = max(len(found) - 1, min(_count(depth) or 0, MAX_POSITIONS))
        found += [0] * (longest + 1 - len(found))
        positions = tuple(sum(found[j:]) for j in range(1, len(found)))
    return Told(num_steps, _count(accepted), _count(drafted), positions, draft_length=_count(depth))


def _dense(histogram: Any) -> list[int]:
    """Counts from 0 drafts on, of a list or of an object with numbers as keys; else empty."""
    if isinstance(histogram, Mapping):
        keys = [int(key) for key in histogram if str(key).isdecimal() and len(str(key)) < 4]
        histogram = [histogram.get(str(j), 0) for j in range(max(keys, default=-1) + 1)]
    is_list = isinstance(histogram, Sequence) and not isinstance(histogram, str)
    if not is_list or len(histogram) > MAX_DRAFTS:
        return []
    counts = [_count(value) for value in histogram]
    return [] if None in counts else [count or 0 for count in counts]


def _count(value: Any) -> int | None:
    is_whole = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_whole and 0 <= value < 2**53 and value == int(value) else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _choice(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = chunk.get("choices")
    return _object(choices[0]) if isinstance(choices, list) and choices else {}
