"""KServe messages changed as bytes, against protobuf's own parsing."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import (
    MAX_FIELDS,
    changed,
    error_response,
    int_outputs,
    is_final,
    made_request,
    parse_stream_response,
    read_request,
    read_varint,
    readdressed,
    remove_outputs,
    response_change,
    text_output,
    with_input,
    write_varint,
)

names = st.text(max_size=20)
parameters = st.dictionaries(names, st.one_of(st.booleans(), st.integers(0, 9), names), max_size=4)


def set_parameters(message: Any, values: dict[str, bool | int | str]) -> None:
    """Fill a parameter map, in the forms that tritonclient uses."""
    for key, value in values.items():
        if isinstance(value, bool):
            message.parameters[key].bool_param = value
        elif isinstance(value, int):
            message.parameters[key].int64_param = value
        else:
            message.parameters[key].string_param = value


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """A pb.ModelInferRequest of any content."""
    request = pb.ModelInferRequest(
        model_name=draw(names), model_version=draw(names), id=draw(names)
    )
    set_parameters(request, draw(parameters))
    for name, raw in draw(st.lists(st.tuples(names, st.binary(max_size=300)), max_size=4)):
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(raw)
    for name in draw(st.lists(names, max_size=3)):
        request.outputs.add(name=name)
    return request


@st.composite
def stream_responses(draw: st.DrawFn) -> Any:
    """A pb.ModelStreamInferResponse of any content, of any length of length."""
    response = pb.ModelStreamInferResponse(error_message=draw(st.sampled_from(["", "", "broke"])))
    infer = response.infer_response
    infer.model_name, infer.model_version, infer.id = draw(names), draw(names), draw(names)
    set_parameters(infer, draw(parameters))
    outputs = st.tuples(st.sampled_from(["text_output", "num_steps", "x"]), st.binary(max_size=300))
    for name, raw in draw(st.lists(outputs, max_size=4)):
        infer.outputs.add(name=name, datatype="INT32", shape=[1])
        infer.raw_output_contents.append(raw)
    return response


@given(st.integers(0, 2**63))
def test_varints_round_trip(value: int) -> None:
    """What `write_varint` wrote, `read_varint` reads, and stops where it ends."""
    raw = write_varint(value)
    assert read_varint(raw + b"\xff", 0) == (value, len(raw))


@given(requests())
def test_reading_a_request_leaves_its_contents_where_they_are(request: Any) -> None:
    """A request is read whole, its tensors' raw bytes by reference."""
    raw = request.SerializeToString()
    read = read_request(raw)
    assert [raw[start:end] for start, end in read.contents] == list(request.raw_input_contents)
    read.message.raw_input_contents.extend(request.raw_input_contents)
    assert read.message == request
    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
        first = next(i for i, t in enumerate(request.inputs) if t.name == tensor.name)
        if request.inputs[first] is tensor:
            found = read.tensor(tensor.name)
            assert found is not None
            assert bytes(found) == content
    assert read.tensor("no such input") is None


@given(requests(), names, st.lists(names, max_size=3))
def test_readdressing_equals_parsing_and_setting(
    request: Any, name: str, outputs: list[str]
) -> None:
    """The appended bytes change the model, its version, the id, the outputs asked for, one flag."""
    raw = readdressed(request.SerializeToString(), name or "m", "new-id", outputs)
    request.model_name, request.model_version, request.id = name or "m", "", "new-id"
    for output in outputs:
        request.outputs.add(name=output)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    assert pb.ModelInferRequest.FromString(raw) == request


@given(stream_responses(), names.filter(bool), names)
def test_a_change_equals_setting(response: Any, name: str, request_id: str) -> None:
    """A changed response has the public model's name, the client's id and more parameters."""
    change = response_change(name, request_id, {"variant": "k3", "task": "qa"})
    by_change = pb.ModelStreamInferResponse.FromString(
        changed(parse_stream_response(response.SerializeToString()), change)
    )
    response.infer_response.model_name, response.infer_response.id = name, request_id
    response.infer_response.parameters["variant"].string_param = "k3"
    response.infer_response.parameters["task"].string_param = "qa"
    assert by_change == response


