"""Calls, replicas and leases, for tests of the request path's parts alone.

Streams and servers are doubles here; everything around them is real.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.decision import CandidateScore, Decision
from trt_mtp.controller.gateway.access.authenticator import Caller
from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.hang_detector import HangDetector, StallLimits
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.servers.load import LoadMeter
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.gateway.servers.upstream import UpstreamLost
from trt_mtp.controller.gateway.servers.winding_down import Rest
from trt_mtp.controller.json_request import features_from_json
from trt_mtp.serve.contract import INPUTS, INTERNAL_ERROR, OUTPUTS, RETURN_READ, STUCK
from trt_mtp.serve.kserve import int_input, read_request

DECISION = Decision(
    decision_id="d",
    variant="k3",
    draft_length=3,
    task="math",
    task_probabilities=(("math", 1.0),),
    temperature_band="greedy",
    thinking=False,
    reasons=(),
    candidates=(
        CandidateScore("k0", 0, total_s=2.0),
        CandidateScore("k1", 1, rejected="is not healthy"),
        CandidateScore("k3", 3, total_s=2.5),
    ),
    explored=False,
    seed=0,
    now_s=0.0,
)


def call_of(
    request_id: str = "",
    *,
    priority: int = 0,
    hint: int | None = None,
    prompt: str = "x",
    is_guided: bool = False,
    caller: Caller | None = None,
) -> InferenceCall:
    """A streamed request of this id."""
    request = pb.ModelInferRequest(id=request_id)
    request.parameters["priority"].int64_param = priority
    request.inputs.add(name="streaming", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(b"\x01")
    read = read_request(request.SerializeToString())
    features = features_from_json({"prompt": prompt})
    features = replace(features, hint_draft_length=hint, is_guided=is_guided)
    return InferenceCall(read, features, caller or Caller(None, None))


def replica_of(key: str, backend: Any = None) -> Replica:
    """A ready variant; `key` is k3 or k3@SERVER."""
    name = key.partition("@")[0]
    found = Replica(
        backend=backend,
        key=key,
        name=name,
        model_name=f"qwen_mtp_{name}",
        draft_length=int(name[1:]),
        max_batch_size=8,
        max_seq_len=512,
        fingerprint="f0",
        measured_on={},
        inputs=frozenset(spec.name for spec in INPUTS),
        outputs=frozenset(spec.name for spec in OUTPUTS),
    )
    found.health.poll(True, 0.0)
    return found


def lease_of(call: InferenceCall, decision: Decision = DECISION) -> Lease:
    """The call's lease of the variant that was decided, counted nowhere."""
    detector = HangDetector(StallLimits())
    replica = replica_of(decision.variant)
    return Lease(call, replica, decision, "qwen_mtp", detector, lambda lease, rest: None)


SENTENCES = {
    "error": "internal error: it broke",
    "refused": "max_tokens is 0",
    "stuck": f"{INTERNAL_ERROR}{STUCK}no text fits",
}


