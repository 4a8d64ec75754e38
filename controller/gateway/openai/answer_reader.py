"""A variant's messages read for their text, and the last one for all that it tells.

In an answer's streaming messages everything but the text repeats. What precedes it is parsed once
and compared from then on, which takes about a microsecond.
"""

from typing import Any, NamedTuple

import grpc

from trt_mtp.controller.gateway.failure import AnswerError
from trt_mtp.controller.gateway.openai.logprobs import Place, places_of
from trt_mtp.controller.gateway.response_rewriter import CLOSING, FAILED_OVER
from trt_mtp.serve.contract import LOGPROBS, NUM_INPUT, NUM_REASONING
from trt_mtp.serve.kserve import (
    int_outputs,
    parse_stream_response,
    read_varint,
    text_output,
    uint64_output,
    write_varint,
)

TEXT = "text_output"
NUMBERS = (
    NUM_INPUT, "num_output_tokens", "num_steps", "num_draft_tokens",
    "num_accepted_draft_tokens", "accepted_per_position",
)  # fmt: skip
OUTPUTS = (TEXT, CLOSING, *NUMBERS, "seed")  # that a variant is asked for
OPTIONAL_OUTPUTS = frozenset({NUM_REASONING})  # the same, of a variant that has them
FINISH_REASONS = ("stop", "length")
_CONTENTS = b"\x32"  # tag of ModelInferResponse.raw_output_contents


class Closing(NamedTuple):
    """What the last message of an answer tells of it."""

    finish_reason: str
    numbers: dict[str, tuple[int, ...]]
    seed: int | None
    failed_over: str  # the variants that were left, empty for none

    def number(self, name: str) -> int:
        """A counter; 0 where the variant doesn't have it."""
        return next(iter(self.numbers.get(name, ())), 0)


def read_closing(infer: Any) -> Closing:
    """The pb.ModelInferResponse that ends an answer; raises AnswerError for one that broke off."""
    reason = text_output(infer, CLOSING) or "stop"
    if reason not in FINISH_REASONS:
        raise AnswerError(grpc.StatusCode.INTERNAL, f"the answer broke off ({reason})")
    return Closing(
        reason,
        int_outputs(infer, (*NUMBERS, NUM_REASONING)),
        uint64_output(infer, "seed"),
        str(infer.parameters[FAILED_OVER].string_param) if FAILED_OVER in infer.parameters else "",
    )


class AnswerReader:
    """Reads the messages of one streamed answer; `closing` is there after the last one."""

    def __init__(self) -> None:
        self.closing: Closing | None = None
        self.num_input_tokens = 0  # until the first text is read
        self.places: list[Place] = []  # of messages read: who takes them empties it
        self._head = b""  # what precedes the text, after the message's size

    def read(self, raw: bytes) -> str:
        """The text that a message brings; raises AnswerError where it ends the answer badly."""
        start = 2 if len(raw) < 130 else 3  # of the ModelInferResponse, where it is < 16 KiB
        at = start + len(self._head)
        if self._head and raw[start:at] == self._head and raw[at : at + 1] == _CONTENTS:
            size, value_at = raw[at + 1], at + 2
            if size > 0x7F:
                size, value_at = read_varint(raw, at + 1)
            if value_at + size == len(raw):
                return raw[value_at + 4 :].decode(errors="replace")
        return self._read_parsed(raw, start)

    def end(self) -> Closing:
        """`closing`; raises AnswerError for an answer without an end."""
        if self.closing is None:
            raise AnswerError(grpc.StatusCode.INTERNAL, "the variant ended without an answer")
        return self.closing

    def _read_parsed(self, raw: bytes, start: int) -> str:
        infer = parse_stream_response(raw).infer_response
        names = [output.name for output in infer.outputs]
        self.places += places_of(text_output(infer, LOGPROBS))
        if NUM_INPUT in names:
            told = int_outputs(infer, (NUM_INPUT,)).get(NUM_INPUT, ())
            self.num_input_tokens = next(iter(told), 0)
        if CLOSING in names:
            self.closing = read_closing(infer)
        elif names == [TEXT]:
            content = infer.raw_output_contents[0]
            tail = _CONTENTS + write_varint(len(content)) + content
            self._head = raw[start : len(raw) - len(tail)] if raw.endswith(tail) else b""
        return text_output(infer, TEXT)
