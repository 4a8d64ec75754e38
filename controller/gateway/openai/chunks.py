"""Chunks of a streamed answer, rendered around what changes: a piece of text.

json.dumps of a whole chunk takes several microseconds, the text of one between two constants a
third of one; an answer has as many chunks as steps.
"""

import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from trt_mtp.controller.gateway.http.json_pieces import dumped
from trt_mtp.controller.gateway.openai.asked import Asked
from trt_mtp.controller.gateway.openai.logprobs import Place, TextOffsets
from trt_mtp.controller.gateway.openai.objects import Answered, head, logprobs_of, totals

DONE = b"data: [DONE]\n\n"
MANY_PLACES = 32  # of tokens with logprobs, each of which may be 2 KiB
_GAP = "\x00"  # in no JSON: it would be escaped


class Chunks:
    """Renders the chunks of one choice; the first one has the role."""

    def __init__(self, asked: Asked, index: int) -> None:
        self._asked = asked
        self._index = index
        self._has_begun = False
        self._offsets = TextOffsets()
        self._places: Sequence[Place] = ()  # for the next chunk
        self.usage: dict[str, int] | None = None  # so far, for each chunk from now on
        delta: Any = {"content": _GAP} if asked.is_chat else _GAP
        self._before, self._after = self._render(delta, None).split(json.dumps(_GAP).encode())

    def tell(self, places: Sequence[Place]) -> None:
        """The next chunk has these tokens' logprobs, too."""
        self._places = [*self._places, *places]

    def text(self, text: str) -> bytes:
        """The chunk with a piece of the answer's text."""
        if not self._has_begun or self._places or self.usage:
            return self.delta({"content": text} if self._asked.is_chat else text)
        return b"%b%b%b" % (self._before, encode_basestring(text).encode(), self._after)

    def delta(self, delta: Any) -> bytes:
        """The chunk with any delta, which for a completion is a text."""
        if not self._has_begun and self._asked.is_chat:
            delta = {"role": "assistant", **delta}
        self._has_begun = True
        return self._render(delta, None)

    def idle(self) -> bytes:
        """A chunk that brings nothing."""
        return self._render({} if self._asked.is_chat else "", None, tells_places=False)

    def end(self, finish_reason: str) -> bytes:
        """The chunk that says why the choice is over."""
        delta: Any = ""
        if self._asked.is_chat:
            delta = {} if self._has_begun else {"role": "assistant", "content": ""}
        return self._render(delta, finish_reason)

    def _render(self, delta: Any, finish_reason: str | None, *, tells_places: bool = True) -> bytes:
        key = "delta" if self._asked.is_chat else "text"
        in_pieces = len(self._places) > MANY_PLACES
        choice = {
            "index": self._index,
            key: delta,
            "logprobs": self._logprobs() if tells_places else None,
            "finish_reason": finish_reason,
        }
        value: dict[str, Any] = {**head(self._asked, kind(self._asked)), "choices": [choice]}
        if self._asked.wants_usage:
            value["usage"] = self.usage
        return event(value, in_pieces=in_pieces)

    def _logprobs(self) -> dict[str, Any] | None:
        places, self._places = self._places, ()
        if not places:
            return None
        return logprobs_of(self._asked, places, self._offsets)


def last_chunk(asked: Asked, answered: Sequence[Answered]) -> bytes:
    """The chunk without choices that tells the totals."""
    return event({**head(asked, kind(asked)), "choices": [], **totals(asked, answered)})


def kind(asked: Asked) -> str:
    """The `object` of a stream's chunks."""
    return "chat.completion.chunk" if asked.is_chat else "text_completion"


def event(value: Mapping[str, Any], *, in_pieces: bool = False) -> bytes:
    """A server-sent event with a JSON object."""
    return b"data: %b\n\n" % dumped(value, in_pieces=in_pieces)
