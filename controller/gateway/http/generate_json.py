"""JSON requests and answers of Triton's generate extension, to and from tensors.

github.com/triton-inference-server/server, docs/protocol/extension_generate.md: a key that is an
input's name becomes that tensor, others become request parameters; an answer's outputs and
parameters are keys of one object. What Triton takes and can't be meant (a number beyond INT32) is
refused.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import triton_to_np_dtype

from trt_mtp.controller.request import MAX_NAME_CHARS, TRITON_PARAMETERS
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import INPUTS, PARAMETERS, TensorSpec
from trt_mtp.serve.json_weight import MAX_DIGITS, MAX_WEIGHT, is_heavy
from trt_mtp.serve.kserve import FINAL, parameter_value
from trt_mtp.serve.parameter_names import unknown_parameter


class _Values(NamedTuple):
    """What a tensor of one type may hold."""

    kinds: tuple[type, ...]
    form: str  # of one value, as `struct` has it
    text: str


_VALUES = {
    "BYTES": _Values((str,), "", "a text"),
    "BOOL": _Values((bool,), "?", "true or false"),
    "INT32": _Values((int,), "i", "a whole number of 32 bits"),
    "UINT64": _Values((int,), "Q", "a whole number of 64 bits, 0 or more"),
    "FP32": _Values((int, float), "f", "a number"),
}
_SPECS = {spec.name: spec for spec in INPUTS}
MAX_EXACT = 2.0**53  # up to which a float is the number that was written
MAX_JSON_BYTES = 4 * 1024 * 1024


def read_generate(body: bytes, model_name: str) -> Any:
    """The pb.ModelInferRequest for `model_name` that a JSON body means; raises InputError."""
    return generate_request(json_object(body), model_name)


def generate_request(values: dict[str, Any], model_name: str) -> Any:
    """The pb.ModelInferRequest for `model_name` that a generate request's `values` mean.

    Raises InputError; `values` are used up.
    """
    request = pb.ModelInferRequest(model_name=model_name, id=utf8(values.pop("id", ""), "id"))
    parameters = values.pop("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError("parameters has to be a JSON object")
    for key, value in (*values.items(), *parameters.items()):
        if key in _SPECS:
            _add_tensor(request, _SPECS[key], value)
        else:
            add_parameter(request, utf8(key, "a parameter's name"), value)
    return request


def generate_answer(infer_response: Any) -> str:
    """A pb.ModelInferResponse as the JSON object that Triton makes of it."""
    answer: dict[str, Any] = {
        "model_name": infer_response.model_name,
        "model_version": infer_response.model_version,
    }
    if infer_response.id:
        answer["id"] = infer_response.id
    for key, parameter in infer_response.parameters.items():
        if key != FINAL:
            answer[key] = parameter_value(parameter)
    contents = infer_response.raw_output_contents
    for output, content in zip(infer_response.outputs, contents, strict=False):
        values = output_values(output.datatype, content)
        answer[output.name] = values[0] if len(values) == 1 else values
    return json.dumps(answer, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body; raises InputError."""
    _check_weight(body)
    try:
        value = json.loads(body, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        place = f"column {error.pos + 1}: {error.msg}"
        raise InputError(f"the request's body is not JSON ({place})") from None
    except RecursionError:
        raise InputError("the request's body is nested too deeply") from None
    except ValueError:  # not UTF-8, or a number of thousands of digits
        raise InputError("the request's body is not JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise InputError('the request\'s body has to be a JSON object: {"text_input": "..."}')
    return value


def _check_weight(body: bytes) -> None:
    """Raise InputError for JSON whose reading would hold up everybody else."""
    if len(body) > MAX_JSON_BYTES:
        raise InputError(
            f"the request's JSON has {len(body)} bytes: at most {MAX_JSON_BYTES} are taken; send "
            f"long tensors in binary (infer), or over gRPC"
        )
    if is_heavy(body):
        raise InputError(
            f"the request's body has too many values for JSON, where a list may have about "
            f"{MAX_WEIGHT} and a number {MAX_DIGITS} digits: send tensors in binary (infer), or "
            f"over gRPC"
        )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError("a key is twice in one object of the request's body")
    return found


def utf8(value: Any, what: str) -> str:
    """`value`, a text that can be sent; json makes half a surrogate pair of `\\ud800`."""
    if not isinstance(value, str):
        raise InputError(f"{what} has to be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} has half a surrogate pair in it") from None
    return value


def _add_tensor(request: Any, spec: TensorSpec, value: Any) -> None:
    if any(tensor.name == spec.name for tensor in request.inputs):
        raise InputError(f"{spec.name} is given twice, once among the parameters")
    values = value if isinstance(value, list) else [value]
    if spec.dims == (1,) and len(values) != 1:
        raise InputError(f"{spec.name} takes one value, and this request has {len(values)}")
    datatype = _datatype(spec)
    request.inputs.add(name=spec.name, datatype=datatype, shape=[len(values)])
    request.raw_input_contents.append(tensor_contents(spec.name, datatype, values))


def _datatype(spec: TensorSpec) -> str:
    return {"TYPE_STRING": "BYTES"}.get(spec.data_type, spec.data_type.removeprefix("TYPE_"))


def whole_number(value: Any) -> Any:
    """16 for 16.0, anything else as it is: JSON has one kind of number, and some clients one form.

    >>> whole_number(16.0), whole_number(0.5), whole_number("16.0")
    (16, 0.5, '16.0')
    """
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT
    return int(value) if is_whole else value


def tensor_contents(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    """The raw contents of input `name`, given as JSON values; raises InputError."""
    wanted = _VALUES.get(datatype)
    if wanted is None:
        spec = _SPECS.get(name)
        expected = f"one of {', '.join(_VALUES)}" if spec is None else _datatype(spec)
        raise InputError(f"{name} is {datatype[:MAX_NAME_CHARS]}; expected {expected}")
    if int in wanted.kinds:
        values = [whole_number(value) for value in values]
    for value in values:
        is_bool = isinstance(value, bool)  # which Python counts as a number
        if not isinstance(value, wanted.kinds) or is_bool != (datatype == "BOOL"):
            raise InputError(f"{name} has to be {wanted.text}, not {_shown(value)}")
    if datatype == "BYTES":
        texts = [utf8(value, name).encode() for value in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    try:
        return struct.pack(f"<{len(values)}{wanted.form}", *values)
    except (struct.error, OverflowError):
        raise InputError(f"{name} has to be {wanted.text}") from None


def add_parameter(request: Any, key: str, value: Any) -> None:
    """Set a parameter of a pb.ModelInferRequest; raises InputError for what it can't be."""
    if len(key) > MAX_NAME_CHARS:
        raise InputError(
            f"a parameter's name has {len(key)} characters: at most {MAX_NAME_CHARS} are taken"
        )
    parameter, value = request.parameters[key], whole_number(value)
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, str):
        parameter.string_param = utf8(value, f"parameter {key}")
    elif isinstance(value, float):
        parameter.double_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        parameter.int64_param = value
    elif key not in PARAMETERS + TRITON_PARAMETERS:
        raise unknown_parameter(key, PARAMETERS + TRITON_PARAMETERS)
    else:
        raise InputError(
            f"parameter {key} has to be a text, true, false, or a number of 64 bits, "
            f"not {_shown(value)}"
        )


def _shown(value: Any) -> str:
    """What a value is; not the value, which may be a prompt."""
    names = {type(None): "null", bool: "true or false", str: "a text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a number like that")


def output_values(datatype: str, content: bytes) -> list[Any]:
    """A tensor's raw contents as JSON has them."""
    if datatype != "BYTES":
        values: list[Any] = np.frombuffer(content, triton_to_np_dtype(datatype)).tolist()
        return values
    texts, at = [], 0
    while at + 4 <= len(content):
        size = int.from_bytes(content[at : at + 4], "little")
        texts.append(content[at + 4 : at + 4 + size].decode(errors="replace"))
        at += 4 + size
    return texts
