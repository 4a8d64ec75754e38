"""Messages from a variant turned into the client's; the token ids in them are remembered.

In an answer's streaming messages everything but the tensors' contents repeats. What precedes the
contents is therefore parsed once and looked up from then on, which takes microseconds.
"""

from typing import Any, NamedTuple

from trt_mtp.errors import InputError
from trt_mtp.serve.contract import IN_FLIGHT, NUM_INPUT
from trt_mtp.serve.kserve import (
    changed,
    fields,
    is_final,
    parse_stream_response,
    read_varint,
    remove_outputs,
    write_varint,
)

IDS = "output_ids"
CLOSING = "finish_reason"  # an output that only the last message with outputs has
FAILED_OVER = "failed_over"  # parameter of a final response: the variants that were left

_STREAM_RESPONSE = 0x12  # tag of ModelStreamInferResponse.infer_response
_OUTPUTS, _CONTENTS = 0x2A, 0x32  # tags of ModelInferResponse.outputs and .raw_output_contents
INT32_BYTES = 4
MAX_IDS_BYTES = 1 << 24  # of an answer's tokens
_MAX_HEADS = 64  # that are remembered; they differ by the number of tokens in a message
_NOTHING = (b"", b"\x32\x04\0\0\0\0")  # contents: none, or those of an empty text_output


class Head(NamedTuple):
    """What precedes the contents in a streaming message, as the client gets it."""

    replacement: bytes
    num_contents: int
    kept: tuple[int, ...]  # indices of the contents that the client asked for
    ids: int  # index of the token ids; -1 where there are none
    in_flight: int  # index of the variant's load; the same