class StreamDouble:
    """What an Upstream is to a lease; its messages are a script's."""

    def __init__(self, backend: "BackendDouble", script: "Script") -> None:
        self._backend = backend
        self.script = script
        self.is_open = True
        self.waiting_since = 0.0
        self._messages: list[bytes] = []
        self._lost: UpstreamLost | None = None

    def begin(self, raw: bytes) -> None:
        """Answer with what the script has, after the tokens that the request brings."""
        request = read_request(raw)
        emitted = len(int_input(request, "emitted_ids")) // 4
        tells = any(tensor.name == RETURN_READ for tensor in request.message.inputs)
        if tells and (self.script.num_tokens or self.script.end in ("final", "late")):
            self._messages.append(_accepted(request.message.id))
        last = min(emitted + self.script.num_tokens, NUM_TOKENS)
        is_whole = self.script.end in ("final", "late")
        for index in range(emitted, NUM_TOKENS if is_whole else last):
            self._messages.append(_token(request.message.id, index))
        if self.script.end in SENTENCES:
            error = pb.ModelStreamInferResponse(error_message=SENTENCES[self.script.end])
            error.infer_response.id = request.message.id
            error.infer_response.parameters["triton_final_response"].bool_param = True
            self._messages.append(error.SerializeToString())
        elif is_whole:
            self._messages.append(_closing(request.message.id, is_final=self.script.end == "final"))
        if self.script.end not in ("final", *SENTENCES):
            self._lost = UpstreamLost("it is gone", is_hung=self.script.end == "hung")

    async def read(self) -> bytes:
        """The next message."""
        await asyncio.sleep(0)
        if self._messages:
            return self._messages.pop(0)
        if self._lost is not None:
            if not self._lost.is_hung:
                self.is_open = False
                self._backend.num_open -= 1
            raise self._lost
        await asyncio.get_running_loop().create_future()  # the test's own deadline ends it
        raise AssertionError

    def give_up(self, why: UpstreamLost) -> None:
        """Nothing waits for long here."""


class BackendDouble:
    """A server's streams, each by the next script; a server without any answers whole."""

    def __init__(self, scripts: Sequence["Script"] = ()) -> None:
        self.scripts = list(scripts)
        self.num_open = 0
        self.target = "double"
        self.zone = ""
        self.heard_at = 0.0
        self.meter = LoadMeter()
        self.variants: dict[str, Replica] = {}

    def load(self, now_s: float) -> int:
        """Nothing, on a device that nobody shares."""
        return 0

    def take_stream(self, metadata: Any = ()) -> StreamDouble:
        """A stream."""
        self.num_open += 1
        return StreamDouble(self, self.scripts.pop(0) if self.scripts else Script())

    def give_back(self, upstream: StreamDouble) -> None:
        """It is whole."""
        self.num_open -= 1

    def abandon(self, upstream: StreamDouble, variant: Replica, id_: str) -> "asyncio.Task[Rest]":
        """Read the rest, in a task as the real one does."""
        return asyncio.create_task(self._read_out())

    async def _read_out(self) -> Rest:
        await asyncio.sleep(0)
        self.num_open -= 1
        return Rest.ENDED

    def suspect(self) -> None:
        """It can't be reached."""

    def look_soon(self) -> None:
        """Something may be wrong."""


NUM_TOKENS = 6  # of a whole answer


@dataclass(frozen=True, slots=True)
class Script:
    """What becomes of an attempt: some tokens, then an end.

    "final" and "late" give all tokens that are missing; after "late" the stream is lost before the
    final message.
    """

    num_tokens: int = 0
    end: str = "final"


def _accepted(request_id: str) -> bytes:
    response = pb.ModelStreamInferResponse()
    response.infer_response.id = request_id
    response.infer_response.outputs.add(name="requests_in_flight", datatype="INT32", shape=[1])
    response.infer_response.raw_output_contents.append((1).to_bytes(4, "little"))
    return bytes(response.SerializeToString())


def _token(request_id: str, index: int) -> bytes:
    return bytes(_message(request_id, f"w{index}", index).SerializeToString())


def _closing(request_id: str, *, is_final: bool) -> bytes:
    response = _message(request_id, "", None)
    infer = response.infer_response
    infer.outputs.add(name="finish_reason", datatype="BYTES", shape=[1])
    infer.raw_output_contents.append(b"\x04\0\0\0stop")
    infer.parameters["triton_final_response"].bool_param = is_final
    return bytes(response.SerializeToString())


def _message(request_id: str, text: str, token: int | None) -> Any:
    response = pb.ModelStreamInferResponse()
    infer = response.infer_response
    infer.id = request_id
    data = text.encode()
    infer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    infer.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
    if token is not None:
        infer.outputs.add(name="output_ids", datatype="INT32", shape=[1])
        infer.raw_output_contents.append(token.to_bytes(4, "little"))
    return response
