"""An atheris target: bytes that claim to be requests, answers of Triton, or HTTP bodies.

`python -m tests.fuzz.fuzz_gateway -runs=1000000 tests/fuzz/corpus/messages` grows that corpus and
looks for input that makes the gateway's readers do anything but read it or raise InputError.
"""

import contextlib
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus" / "messages"
PUBLIC, VARIANT = "qwen_mtp", "qwen_mtp_k3"


def read_as_request(data: bytes) -> None:
    """What happens to a client's message before it goes to a variant."""
    from tritonclient.grpc import service_pb2 as pb

    from trt_mtp.controller.request import is_streaming, read_features, read_hints
    from trt_mtp.controller.request_limits import check_request
    from trt_mtp.controller.tasks import TASKS
    from trt_mtp.serve.kserve import read_request, readdressed

    request = read_request(data)
    is_streaming(request)
    check_request(request)
    read_features(request, read_hints(request, TASKS, (0, 1, 3)))
    sent = pb.ModelInferRequest.FromString(readdressed(data, VARIANT, "id", ("num_steps",)))
    assert (sent.model_name, sent.id) == (VARIANT, "id")
    assert list(sent.raw_input_contents) == [data[start:end] for start, end in request.contents]


def read_as_response(data: bytes) -> None:
    """What happens to a variant's message on its way to the client."""
    from trt_mtp.controller.gateway.response_rewriter import ResponseRewriter
    from trt_mtp.serve.kserve import parse_stream_response, response_change

    change = response_change(PUBLIC, "client-id", {"variant": "k3"})
    reader = ResponseRewriter(b"id", change, frozenset({"num_steps"}), bytearray(), "")
    message = reader.read(data, True)
    if message is not None:
        response = parse_stream_response(message).infer_response
        assert (response.model_name, response.id) == (PUBLIC, "client-id")


def read_as_body(data: bytes) -> None:
    """What happens to the body of an HTTP request."""
    from trt_mtp.controller.gateway.http.generate_json import read_generate
    from trt_mtp.serve.kserve import read_request

    request = read_generate(data, PUBLIC)
    assert read_request(request.SerializeToString()).message.model_name == PUBLIC


READERS = (read_as_request, read_as_response, read_as_body)


def read(data: bytes) -> None:
    """The first byte says as what to read the rest."""
    from trt_mtp.errors import InputError

    if data:
        with contextlib.suppress(InputError):
            READERS[data[0] % len(READERS)](data[1:])


def main() -> None:
    """Run the fuzzer with the command line's options, which are libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=["trt_mtp"]):
        for index in range(len(READERS)):
            read(bytes([index]))  # what it imports is what is to be covered
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