class ResponseRewriter:
    """Reads the messages of one request on one variant; look at its attributes after each."""

    def __init__(
        self,
        upstream_id: bytes,
        change: bytes,
        hidden: frozenset[str],
        emitted: bytearray,
        left: str,
        is_on_trial: bool = False,
    ) -> None:
        """`change` is applied to every message; outputs in `hidden` are taken out of it.

        Token ids are appended to `emitted` as INT32. `left` names the variants that the request
        left before; empty for none. The variant says when it accepted the grammar of a request that
        `is_on_trial`.
        """
        self.is_over = False  # the last message was read
        self.is_on_trial = is_on_trial  # its grammar is not known to be accepted
        self.is_complete = False  # all tokens were read, perhaps not the last message
        self.error = ""  # what a message said in place of outputs
        self.num_in_flight: int | None = None  # on the variant, as the latest message says
        self.num_input_tokens = 0  # of the prompt, from when the variant has told
        self.last = b""  # the latest message with outputs: the counters come with the last one
        self._upstream_id = upstream_id.decode()
        self._change = change
        self._hidden = hidden
        self._emitted = emitted
        self._left = left
        self._heads: dict[bytes, Head] = {}
        self._head_size = 0

    def read(self, raw: bytes, is_empty_final_wanted: bool) -> bytes | None:
        """What the client gets for the message `raw`; None for nothing."""
        start = 2 if len(raw) < 130 else 3  # of the ModelInferResponse, where it is < 16 KiB
        at = start + self._head_size
        head = self._heads.get(raw[start:at])
        if head is None:
            return self._read_parsed(raw, is_empty_final_wanted)
        spans = []
        while at + 1 < len(raw) and raw[at] == _CONTENTS:
            content_at, size, value_at = at, raw[at + 1], at + 2
            if size > 0x7F:
                size, value_at = read_varint(raw, at + 1)
            at = value_at + size
            spans.append((content_at, value_at, at))
        if len(spans) != head.num_contents or at != len(raw):
            return self._read_parsed(raw, is_empty_final_wanted)
        self.last = raw
        if head.ids >= 0:
            _, value_at, end = spans[head.ids]
            self._note_ids(raw[value_at:end])
        if head.in_flight >= 0:
            _, value_at, end = spans[head.in_flight]
            self.num_in_flight = _number(raw[value_at:end])
        contents = b"".join([raw[spans[i][0] : spans[i][2]] for i in head.kept])
        if contents in _NOTHING and len(head.kept) < head.num_contents:
            return None
        size = len(head.replacement) + len(contents)
        return b"".join((b"\x12", write_varint(size), head.replacement, contents))

    def _read_parsed(self, raw: bytes, is_empty_final_wanted: bool) -> bytes | None:
        """The same for a message whose head is not known, or that ends the answer."""
        response = parse_stream_response(raw)
        infer = response.infer_response
        if infer.id not in (self._upstream_id, ""):
            return None  # an earlier request's on this stream
        if response.error_message:
            self.error = str(response.error_message)
            self.is_over = is_final(response)
            return None
        self.is_over = is_final(response)
        is_closing = any(output.name == CLOSING for output in infer.outputs)
        self.is_complete |= is_closing
        is_last = self.is_over or is_closing
        if infer.outputs:
            if self._is_acceptance(infer):
                return None
            self.last = raw
            self._note_ids(_contents(infer, IDS))
            self.num_input_tokens = _number(_contents(infer, NUM_INPUT)) or self.num_input_tokens
            self.num_in_flight = _number(_contents(infer, IN_FLIGHT))
        elif not is_empty_final_wanted:
            return None
        if not is_last:
            self._learn_head(raw, infer)
        remove_outputs(infer, self._hidden)
        if IDS in self._hidden and not is_last and _is_empty(infer):
            return None
        if is_last and self._left:
            infer.parameters[FAILED_OVER].string_param = self._left
        return changed(response, self._change)

    def _note_ids(self, content: bytes) -> None:
        """Remember token ids; raises InputError for more than any context holds."""
        self._emitted += content
        if len(self._emitted) > MAX_IDS_BYTES:
            raise InputError(f"it sends more than {MAX_IDS_BYTES // INT32_BYTES:,} tokens")

    def _is_acceptance(self, infer: Any) -> bool:
        """Whether a message says that the grammar was accepted, and nothing else."""
        was_on_trial, self.is_on_trial = self.is_on_trial, False
        return was_on_trial and [output.name for output in infer.outputs] == [IN_FLIGHT]

    def _learn_head(self, raw: bytes, infer: Any) -> None:
        """Remember what precedes the contents of `raw`, so that its like needn't be parsed."""
        if raw[:1] != bytes([_STREAM_RESPONSE]) or len(infer.outputs) != len(
            infer.raw_output_contents
        ):
            return
        size, start = read_varint(raw, 1)
        if start + size != len(raw):  # it has other fields besides
            return
        if len(self._heads) == _MAX_HEADS:
            self._heads.clear()
        names = [output.name for output in infer.outputs]
        kept = [i for i, name in enumerate(names) if name not in self._hidden]
        parts, left_names, end = [], iter(names), start
        for tag, field_at, _, field_end in fields(raw, start):
            if tag == _CONTENTS:
                break
            if tag != _OUTPUTS or next(left_names) not in self._hidden:
                parts.append(raw[field_at:field_end])
            end = field_end
        self._head_size = end - start
        self._heads[raw[start:end]] = Head(
            b"".join(parts) + self._change,
            len(names),
            tuple(kept),
            names.index(IDS) if IDS in names else -1,
            names.index(IN_FLIGHT) if IN_FLIGHT in names else -1,
        )


def _number(content: bytes) -> int | None:
    """The count in an output's contents; None where it is absent, or no INT32 of 0 or more.

    Others' requests are decided by it: what can't be would cost all of them.
    """
    if len(content) != INT32_BYTES:
        return None
    number = int.from_bytes(content, "little", signed=True)
    return number if number >= 0 else None


def _contents(infer: Any, name: str) -> bytes:
    """The raw contents of an output of a message; empty without it."""
    for output, content in zip(infer.outputs, infer.raw_output_contents, strict=False):
        if output.name == name:
            return bytes(content)
    return b""


def _is_empty(infer: Any) -> bool:
    """True for a message that says nothing to a client who didn't ask for token ids."""
    return all(
        output.name == "text_output" and not any(content)
        for output, content in zip(infer.outputs, infer.raw_output_contents, strict=False)
    )
