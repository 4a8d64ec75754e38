"""What Triton says of a server and its models over HTTP, made of the messages of its gRPC.

Triton prints every field: zeros and empty lists as well, 64-bit integers as numbers (where
protobuf's own JSON has texts), and a message only if it is there.
"""

from collections.abc import Mapping
from typing import Any


def message_json(message: Any) -> Mapping[str, Any]:
    """A protobuf message as the JSON object that Triton makes of it."""
    return {
        field.name: _value_json(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if _is_printed(message, field)
    }


def _is_printed(message: Any, field: Any) -> bool:
    """A field that may be absent is printed only if it is there."""
    return not field.has_presence or bool(message.HasField(field.name))


def _value_json(field: Any, value: Any) -> Any:
    if hasattr(value, "items"):
        of_entry = field.message_type.fields_by_name["value"]
        return {str(key): _element_json(of_entry, entry) for key, entry in value.items()}
    if hasattr(value, "extend"):  # repeated
        return [_element_json(field, element) for element in value]
    return _element_json(field, value)


def _element_json(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return message_json(value)
    return value if field.enum_type is None else field.enum_type.values_by_number[value].name
