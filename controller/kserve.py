"""KServe v2 gRPC messages, changed as bytes.

Two rules of the protobuf encoding carry everything here: of a scalar field that occurs twice the
last one counts, and concatenated messages merge
(https://protobuf.dev/programming-guides/encoding/#last-one-wins). So a message is changed by
appending a small one, its long fields untouched.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2 as pb

from trt_mtp.errors import InputError

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
MAX_FIELDS = 2_048  # of one request; reading one is work per field, however small the field
EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
# the map entry of FINAL with bool_param true, as Triton writes it
FINAL_BYTES = b"\n\x15triton_final_response\x12\x02\x08\x01"

_LENGTH_DELIMITED = 2
_FIXED_SIZES = {1: 8, 5: 4}  # wire type -> bytes
_REQUEST_RAW_CONTENTS = 7
_STREAM_INFER_RESPONSE = 0x12  # tag of ModelStreamInferResponse.infer_response
_RESPONSE_NAME, _RESPONSE_VERSION, _RESPONSE_ID = 0x0A, 0x12, 0x1A


class InferRequest(NamedTuple):
    """A ModelInferRequest; `message` is all of it but the tensors' raw bytes."""

    raw: bytes
    message: Any  # pb.ModelInferRequest
    contents: list[tuple[int, int]]  # where each raw_input_contents lies in `raw`

    def tensor(self, name: str) -> memoryview | None:
        """The raw bytes of input `name`, without copying them; None where it has none."""
        inputs = self.message.inputs
        for index in range(min(len(inputs), len(self.contents))):
            if inputs[index].name == name:
                start, end = self.contents[index]
                return memoryview(self.raw)[start:end]
        return None


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The varint at `at` and where the next byte lies; raises InputError when it is cut off."""
    value = shift = 0
    for index in range(at, min(at + 10, len(raw))):
        byte = raw[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise InputError("the message is not a protobuf message: a number in it is cut off")


def write_varint(value: int) -> bytes:
    """`value` as a varint.

    >>> write_varint(300)
    b'\\xac\\x02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_request(raw: bytes) -> InferRequest:
    """A ModelInferRequest from its bytes; the tensors' raw bytes are neither copied nor read.

    Raises InputError when `raw` is not one.
    """
    light: list[bytes] = []
    contents: list[tuple[int, int]] = []
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(raw):
            break
        field_at = at
        tag, at = read_varint(raw, at)
        start, at = _field_span(raw, tag & 7, at)
        if tag == _REQUEST_RAW_CONTENTS << 3 | _LENGTH_DELIMITED:
            contents.append((start, at))
        else:
            light.append(raw[field_at:at])
    if at != len(raw):
        raise InputError(f"the request has more than {MAX_FIELDS} fields; send fewer")
    return InferRequest(raw, _parse(pb.ModelInferRequest, b"".join(light)), contents)


def _field_span(raw: bytes, wire_type: int, at: int) -> tuple[int, int]:
    if wire_type == _LENGTH_DELIMITED:
        size, at = read_varint(raw, at)
        end = at + size
    elif wire_type == 0:
        end = read_varint(raw, at)[1]
    elif wire_type in _FIXED_SIZES:
        end = at + _FIXED_SIZES[wire_type]
    else:
        raise InputError(f"the message is not a protobuf message: wire type {wire_type}")
    if end > len(raw):
        raise InputError("the message is not a protobuf message: a field in it is cut off")
    return at, end


def _parse(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except Exception:  # protobuf's DecodeError; its module differs between implementations
        raise InputError(f"the message is not a {kind.DESCRIPTOR.name}") from None


def parameter_value(parameter: Any) -> bool | int | str | float | None:
    """The value of an InferParameter, whichever of its forms it has."""
    form = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, form) if form else None


def readdressed(raw: bytes, model_name: str, request_id: str, outputs: Iterable[str]) -> bytes:
    """The request `raw` for `model_name` under `request_id`, asking for `outputs` as well.

    It also asks for an empty final response, without which the end of an answer may be invisible.
    """
    change = pb.ModelInferRequest(model_name=model_name, id=request_id)
    change.outputs.extend(
        pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs
    )
    change.parameters[EMPTY_FINAL].bool_param = True
    return raw + bytes(change.SerializeToString())


