"""What a client gets of a variant's messages, whether they are parsed or recognised."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway import response_rewriter
from trt_mtp.controller.gateway.response_rewriter import ResponseRewriter
from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import changed, response_change

CHANGE = response_change("qwen_mtp", "client", {"variant": "k3"})
UPSTREAM_ID = b"client/d1"
UNASKED = frozenset({"output_ids", "num_steps", "finish_reason"})
texts = st.text(max_size=200)
ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)


def message(**outputs: Any) -> Any:
    """A streaming message as Triton writes one: texts as BYTES, lists as INT32."""
    response = pb.ModelStreamInferResponse()
    infer = response.infer_response
    infer.model_name, infer.model_version, infer.id = "qwen_mtp_k3", "1", UPSTREAM_ID.decode()
    infer.parameters["triton_final_response"].bool_param = False
    for name, value in outputs.items():
        if isinstance(value, str):
            data = value.encode()
            infer.outputs.add(name=name, datatype="BYTES", shape=[1])
            infer.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
        else:
            infer.outputs.add(name=name, datatype="INT32", shape=[len(value)])
            infer.raw_output_contents.append(struct.pack(f"<{len(value)}i", *value))
    return response


def reader(unasked: frozenset[str], emitted: bytearray, left: str = "") -> ResponseRewriter:
    """A reader of messages that `message` makes."""
    return ResponseRewriter(UPSTREAM_ID, CHANGE, unasked, emitted, left)


def parsed(raw: bytes | None) -> Any:
    """A message that the reader returned."""
    assert raw is not None
    return pb.ModelStreamInferResponse.FromString(raw)


@given(st.lists(st.tuples(texts.filter(bool), ids), max_size=8), st.booleans(), st.booleans())
def test_every_message_is_changed_in_the_same_way(
    steps: list[tuple[str, list[int]]], is_asked: bool, ids_come_first: bool
) -> None:
    """A head that is known gives the message that parsing would give; all ids are remembered."""
    emitted = bytearray()
    read = reader(frozenset() if is_asked else UNASKED, emitted)
    for text, new_ids in steps:
        outputs: dict[str, Any] = {"text_output": text, "output_ids": new_ids}
        if ids_come_first:
            outputs = dict(reversed(outputs.items()))
        got = parsed(read.read(message(**outputs).SerializeToString(), False))
        if not is_asked:
            del outputs["output_ids"]
        want = parsed(changed(message(**outputs), CHANGE))
        assert got == want
    expected = [token for _, new_ids in steps for token in new_ids]
    assert list(struct.unpack(f"<{len(expected)}i", emitted)) == expected
    assert not read.is_over


def test_a_message_with_ids_only_is_the_gateways() -> None:
    """A piece of a character or of a stop text gives no message to who didn't ask for ids."""
    emitted = bytearray()
    silent, asked = reader(UNASKED, emitted), reader(frozenset(), bytearray())
    raw = message(text_output="", output_ids=[7]).SerializeToString()
    for _ in range(3):  # unknown, then known
        assert silent.read(raw, False) is None
        assert asked.read(raw, False) is not None
    assert struct.unpack("<3i", emitted) == (7, 7, 7)


def test_the_end_is_marked_with_the_variants_that_were_left() -> None:
    """The last message with outputs says so, as does an empty one for who wants that."""
    read = reader(UNASKED, bytearray(), "k1,k3")
    first = parsed(read.read(message(text_output="a", output_ids=[1]).SerializeToString(), True))
    assert "failed_over" not in first.infer_response.parameters
    closing = message(text_output="b", output_ids=[2], finish_reason="length", num_steps=[2])
    got = parsed(read.read(closing.SerializeToString(), True))
    assert [output.name for output in got.infer_response.outputs] == ["text_output"]
    assert got.infer_response.parameters["failed_over"].string_param == "k1,k3"
    assert read.is_complete
    assert not read.is_over
    final = message()
    final.infer_response.parameters["triton_final_response"].bool_param = True
    got = parsed(read.read(final.SerializeToString(), True))
    assert got.infer_response.parameters["failed_over"].string_param == "k1,k3"
    assert read.is_over


def test_another_requests_message_is_dropped() -> None:
    """What an earlier request left on a stream reaches nobody."""
    other = message(text_output="a", output_ids=[1])
    other.infer_response.id = "client/d0"
    emitted = bytearray()
    assert reader(UNASKED, emitted).read(other.SerializeToString(), True) is None
    assert emitted == b""


@given(st.binary(max_size=300), texts, ids)
def test_damaged_messages_end_in_an_error_or_a_message(
    damage: bytes, text: str, new_ids: list[int]
) -> None:
    """Bytes that are no message raise InputError, and nothing else, after a head is known too."""
    raw = message(text_output=text, output_ids=new_ids).SerializeToString()
    read = reader(UNASKED, bytearray())
    read.read(raw, False)
    for damaged in (damage, raw + damage, raw[: len(damage)], raw[:-3] + damage):
        try:
            read.read(damaged, False)
        except InputError:
            continue


@given(st.binary(max_size=9).filter(lambda content: len(content) != 4), st.booleans())
def test_a_load_that_is_none_is_not_told(content: bytes, is_known: bool) -> None:
    """A number of any length would be compared, and fail, for every request of everybody."""
    read = reader(frozenset(), bytearray())
    for number in (3, 5) if is_known else ():
        read.read(message(text_output="a", requests_in_flight=[number]).SerializeToString(), False)
        assert read.num_in_flight == number
    lie = message(text_output="a", requests_in_flight=[1])
    lie.infer_response.raw_output_contents[1] = content
    read.read(lie.SerializeToString(), False)
    assert read.num_in_flight is None


def test_a_negative_load_is_not_told() -> None:
    """It would count as billions."""
    read = reader(frozenset(), bytearray())
    read.read(message(text_output="a", requests_in_flight=[-1]).SerializeToString(), False)
    assert read.num_in_flight is None


def test_no_more_tokens_are_remembered_than_a_context_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A variant may send without end."""
    monkeypatch.setattr(response_rewriter, "MAX_IDS_BYTES", 16)
    read, raw = reader(frozenset(), bytearray()), message(text_output="a", output_ids=[1])
    for _ in range(4):
        read.read(raw.SerializeToString(), False)
    with pytest.raises(InputError, match="it sends more than 4 tokens"):
        read.read(raw.SerializeToString(), False)
