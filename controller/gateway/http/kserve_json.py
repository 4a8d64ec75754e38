"""KServe v2 inference over HTTP: JSON, with tensors in it or in binary after it, to and from pb.

github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md: the size of the
JSON is in a header, each tensor's in its binary_data_size; tensors follow in the order of the JSON.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway.http.generate_json import (
    add_parameter,
    json_object,
    output_values,
    tensor_contents,
    utf8,
)
from trt_mtp.controller.request import MAX_NAME_CHARS
from trt_mtp.controller.request_limits import MAX_PARTS
from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import FINAL, parameter_value

JSON_SIZE = "Inference-Header-Content-Length"
MAX_DIMS = 8


class BinaryOutputs(NamedTuple):
    """Which outputs a client wants after the JSON and not in it."""

    stated: Mapping[str, bool]  # by name
    others: bool  # those of which it says nothing


class InferAnswer(NamedTuple):
    """The body of a response; the JSON alone where `json_size` is None."""

    body: bytes
    json_size: int | None


def read_infer(body: bytes, json_size: str | None, model: str) -> tuple[Any, BinaryOutputs]:
    """The pb.ModelInferRequest for `model` that a body means; raises InputError.

    `json_size` is the header JSON_SIZE where there is one.
    """
    size = _json_size(json_size, len(body))
    values = _head(body, size, model)
    request = pb.ModelInferRequest(model_name=model, id=utf8(values.get("id", ""), "id"))
    parameters = _object(values.get("parameters", {}), "parameters")
    others = parameters.pop("binary_data_output", False) is True
    for key, value in parameters.items():
        add_parameter(request, utf8(key, "a parameter's name"), value)
    at = size
    for tensor in _objects(values, "inputs"):
        at = _add_input(request, tensor, body, at)
    if at != len(body):
        raise InputError(f"{len(body) - at} bytes of the request's body belong to no input")
    return request, BinaryOutputs(dict(_add_outputs(request, values)), others)


def infer_answer(response: Any, wanted: BinaryOutputs) -> InferAnswer:
    """A pb.ModelInferResponse in the form that the client asked for."""
    outputs, contents = [], []
    for output, content in zip(response.outputs, response.raw_output_contents, strict=False):
        shown = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if wanted.stated.get(output.name, wanted.others):
            shown["parameters"] = {"binary_data_size": len(content)}
            contents.append(content)
        else:
            shown["data"] = output_values(output.datatype, content)
        outputs.append(shown)
    answer: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "parameters": {
            key: parameter_value(parameter)
            for key, parameter in response.parameters.items()
            if key != FINAL
        },
        "outputs": outputs,
    }
    if response.id:
        answer["id"] = response.id
    head = json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode()
    return InferAnswer(b"".join((head, *contents)), len(head) if contents else None)


def _head(body: bytes, size: int, model: str) -> dict[str, Any]:
    """The JSON; what looks like tensors behind JSON of another size is told the header.

    Triton takes a body without JSON as the one input of a model.
    """
    if not size and body:
        raise InputError(
            f"{JSON_SIZE} is 0, so the body would be the model's only input, and {model} has "
            f"several: send JSON with inputs before it, and its size in that header"
        )
    try:
        return json_object(body[:size])
    except InputError as error:
        if b'"binary_data_size"' not in body:
            raise
        raise InputError(
            f"{error}; with binary tensors, the header {JSON_SIZE} has to be the size of the JSON"
        ) from None


def _json_size(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not text.isascii() or not text.isdecimal() or len(text) > 12 or int(text) > size:
        raise InputError(f"{JSON_SIZE} has to be the size of the JSON, at most {size} here")
    return int(text)


def _add_input(request: Any, tensor: dict[str, Any], body: bytes, at: int) -> int:
    """Add an input; where the next one's binary contents begin."""
    name = utf8(tensor.get("name"), "an input's name")
    if len(name) > MAX_NAME_CHARS:
        raise InputError(
            f"an input's name has {len(name)} characters: at most {MAX_NAME_CHARS} are taken"
        )
    datatype = utf8(tensor.get("datatype"), f"the datatype of {name}")
    shape: Any = tensor.get("shape")
    if not _is_shape(shape):
        raise InputError(f"the shape of {name} has to be a list of whole numbers")
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    size = _object(tensor.get("parameters", {}), f"parameters of {name}").get("binary_data_size")
    if size is None:
        values = list(_flat(tensor.get("data")))
        if len(values) != math.prod(shape):
            raise InputError(f"{name} has {len(values)} values, and its shape says otherwise")
        request.raw_input_contents.append(tensor_contents(name, datatype, values))
        return at
    if not isinstance(size, int) or not 0 <= size <= len(body) - at:
        raise InputError(f"binary_data_size of {name} is not the size of what follows the JSON")
    request.raw_input_contents.append(body[at : at + size])
    return at + size


def _add_outputs(request: Any, values: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Add the outputs asked for; the names of those that say whether they are to be binary."""
    for output in _objects(values, "outputs"):
        name = utf8(output.get("name"), "an output's name")
        request.outputs.add(name=name)
        parameters = _object(output.get("parameters", {}), f"parameters of {name}")
        if "binary_data" in parameters:
            yield name, parameters["binary_data"] is True


def _objects(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = values.get(key, [])
    if not isinstance(found, list):
        raise InputError(f"{key} has to be a JSON list")
    if len(found) > MAX_PARTS:
        raise InputError(f"the request has {len(found)} {key}: at most {MAX_PARTS} are taken")
    return [_object(value, f"each of {key}") for value in found]


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} has to be a JSON object")
    return value


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= MAX_DIMS
        and all(type(size) is int and 0 <= size < 2**31 for size in shape)
    )


def _flat(data: Any, depth: int = 0) -> Iterator[Any]:
    """The values of lists in lists, row by row."""
    if not isinstance(data, list):
        yield data
        return
    if depth == MAX_DIMS:
        raise InputError(f"an input's data has more than {MAX_DIMS} dimensions")
    for value in data:
        yield from _flat(value, depth + 1)