def response_change(model_name: str, request_id: str, parameters: Mapping[str, str]) -> bytes:
    """What to append to every ModelInferResponse of a request, for `spliced` and friends."""
    change = pb.ModelInferResponse(model_name=model_name)
    for key, value in parameters.items():
        change.parameters[key].string_param = value
    identity = request_id.encode()
    # written by hand: protobuf leaves an empty id out, and here it has to win over another
    return bytes(change.SerializeToString()) + b"\x1a" + write_varint(len(identity)) + identity


class ResponseHead(NamedTuple):
    """Where the ModelInferResponse of a stream response lies, and the request it answers."""

    start: int  # it ends where the stream response ends
    request_id: bytes


def response_head(raw: bytes) -> ResponseHead | None:
    """Read as little of a ModelStreamInferResponse as tells its request.

    None for one that Triton's usual order of fields doesn't fit (an error, say): parse it.
    """
    try:
        if raw[0] != _STREAM_INFER_RESPONSE:
            return None
        size, start = read_varint(raw, 1)
        if start + size != len(raw):
            return None
        at = start
        for tag in (_RESPONSE_NAME, _RESPONSE_VERSION, _RESPONSE_ID):
            if raw[at] == tag:
                length, value_at = read_varint(raw, at + 1)
                at = value_at + length
                if tag == _RESPONSE_ID:
                    return ResponseHead(start, raw[value_at:at]) if at <= len(raw) else None
    except (IndexError, InputError):
        pass
    return None


def spliced(raw: bytes, start: int, change: bytes) -> bytes:
    """A stream response whose ModelInferResponse begins at `start`, with `change` applied."""
    return b"".join((b"\x12", write_varint(len(raw) - start + len(change)), raw[start:], change))


def changed(response: Any, change: bytes) -> bytes:
    """A parsed stream response with `change` applied to its ModelInferResponse."""
    response.infer_response.MergeFromString(change)
    return bytes(response.SerializeToString())


def parse_stream_response(raw: bytes) -> Any:
    """The pb.ModelStreamInferResponse in `raw`; raises InputError when it is none."""
    return _parse(pb.ModelStreamInferResponse, raw)


def is_final(response: Any) -> bool:
    """True for the last message that Triton sends about a request."""
    parameters = response.infer_response.parameters
    if FINAL in parameters:
        return bool(parameters[FINAL].bool_param)
    # an error without the parameter is a request that never reached a model
    return bool(response.error_message)


def error_response(message: str, request_id: str, parameters: Mapping[str, str]) -> bytes:
    """The ModelStreamInferResponse that ends one request of a stream and leaves the stream open."""
    response = pb.ModelStreamInferResponse(error_message=message)
    response.infer_response.id = request_id
    for key, value in parameters.items():
        response.infer_response.parameters[key].string_param = value
    response.infer_response.parameters[FINAL].bool_param = True
    return bytes(response.SerializeToString())


@dataclass(frozen=True, slots=True)
class OutputFilter:
    """Outputs that the gateway asked for and the client didn't."""

    names: frozenset[str]
    pattern: re.Pattern[bytes]

    @classmethod
    def of(cls, names: Iterable[str]) -> "OutputFilter":
        """The filter that takes out `names`, of which there is at least one."""
        chosen = frozenset(names)
        return cls(chosen, re.compile(b"|".join(sorted(name.encode() for name in chosen))))

    def may_apply(self, raw: bytes) -> bool:
        """False where `raw` surely holds none of the outputs."""
        return self.pattern.search(raw) is not None

    def apply(self, infer_response: Any) -> None:
        """Remove the outputs from a pb.ModelInferResponse, their raw contents with them."""
        outputs, contents = infer_response.outputs, infer_response.raw_output_contents
        for index in reversed(range(len(outputs))):
            if outputs[index].name in self.names:
                del outputs[index]
                if index < len(contents):
                    del contents[index]


def int_outputs(infer_response: Any, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The INT32 outputs among `names` that the response has."""
    found = {}
    wanted = frozenset(names)
    for output, content in zip(
        infer_response.outputs, infer_response.raw_output_contents, strict=False
    ):
        if output.name in wanted and output.datatype == "INT32" and len(content) % 4 == 0:
            found[output.name] = struct.unpack(f"<{len(content) // 4}i", content)
    return found


def text_output(infer_response: Any, name: str) -> str:
    """The first element of BYTES output `name`, or an empty string."""
    for output, content in zip(
        infer_response.outputs, infer_response.raw_output_contents, strict=False
    ):
        if output.name == name and output.datatype == "BYTES" and len(content) >= 4:
            size = int.from_bytes(content[:4], "little")
            return bytes(content[4 : 4 + size]).decode(errors="replace")
    return ""
