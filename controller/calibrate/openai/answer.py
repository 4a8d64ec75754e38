"""An answer read out of the pieces of its stream, after it is over."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.openai.speculation import Told, speculation_of, told
from trt_mtp.controller.calibrate.openai.sse import DONE, Event, events

NO_USAGE = "tells no usage: the chunks of an answer are counted as its tokens"
SPREAD = (
    "tells accepted drafts as one sum: over the draft positions they are taken to decay as usual"
)
TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls")  # of a delta
MAX_MESSAGE_CHARS = 300
MAX_TOKENS = 2**31  # of an answer or a prompt that is believed


@dataclass(slots=True)
class RawStream:
    """The pieces of an answer's stream, with the times when they came."""

    sent_s: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    error: str = ""
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer, and what its server doesn't tell."""

    answer: Answer
    notes: tuple[str, ...] = ()


class ChunkError(Exception):
    """An event that is no chunk of an answer."""


@dataclass(slots=True)
class _Chunks:
    """What the chunks of one answer have said so far."""

    texts_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    num_first_tokens: int = 0  # as the first text's own usage says, where it has one
    told: Told | None = None
    is_whole: bool = False

    def add(self, event: Event) -> None:
        """Take the next event; raises ChunkError for an error of the server's."""
        if event.data.strip() == DONE:
            self.is_whole = True
            return
        chunk = _chunk(event.data)
        self.told = told(chunk) or self.told
        usage = chunk.get("usage")
        if isinstance(usage, Mapping):
            self.usage = usage
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(choice, Mapping):
            self._choice(choice, event.arrived_s)

    def _choice(self, choice: Mapping[str, Any], arrived_s: float) -> None:
        delta = choice.get("delta")
        if isinstance(delta, Mapping) and any(delta.get(name) for name in TEXTS):
            if not self.texts_s:
                self.num_first_tokens = _number(self.usage, "completion_tokens")
            self.texts_s.append(arrived_s)
        if choice.get("finish_reason"):
            self.ended_s = arrived_s


def read_answer(raw: RawStream, draft_length: int | None = None) -> Reading:
    """The answer in a stream; `draft_length` is its server's where it is known.

    Its last token is there when the finish reason is, which comes with it or right after. At draft
    length 0 each token after the first is a step.
    """
    if raw.error:
        return Reading(Answer(error=raw.error, is_lost=raw.is_lost))
    chunks = _Chunks()
    try:
        for event in events(raw.pieces):
            chunks.add(event)
    except ChunkError as error:
        return Reading(Answer(error=str(error)))
    if chunks.ended_s is None and not chunks.is_whole:
        return Reading(Answer(error="the stream ended before the answer did"))
    if not chunks.texts_s:
        return Reading(Answer(error="the answer has no text"))
    drafted = _drafted(chunks.told)
    if drafted is not None and draft_length not in (None, drafted):
        wrong = f"the server drafts {drafted} tokens, and is given as draft length {draft_length}"
        return Reading(Answer(error=wrong))
    return _reading(raw, chunks, draft_length)


def _reading(raw: RawStream, chunks: _Chunks, draft_length: int | None) -> Reading:
    notes: list[str] = []
    times = chunks.texts_s
    num_tokens = _number(chunks.usage, "completion_tokens")
    if not num_tokens:
        num_tokens = len(times)
        notes.append(NO_USAGE)
    steps, accepted = 0, tuple[int, ...]()
    if draft_length == 0:
        steps = num_tokens - 1
    elif chunks.told is not None:
        known = speculation_of(chunks.told, num_tokens, draft_length)
        if known is not None:
            steps, accepted = known.num_steps, known.accepted_per_position
            notes += [SPREAD] if known.is_spread else []
    answer = Answer(
        ttft_s=times[0] - raw.sent_s,
        decode_s=max(chunks.ended_s or 0.0, times[-1]) - times[0],
        num_first_tokens=min(chunks.num_first_tokens or _num_first(times, num_tokens), num_tokens),
        num_output_tokens=num_tokens,
        num_input_tokens=_number(chunks.usage, "prompt_tokens"),
        num_steps=steps,
        accepted_per_position=accepted,
        itl_s=tuple(after - before for before, after in itertools.pairwise(times)),
    )
    return Reading(answer, tuple(notes))


def _num_first(times: Sequence[float], num_tokens: int) -> int:
    """The tokens of the first moment: one, or the share of the texts that came with it."""
    at_once = times.count(times[0])
    return 1 if at_once == 1 else round(num_tokens * at_once / len(times))


def _chunk(data: str) -> Mapping[str, Any]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        raise ChunkError(f"the stream has an event that is not JSON: {data!r:.60}") from None
    if not isinstance(chunk, dict):
        raise ChunkError(f"the stream has an event that is not a JSON object: {data!r:.60}")
    if chunk.get("error"):
        raise ChunkError(message_of(chunk))
    return chunk


def message_of(body: Any) -> str:
    """The message of an error, in OpenAI's form or another."""
    if isinstance(body, Mapping):
        for name in ("error", "message", "detail"):
            if body.get(name):
                return message_of(body[name])
    return " ".join(str(body).split())[:MAX_MESSAGE_CHARS]


def _drafted(told: Told | None) -> int | None:
    """The draft length that a server tells; None where it doesn't."""
    return told.draft_length if told is not None else None


def _number(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if type(value) is int and 0 < value < MAX_TOKENS else 0
