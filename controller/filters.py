"""Which variants may have a request at all.

A new rule goes into `_limit`, or into `_obstacle` if time may change it, with what it looks at in
VariantState; a rule by which requests differ in what they wait for also goes into `Router.kind`.
"""

from collections.abc import Sequence

from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.errors import InputError, TrtMtpError


class NoVariantError(TrtMtpError):
    """No hosted variant can take the request; the message says why each can't.

    `is_full` if one could that has no room now, `is_ready` if one is ready for other requests.
    """

    def __init__(self, message: str, *, is_full: bool = False, is_ready: bool = False) -> None:
        super().__init__(message)
        self.is_full = is_full
        self.is_ready = is_ready


def rejections(features: RequestFeatures, variants: Sequence[VariantState]) -> list[str]:
    """Why each variant may not serve a request; an empty string where it may.

    Raises InputError for what no hosted one could ever do: a hint at a length that isn't hosted, a
    grammar, a prompt that is too long. Raises NoVariantError if none may serve it now.
    """
    hint = features.hint_draft_length
    if hint is not None and all(v.draft_length != hint for v in variants):
        hosted = ", ".join(str(k) for k in sorted({v.draft_length for v in variants}))
        raise InputError(f"draft_length is {hint}: expected auto or a hosted one ({hosted})")
    if features.is_guided and variants and not any(v.takes_guided for v in variants):
        raise InputError(
            "guided_decoding is not supported by the variants hosted here; those of the CPU engine "
            "do it"
        )
    found = [_obstacle(v, features) or _no_room(v) for v in variants]
    if "" in found:
        return found
    if variants and all(_limit(v, features) for v in variants):
        raise _impossible(features, variants)
    why = _listed(variants, found) or "none is hosted"
    raise NoVariantError(
        f"no variant can take this request: {why}",
        is_full=any(v.is_full and not _obstacle(v, features) for v in variants),
        is_ready=any(v.is_healthy and not v.excluded for v in variants),
    )


def can_take(variant: VariantState, features: RequestFeatures) -> bool:
    """Whether a variant may serve a request once it has room."""
    return not _obstacle(variant, features)


def _listed(variants: Sequence[VariantState], rejected: Sequence[str]) -> str:
    return "; ".join(f"{v.name} {why}" for v, why in zip(variants, rejected, strict=True))


def _impossible(features: RequestFeatures, variants: Sequence[VariantState]) -> InputError:
    """The error for a request that none of `variants` could ever serve."""
    hint, num_tokens = features.hint_draft_length, features.num_prompt_tokens or 0
    longest = max(v.max_seq_len for v in variants if hint in (None, v.draft_length))
    if num_tokens >= longest:
        where = "" if hint is None else f" at draft length {hint}"
        return InputError(
            f"the prompt has {num_tokens} tokens: with its answer it may have at most "
            f"{longest}{where}"
        )
    limits = [_limit(v, features) for v in variants]
    return InputError(f"no variant hosted here can serve this: {_listed(variants, limits)}")


def _obstacle(variant: VariantState, features: RequestFeatures) -> str:
    """Why a variant may not serve a request even if it had room."""
    if limit := _limit(variant, features):
        return limit
    return variant.excluded if variant.is_healthy else "is not healthy"


def _limit(variant: VariantState, features: RequestFeatures) -> str:
    """Why a variant can't serve a request, whatever its state."""
    hint = features.hint_draft_length
    if hint is not None and variant.draft_length != hint:
        return f"is not of the draft length asked for ({hint})"
    if features.min_tokens > 0 and not variant.takes_min_tokens:
        return "can't hold an end token back (min_tokens)"
    if features.is_guided and not variant.takes_guided:
        return "can't hold an answer to a grammar (guided_decoding)"
    # a length estimated from characters is too rough to refuse by: the engine will know
    num_tokens = features.num_prompt_tokens
    if num_tokens and num_tokens >= variant.max_seq_len:
        return f"holds {variant.max_seq_len} tokens and the prompt has {num_tokens}"
    return ""


def _no_room(variant: VariantState) -> str:
    return f"is full ({variant.num_running} in flight)" if variant.is_full else ""
