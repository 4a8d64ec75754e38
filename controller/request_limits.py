"""What a request may be before anything is done for it; beyond it no variant is asked."""

from collections.abc import Iterator
from math import prod
from typing import Any

from trt_mtp.controller.request import MAX_NAME_CHARS, PUBLIC_VERSION, input_tensor, num_ids
from trt_mtp.errors import InputError
from trt_mtp.serve.contract import (
    CANCEL,
    EMITTED,
    MAX_EMITTED_IDS,
    MAX_STOP_BYTES,
    MAX_STOP_TEXTS,
    RETURN_MARGIN,
    RETURN_READ,
    STOP,
)
from trt_mtp.serve.kserve import InferRequest

MAX_PARTS = 64  # inputs, or outputs, of one request
MAX_REQUEST_ID_CHARS = 1_024  # of a request's id
MAX_DIMS, MAX_ELEMENTS = 16, 2**31  # of an input
ONE = (1,)  # the shape of nearly all inputs


def check_request(request: InferRequest) -> None:
    """Raise InputError for what no variant could answer, or would have to be blamed for.

    That is another version than the public model's only one, inputs that are not in the request
    itself, and more of them than make sense.
    """
    check_for_triton(request.message)
    version = request.message.model_version
    if version not in ("", PUBLIC_VERSION):
        raise InputError(
            f"the model has no version {version[:MAX_NAME_CHARS]!r}: leave the version out, or "
            f"ask for {PUBLIC_VERSION}"
        )
    num_chars = len(request.message.id)  # which each message of the answer has
    if num_chars > MAX_REQUEST_ID_CHARS:
        raise InputError(
            f"the request's id has {num_chars} characters: at most {MAX_REQUEST_ID_CHARS} are taken"
        )
    for what, parts in (("inputs", request.message.inputs), ("outputs", request.message.outputs)):
        if len(parts) > MAX_PARTS:
            raise InputError(f"the request has {len(parts)} {what}: at most {MAX_PARTS} are taken")
    for tensor in request.message.outputs:
        if tensor.parameters:
            raise InputError(
                f"output {tensor.name[:MAX_NAME_CHARS]!r} has parameters, and outputs are sent as "
                f"they are: leave the parameters out"
            )
    for tensor in request.message.inputs:
        name = tensor.name
        _check_input_name(name)
        if "shared_memory_region" in tensor.parameters:
            raise InputError(
                f"input {name!r} lies in shared memory: send its contents in the request"
            )
        if name == STOP:
            _check_stop_texts(request)
        elif name == EMITTED:
            _check_emitted(request)
    _check_contents(request)


def check_for_triton(message: Any) -> None:
    """Raise InputError for a pb.ModelInferRequest that Triton 2.51 misreads, or that ends it.

    It takes texts to end at a NUL, so that what was checked here would be something else there. The
    bytes of a tensor overflow 64 bits where its shape is vast, and its model reads beyond them. For
    the classes of an output that is a text it divides by zero. Each ends servers that are sent it.
    """
    names = [message.model_name, message.id, *message.parameters]
    for tensor in message.inputs:
        names.append(tensor.name)
        if (shape := tuple(tensor.shape)) != ONE and not _is_shape(shape):
            raise InputError(
                f"the shape of input {tensor.name[:MAX_NAME_CHARS]!r} has to be of at most "
                f"{MAX_DIMS} whole numbers from 0, and of less than {MAX_ELEMENTS} elements"
            )
    for tensor in message.outputs:
        names.append(tensor.name)
        if "classification" in tensor.parameters:
            raise InputError(
                "classification of outputs is not supported: ask for the whole outputs"
            )
    if "\0" in "".join(names):
        raise InputError("a name or the id of the request has a NUL character in it: leave it out")


def _is_shape(shape: tuple[int, ...]) -> bool:
    is_bounded = len(shape) <= MAX_DIMS and all(0 <= size < MAX_ELEMENTS for size in shape)
    return is_bounded and prod(shape) < MAX_ELEMENTS


def _check_contents(request: InferRequest) -> None:
    """Raise InputError unless each input has its raw contents, or none has.

    The gateway adds inputs after the client's, which would take a surplus one for theirs.
    """
    num_inputs, num_contents = len(request.message.inputs), len(request.contents)
    if num_contents not in (0, num_inputs):
        raise InputError(
            f"the request has {num_inputs} inputs and {num_contents} raw_input_contents: "
            f"send one for each input, in the same order"
        )


def _check_input_name(name: str) -> None:
    if len(name) > MAX_NAME_CHARS:
        raise InputError(
            f"the name of an input has {len(name)} characters: at most {MAX_NAME_CHARS} are taken"
        )
    if name == RETURN_MARGIN:
        raise InputError(
            f"{RETURN_MARGIN} is for variants, and this model is all of them: ask a variant "
            f"by its own name for its margin"
        )
    if name == RETURN_READ:
        raise InputError(f"{RETURN_READ} is for variants: leave it out, the gateway asks for it")
    if name == CANCEL:
        raise InputError(
            f"{CANCEL} is for variants, and this model is all of them: end the call to cancel "
            f"what was asked on it"
        )


def _check_stop_texts(request: InferRequest) -> None:
    """Raise InputError for more or longer stop texts than an engine looks for."""
    for number, size in enumerate(_text_sizes(request, STOP), start=1):
        if number > MAX_STOP_TEXTS:
            raise InputError(f"the request has more than {MAX_STOP_TEXTS} stop texts")
        if size > MAX_STOP_BYTES:
            raise InputError(
                f"a stop text has {size} bytes: each may have at most {MAX_STOP_BYTES}"
            )


def _check_emitted(request: InferRequest) -> None:
    """Raise InputError for more emitted_ids than an answer has tokens."""
    number = num_ids(request, EMITTED) or 0
    if number > MAX_EMITTED_IDS:
        raise InputError(f"emitted_ids has {number} tokens: at most {MAX_EMITTED_IDS} are taken")


def _text_sizes(request: InferRequest, name: str) -> Iterator[int]:
    """The bytes of each element of a BYTES input, in its raw or its typed form."""
    data = request.tensor(name)
    at = 0
    while data is not None and at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        yield size
        at += 4 + size
    tensor = input_tensor(request, name) if data is None else None
    if tensor is not None:
        yield from map(len, tensor.contents.bytes_contents)
