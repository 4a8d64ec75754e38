"""Envoy's ext_proc messages, as much of them as the picker reads and writes.

envoy/service/ext_proc/v3/external_processor.proto and envoy/config/core/v3/base.proto of
github.com/envoyproxy/envoy have all fields. Those that are not named here are skipped as protobuf
skips unknown ones, so that the gateway needs no package of Envoy's.
"""

from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
PROCESS = "Process"

_PACKAGE = "trt_mtp.ext_proc"
_KINDS = {
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
}
# message -> its fields: name, number, and type; * for several
_MESSAGES = {
    "HeaderValue": "key 1 string, value 2 string, raw_value 3 bytes",
    "HeaderMap": "headers 1 *HeaderValue",
    "HttpHeaders": "headers 1 HeaderMap, end_of_stream 3 bool",
    "HttpBody": "body 1 bytes, end_of_stream 2 bool",
    "ProcessingRequest": "request_headers 2 HttpHeaders, response_headers 3 HttpHeaders, "
    "request_body 4 HttpBody, response_body 5 HttpBody",
    "HeaderValueOption": "header 1 HeaderValue, append_action 3 uint32",
    "HeaderMutation": "set_headers 1 *HeaderValueOption, remove_headers 2 *string",
    "BodyMutation": "body 1 bytes",
    "CommonResponse": "header_mutation 2 HeaderMutation, body_mutation 3 BodyMutation, "
    "clear_route_cache 5 bool",
    "PhaseResponse": "response 1 CommonResponse",
    "HttpStatus": "code 1 uint32",
    "GrpcStatus": "status 1 uint32",
    "ImmediateResponse": "status 1 HttpStatus, headers 2 HeaderMutation, body 3 bytes, "
    "grpc_status 4 GrpcStatus",
    "ProcessingResponse": "request_headers 1 PhaseResponse, response_headers 2 PhaseResponse, "
    "request_body 3 PhaseResponse, response_body 4 PhaseResponse, "
    "immediate_response 7 ImmediateResponse",
}
_OVERWRITE = 2  # HeaderValueOption.append_action: OVERWRITE_IF_EXISTS_OR_ADD


def _classes() -> dict[str, Any]:
    """The class of each message."""
    file = descriptor_pb2.FileDescriptorProto(
        name="trt_mtp/ext_proc.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split(", "):
            _add_field(message, *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _add_field(message: Any, name: str, number: str, kind: str) -> None:
    bare = kind.removeprefix("*")
    field = message.field.add(name=name, number=int(number))
    field.label = field.LABEL_REPEATED if kind != bare else field.LABEL_OPTIONAL
    field.type = _KINDS.get(bare, field.TYPE_MESSAGE)
    if bare not in _KINDS:
        field.type_name = f".{_PACKAGE}.{bare}"


_CLASSES = _classes()
ProcessingRequest = _CLASSES["ProcessingRequest"]
ProcessingResponse = _CLASSES["ProcessingResponse"]


def headers_of(message: Any) -> dict[str, str]:
    """The headers in an HttpHeaders; those with the same name are one, parted by commas."""
    found: dict[str, str] = {}
    for each in message.headers.headers:
        value = (each.raw_value or each.value.encode()).decode("latin-1")
        found[each.key] = f"{found[each.key]},{value}" if each.key in found else value
    return found


def set_headers(mutation: Any, headers: Iterable[tuple[str, str]]) -> None:
    """Have a HeaderMutation set headers, whether they are there or not."""
    for name, value in headers:
        option = mutation.set_headers.add(append_action=_OVERWRITE)
        option.header.key, option.header.raw_value = name, value.encode()
