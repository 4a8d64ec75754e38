"""KServe v2 gRPC messages, changed as bytes.

Two rules of the protobuf encoding carry everything here: of a scalar field that occurs twice the
last one counts, and concatenated messages merge
(https://protobuf.dev/programming-guides/encoding/#last-one-wins). So a message is changed by
appending a small one, its long fields untouched.
"""

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2 as pb

from trt_mtp.errors import InputError
from trt_mtp.serve.contract import CANCEL

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
MAX_FIELDS = 2_048  # of one request; reading one is work per field, however small the field
MAX_PARSED_BYTES = 1024 * 1024  # of one request without its raw tensors, which aren't parsed
EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
# the map entry of FINAL with bool_param true, as Triton writes it
FINAL_BYTES = b"\n\x15triton_final_response\x12\x02\x08\x01"

_ERROR_MESSAGE = b"\x0a"  # tag of ModelStreamInferResponse.error_message
_LENGTH_DELIMITED = 2
_FIXED_SIZES = {1: 8, 5: 4}  # wire type -> bytes
_REQUEST_RAW_CONTENTS = 7
_NO_VERSION = b"\x12\0"  # an empty model_version, which protobuf itself would leave out


class InferRequest(NamedTuple):
    """A ModelInferRequest; `message` is all of it but the tensors' raw bytes."""

    raw: bytes
    message: Any  # pb.ModelInferRequest
    contents: list[tuple[int, int]]  # where each raw_input_contents lies in `raw`
    names: list[str]  # of the inputs

    def tensor(self, name: str) -> memoryview | None:
        """The raw bytes of input `name`, without copying them; None if it has none."""
        if name not in self.names:
            return None
        index = self.names.index(name)
        if index >= len(self.contents):
            return None
        start, end = self.contents[index]
        return memoryview(self.raw)[start:end]


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The varint at `at` and where the next byte lies; raises InputError if it is cut off."""
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

    Raises InputError if `raw` is not one, or has too much in it to be parsed.
    """
    light: list[bytes] = []
    num_bytes = 0
    contents: list[tuple[int, int]] = []
    for number, (tag, field_at, start, end) in enumerate(fields(raw, 0)):
        if number == MAX_FIELDS:
            raise InputError(f"the request has more than {MAX_FIELDS} fields; send fewer")
        if tag == _REQUEST_RAW_CONTENTS << 3 | _LENGTH_DELIMITED:
            contents.append((start, end))
        else:
            num_bytes += end - field_at
            if num_bytes > MAX_PARSED_BYTES:
                raise InputError(
                    f"the request has more than {MAX_PARSED_BYTES} bytes outside of "
                    f"raw_input_contents; send long tensors there"
                )
            light.append(raw[field_at:end])
    message = parse_message(pb.ModelInferRequest, b"".join(light))
    return InferRequest(raw, message, contents, _names(message))


def made_request(message: Any) -> InferRequest:
    """The request that a pb.ModelInferRequest is which was made here; its raw contents leave it."""
    parts = list(message.raw_input_contents)
    del message.raw_input_contents[:]
    raw = bytearray(message.SerializeToString())
    contents = []
    for part in parts:
        raw += bytes([_REQUEST_RAW_CONTENTS << 3 | _LENGTH_DELIMITED]) + write_varint(len(part))
        contents.append((len(raw), len(raw) + len(part)))
        raw += part
    return InferRequest(bytes(raw), message, contents, _names(message))


def _names(message: Any) -> list[str]:
    return [tensor.name for tensor in message.inputs]