@given(
    requests(),
    st.sampled_from([("INT32", "i", "int_contents"), ("UINT64", "Q", "uint64_contents")]),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=200),
)
def test_an_input_is_added_in_the_form_of_the_others(
    request: Any, kind: tuple[str, str, str], values: list[int]
) -> None:
    """With raw contents the values go there, else into the tensor; nothing else changes."""
    raw = request.SerializeToString()
    datatype, form, field = kind
    content = struct.pack(f"<{len(values)}{form}", *values)
    for is_raw in (True, False):
        change = with_input(raw, "x", datatype, content, is_raw=is_raw)
        added = pb.ModelInferRequest.FromString(change)
        tensor = added.inputs[-1]
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", datatype, [len(values)])
        assert list(getattr(tensor.contents, field)) == ([] if is_raw else values)
        assert list(added.raw_input_contents)[len(request.raw_input_contents) :] == (
            [content] if is_raw else []
        )
        del added.inputs[-1]
        del added.raw_input_contents[len(request.raw_input_contents) :]
        assert added == request


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(raw: bytes) -> None:
    """Bytes are refused exactly where protobuf refuses them, groups aside, and never crash."""
    try:
        read = read_request(raw)
    except InputError:
        return
    assert pb.ModelInferRequest.FromString(raw).model_name == read.message.model_name
    changed_request = pb.ModelInferRequest.FromString(readdressed(raw, "m", "i", ()))
    assert changed_request.model_name == "m"


@given(st.binary(max_size=200), requests())
def test_a_damaged_request_is_a_request_or_refused(damage: bytes, request: Any) -> None:
    """A request with bytes appended, or cut off, never crashes the reader."""
    raw = request.SerializeToString()
    for damaged in (raw + damage, raw[: len(damage)], damage + raw):
        try:
            read_request(damaged)
        except InputError:
            continue
        assert pb.ModelInferRequest.FromString(damaged) is not None


def test_a_request_of_very_many_fields_is_refused() -> None:
    """Reading is bounded by the number of fields."""
    with pytest.raises(InputError, match=f"more than {MAX_FIELDS} fields"):
        read_request(b"\x3a\x00" * (MAX_FIELDS + 1))
    assert len(read_request(b"\x3a\x00" * MAX_FIELDS).contents) == MAX_FIELDS


@given(stream_responses())
def test_unasked_outputs_are_taken_out_with_their_contents(response: Any) -> None:
    """What is left is what was asked for, each output with its own contents."""
    outputs = response.infer_response.outputs
    pairs = list(zip(outputs, list(response.infer_response.raw_output_contents), strict=True))
    kept = [(output.name, raw) for output, raw in pairs if output.name != "num_steps"]
    remove_outputs(response.infer_response, {"num_steps", "num_draft_tokens"})
    left = zip(outputs, response.infer_response.raw_output_contents, strict=True)
    assert [(output.name, raw) for output, raw in left] == kept


def test_outputs_are_read_by_name_and_type() -> None:
    """Counters are read where they are INT32, texts where they are BYTES; else they are absent."""
    infer = pb.ModelInferResponse()
    values = (
        ("num_steps", "INT32", b"\x07\x00\x00\x00"),
        ("accepted_per_position", "INT32", b"\x01\x00\x00\x00\x02\x00\x00\x00"),
        ("num_draft_tokens", "BYTES", b"\x01\x00\x00\x000"),
        ("finish_reason", "BYTES", b"\x04\x00\x00\x00stop"),
    )
    for name, datatype, raw in values:
        infer.outputs.add(name=name, datatype=datatype, shape=[1])
        infer.raw_output_contents.append(raw)
    found = int_outputs(infer, ["num_steps", "accepted_per_position", "num_draft_tokens"])
    assert found == {"num_steps": (7,), "accepted_per_position": (1, 2)}
    assert text_output(infer, "finish_reason") == "stop"
    assert text_output(infer, "num_steps") == ""


def test_what_ends_a_request() -> None:
    """The final flag ends a request, and so does an error without one: it reached no model."""
    response = pb.ModelStreamInferResponse(error_message="no such model")
    assert is_final(response)
    response.infer_response.parameters["triton_final_response"].bool_param = False
    assert not is_final(response)
    assert is_final(parse_stream_response(error_response("refused", "7", {"variant": "k1"})))
    assert not is_final(pb.ModelStreamInferResponse())


def test_a_request_made_here_is_as_one_read() -> None:
    """Its bytes, its contents, and what is parsed of it."""
    message = pb.ModelInferRequest(model_name="m", id="i")
    for name, content in (("a", b""), ("b", b"x" * 200), ("c", b"yz")):
        message.inputs.add(name=name, datatype="BYTES", shape=[1])
        message.raw_input_contents.append(content)
    message.parameters["p"].int64_param = 3
    expected = read_request(message.SerializeToString())
    made = made_request(message)
    assert made.raw == expected.raw
    assert made.contents == expected.contents
    assert made.message == expected.message
