"""Log probabilities in OpenAI's two forms, from those that a variant tells with its tokens."""

import codecs
from collections.abc import Sequence
from typing import Any

import grpc

from trt_mtp.controller.gateway.failure import AnswerError
from trt_mtp.controller.gateway.http.json_pieces import loaded_list
from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.gateway.openai.schema import ChatRequest, CommonRequest, CompletionRequest

Place = dict[str, Any]  # token, logprob, bytes, top_logprobs


def num_logprobs(request: CommonRequest) -> int | None:
    """How many of the most likely tokens are asked for at each place; None for no logprobs.

    Raises ParameterError.
    """
    if isinstance(request, CompletionRequest):
        if request.echo and request.logprobs is not None:
            raise ParameterError(
                "logprobs are of the answer's tokens: expected no echo with them, for the prompt's "
                "have none here",
                "logprobs",
            )
        return request.logprobs
    if not isinstance(request, ChatRequest) or not request.logprobs:
        if isinstance(request, ChatRequest) and request.top_logprobs:
            raise ParameterError("top_logprobs goes with logprobs: true", "top_logprobs")
        return None
    return request.top_logprobs or 0


def places_of(text: str) -> list[Place]:
    """What the output `logprobs` of one message says; nothing where there is no such output.

    Raises AnswerError for what no variant of ours says.
    """
    if not text:
        return []
    try:
        places: list[Place] = loaded_list(text)
        for place in places:
            for each in (place, *place["top_logprobs"]):
                _ = len(_bytes(each)), float(each["logprob"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise AnswerError(
            grpc.StatusCode.INTERNAL, "the variant's log probabilities can't be read"
        ) from None
    return places


def chat_logprobs(places: Sequence[Place]) -> dict[str, Any]:
    """A chat choice's `logprobs`."""
    return {"content": list(places), "refusal": None}


class TextOffsets:
    """Where an answer's tokens begin in its text, in characters, of which they may be parts."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def after(self, place: Place) -> int:
        """That of the next token."""
        offset = self._num_chars
        self._num_chars += len(self._decoder.decode(_bytes(place)))
        return offset


def completion_logprobs(places: Sequence[Place], offsets: TextOffsets) -> dict[str, Any]:
    """A completion choice's `logprobs`.

    The token that was sampled is always among the likely ones, as OpenAI says.
    """
    return {
        "tokens": [_name(place) for place in places],
        "token_logprobs": [place["logprob"] for place in places],
        "top_logprobs": [
            {_name(top): top["logprob"] for top in (*place["top_logprobs"], place)}
            for place in places
        ],
        "text_offset": [offsets.after(place) for place in places],
    }


def _bytes(place: Place) -> bytes:
    """A token's own; those of its text where a variant tells none."""
    given = place.get("bytes")
    return place["token"].encode() if given is None else bytes([*given])  # a number is a length


def _name(place: Place) -> str:
    """A token as a completion has it, which has no bytes beside it: OpenAI's name for a part of a
    character, or all would be the same one.
    """
    text = _bytes(place)
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