def fields(raw: bytes, at: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message from `at` to the end: tag, where it begins, its value, its end.

    Raises InputError if the bytes are no message.
    """
    while at < len(raw):
        field_at = at
        tag, at = read_varint(raw, at)
        start, at = _field_span(raw, tag & 7, at)
        yield tag, field_at, start, at


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


def parse_message(kind: Any, raw: bytes) -> Any:
    """The message of `kind` in `raw`; raises InputError if it is none."""
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

    The model's version is for Triton to choose. It is also asked for an empty final response,
    without which the end of an answer may be invisible.
    """
    change = pb.ModelInferRequest(model_name=model_name, id=request_id)
    change.outputs.extend(
        pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs
    )
    change.parameters[EMPTY_FINAL].bool_param = True
    return raw + _NO_VERSION + bytes(change.SerializeToString())


# datatype of an input -> its format for struct, and where a message in typed form has it
_TYPED = {
    "INT32": ("i", "int_contents"),
    "UINT64": ("Q", "uint64_contents"),
    "BOOL": ("?", "bool_contents"),
}


def with_input(raw: bytes, name: str, datatype: str, values: bytes, *, is_raw: bool) -> bytes:
    """The request `raw` with one more input, INT32, UINT64 or BOOL, whose elements are `values`.

    `is_raw` says in which form the other inputs are: Triton takes one form or the other.
    """
    form, field = _TYPED[datatype]
    count = len(values) // struct.calcsize(f"<{form}")
    change = pb.ModelInferRequest()
    tensor = change.inputs.add(name=name, datatype=datatype, shape=[count])
    if is_raw:
        change.raw_input_contents.append(values)
    else:
        getattr(tensor.contents, field).extend(struct.unpack(f"<{count}{form}", values))
    return raw + bytes(change.SerializeToString())


def without_input(raw: bytes, name: str) -> bytes:
    """The request `raw` without input `name`, and without its raw contents."""
    message = pb.ModelInferRequest.FromString(raw)
    names = [tensor.name for tensor in message.inputs]
    if name in names:
        index = names.index(name)
        del message.inputs[index]
        if index < len(message.raw_input_contents):
            del message.raw_input_contents[index]
    return bytes(message.SerializeToString())


def int_input(request: InferRequest, name: str) -> bytes:
    """The elements of an INT32 input as bytes; none if it isn't there."""
    content = request.tensor(name)
    if content is not None:
        return bytes(content)
    values = [v for t in request.message.inputs if t.name == name for v in t.contents.int_contents]
    return struct.pack(f"<{len(values)}i", *values)


def response_change(model_name: str, request_id: str, parameters: Mapping[str, str]) -> bytes:
    """What to append to every ModelInferResponse of a request."""
    change = pb.ModelInferResponse(model_name=model_name)
    for key, value in parameters.items():
        change.parameters[key].string_param = value
    identity = request_id.encode()
    # written by hand: protobuf leaves an empty id out, and here it must win over another
    return bytes(change.SerializeToString()) + b"\x1a" + write_varint(len(identity)) + identity


def changed(response: Any, change: bytes) -> bytes:
    """A parsed stream response with `change` applied to its ModelInferResponse."""
    response.infer_response.MergeFromString(change)
    return bytes(response.SerializeToString())


def parse_stream_response(raw: bytes) -> Any:
    """The pb.ModelStreamInferResponse in `raw`; raises InputError if it is none."""
    return parse_message(pb.ModelStreamInferResponse, raw)


def is_final(response: Any) -> bool:
    """True for the last message that Triton sends about a request."""
    parameters = response.infer_response.parameters
    if FINAL in parameters:
        return bool(parameters[FINAL].bool_param)
    # an error without the parameter is a request that never reached a model
    return bool(response.error_message)


def may_end_answer(raw: bytes) -> bool:
    """False for a message of a stream that is certainly not the last one about its request."""
    return FINAL_BYTES in raw or raw[:1] == _ERROR_MESSAGE


def ends_answer(raw: bytes, request_id: str) -> bool:
    """True for the last message of the stream about request `request_id`."""
    if not may_end_answer(raw):
        return False
    response = parse_stream_response(raw)
    return is_final(response) and response.infer_response.id in (request_id, "")


def cancel_request(model_name: str, request_id: str, cancelled_id: str) -> bytes:
    """The ModelInferRequest that asks a variant to end its request `cancelled_id`."""
    request = pb.ModelInferRequest(model_name=model_name, id=request_id)
    request.parameters[EMPTY_FINAL].bool_param = True
    request.inputs.add(name=CANCEL, datatype="BYTES", shape=[1])
    content = cancelled_id.encode()
    request.raw_input_contents.append(len(content).to_bytes(4, "little") + content)
    return bytes(request.SerializeToString())


def error_response(message: str, request_id: str, parameters: Mapping[str, str]) -> bytes:
    """The ModelStreamInferResponse that ends one request of a stream and leaves the stream open."""
    response = pb.ModelStreamInferResponse(error_message=message)
    response.infer_response.id = request_id
    for key, value in parameters.items():
        response.infer_response.parameters[key].string_param = value
    response.infer_response.parameters[FINAL].bool_param = True
    return bytes(response.SerializeToString())


def final_response(change: bytes) -> bytes:
    """The ModelStreamInferResponse that ends an answer and brings nothing."""
    response = pb.ModelStreamInferResponse()
    response.infer_response.parameters[FINAL].bool_param = True
    return changed(response, change)


def remove_outputs(infer_response: Any, names: Collection[str]) -> None:
    """Remove outputs from a pb.ModelInferResponse, their raw contents with them."""
    outputs, contents = infer_response.outputs, infer_response.raw_output_contents
    for index in reversed(range(len(outputs))):
        if outputs[index].name in names:
            del outputs[index]
            if index < len(contents):
                del contents[index]


def int_outputs(infer_response: Any, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The INT32 outputs among `names` that the response has."""
    values = {}
    wanted = frozenset(names)
    for output, content in zip(
        infer_response.outputs, infer_response.raw_output_contents, strict=False
    ):
        if output.name in wanted and output.datatype == "INT32" and len(content) % 4 == 0:
            values[output.name] = struct.unpack(f"<{len(content) // 4}i", content)
    return values


def uint64_output(infer_response: Any, name: str) -> int | None:
    """The first element of UINT64 output `name`, None without it."""
    for output, content in zip(
        infer_response.outputs, infer_response.raw_output_contents, strict=False
    ):
        if output.name == name and output.datatype == "UINT64" and len(content) >= 8:
            return int.from_bytes(content[:8], "little")
    return None


def bool_output(infer_response: Any, name: str) -> bool:
    """The first element of BOOL output `name`, or false."""
    for output, content in zip(
        infer_response.outputs, infer_response.raw_output_contents, strict=False
    ):
        if output.name == name and output.datatype == "BOOL":
            return any(content[:1])
    return False


def text_output(infer_response: Any, name: str) -> str:
    """The first element of BYTES output `name`, or an empty string."""
    for output, content in zip(
        infer_response.outputs, infer_response.raw_output_contents, strict=False
    ):
        if output.name == name and output.datatype == "BYTES" and len(content) >= 4:
            size = int.from_bytes(content[:4], "little")
            return bytes(content[4 : 4 + size]).decode(errors="replace")
    return ""
