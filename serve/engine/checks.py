"""What no engine can run, refused before it is queued."""

from trt_mtp.errors import InputError
from trt_mtp.serve.contract import MAX_STOP_BYTES, MAX_STOP_TEXTS
from trt_mtp.serve.engine.base import Request

MAX_SEED = 2**64
MAX_PENALTY = 2.0  # as OpenAI has it


def check_request(request: Request, vocab_size: int, max_seq_len: int) -> None:
    """Raise InputError when `request` can't be run at all by a variant of these sizes."""
    sampling, num_prompt = request.sampling, len(request.prompt_ids)
    if num_prompt == 0:
        raise InputError("the prompt is empty; at least one token is needed")
    if sampling.max_tokens < 1:
        raise InputError(f"max_tokens is {sampling.max_tokens}; expected at least 1")
    if not 0 <= sampling.min_tokens <= sampling.max_tokens:
        raise InputError(
            f"min_tokens is {sampling.min_tokens}; expected 0 to max_tokens ({sampling.max_tokens})"
        )
    if num_prompt + sampling.max_tokens > max_seq_len:
        raise InputError(
            f"the prompt has {num_prompt} tokens and max_tokens is {sampling.max_tokens}; "
            f"together they may be at most {max_seq_len} for this variant"
        )
    if len(request.emitted_ids) >= sampling.max_tokens:
        raise InputError(
            f"emitted_ids has {len(request.emitted_ids)} tokens and max_tokens is "
            f"{sampling.max_tokens}; the answer is complete"
        )
    for name, ids in (("input_ids", request.prompt_ids), ("emitted_ids", request.emitted_ids)):
        if not all(0 <= token < vocab_size for token in ids):
            raise InputError(f"{name} must lie between 0 and {vocab_size - 1}")
    if not 0.0 <= sampling.temperature <= 100.0:
        raise InputError(f"temperature is {sampling.temperature}; expected 0 to 100")
    if sampling.top_k < 0:
        raise InputError(f"top_k is {sampling.top_k}; expected 0 (all) or more")
    if not 0.0 < sampling.top_p <= 1.0:
        raise InputError(f"top_p is {sampling.top_p}; expected more than 0, at most 1")
    for name in ("frequency_penalty", "presence_penalty"):
        value = getattr(sampling, name)
        if not -MAX_PENALTY <= value <= MAX_PENALTY:
            raise InputError(f"{name} is {value:g}; expected {-MAX_PENALTY:g} to {MAX_PENALTY:g}")
    if not 0 <= sampling.seed < MAX_SEED:
        raise InputError(f"seed is {sampling.seed}; expected 0 to 2**64 - 1")
    _check_stop_texts(sampling.stop)


def _check_stop_texts(stop: tuple[str, ...]) -> None:
    if len(stop) > MAX_STOP_TEXTS:
        raise InputError(
            f"the request has {len(stop)} stop texts; at most {MAX_STOP_TEXTS} are taken"
        )
    if "" in stop:
        raise InputError("a stop text is empty; expected at least one character")
    longest = max((len(text.encode()) for text in stop), default=0)
    if longest > MAX_STOP_BYTES:
        raise InputError(f"a stop text has {longest} bytes; each may have at most {MAX_STOP_BYTES}")
