"""Which variants may have a request at all.

A new rule goes into `_obstacle`, with what it looks at in VariantState; a rule by which requests
differ in what they wait for also goes into `Router.kind`.
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

    Raises InputError for a hint at a length that isn't hosted and for a grammar that no hosted one
    can follow, NoVariantError if none may.
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
    pairs = zip(variants, found, strict=True)
    why = "; ".join(f"{v.name} {rejected}" for v, rejected in pairs) or "none is hosted"
    raise NoVariantError(
        f"no variant can take this request: {why}",
        is_full=any(v.is_full and not _obstacle(v, features) for v in variants),
        is_ready=any(v.is_healthy and not v.excluded for v in variants),
    )


def can_take(variant: VariantState, features: RequestFeatures) -> bool:
    """Whether a variant may serve a request once it has room."""
    return not _obstacle(variant, features)


def _obstacle(variant: VariantState, features: RequestFeatures) -> str:
    """Why a variant may not serve a request even if it had room."""
    hint = features.hint_draft_length
    if hint is not None and variant.draft_length != hint:
        return f"is not of the draft length asked for ({hint})"
    if not variant.is_healthy:
        return "is not healthy"
    if variant.excluded:
        return variant.excluded
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
