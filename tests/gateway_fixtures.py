"""A gateway in a thread of the test process, and Triton with doubles of variants behind it."""

import asyncio
import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from tests.programs import join
from trt_mtp.controller.decision import CandidateScore, Decision, VariantState
from trt_mtp.controller.drift import DriftAlarm
from trt_mtp.controller.filters import rejections
from trt_mtp.controller.gateway.gateway import Gateway, GatewayConfig
from trt_mtp.controller.gateway.observers import Learning
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.serve.chat_format import CHAT_FORMAT
from trt_mtp.serve.contract import INPUTS, OUTPUTS
from trt_mtp.serve.grpc_access import LOCAL, GrpcAccess
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.ports import Ports
from trt_mtp.serve.repository import ModelConfig, to_pbtxt
from trt_mtp.serve.triton import TritonServer
from trt_mtp.serve.triton_install import find_triton

DRAFT_LENGTHS = (0, 1, 3)
DOUBLE = Path(__file__).parent / "doubles" / "variant_model.py"


class FixedPolicy:
    """Takes the draft length that is asked for, else the longest; remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[RequestFeatures] = []
        self.outcomes: list[tuple[Decision, Outcome]] = []

    def choose(
        self, features: RequestFeatures, variants: Sequence[VariantState], *, now_s: float
    ) -> Decision:
        pairs = zip(variants, rejections(features, variants), strict=True)
        picked = [variant for variant, rejected in pairs if not rejected][-1]
        self.seen.append(features)
        return Decision(
            decision_id=f"d{len(self.seen)}",
            variant=picked.name,
            draft_length=picked.draft_length,
            task=features.hint_task or "qa",
            task_probabilities=(("qa", 1.0),),
            temperature_band="greedy",
            thinking=False,
            reasons=(),
            candidates=(CandidateScore(picked.name, picked.draft_length),),
            explored=False,
            seed=0,
            now_s=now_s,
        )

    def home(self, session_id: str | None) -> str:
        return ""

    def update(self, decision: Decision, outcome: Outcome) -> DriftAlarm | None:
        self.outcomes.append((decision, outcome))
        return None


class GatewayThread:
    """A gateway with its event loop in a thread."""

    def __init__(self, config: GatewayConfig, policy: Any) -> None:
        self.policy = policy
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def make() -> Gateway:
            return Gateway(config, policy)

        self.gateway: Gateway = self.run(make()).result(60)

    def run(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Start `work` in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def outcomes(self) -> list[tuple[Decision, Outcome]]:
        """What a FixedPolicy was told of ended answers, and would be told in a moment."""

        async def learn() -> None:
            for observer in self.gateway.router.observers:
                if isinstance(observer, Learning):
                    observer.learn()

        self.run(learn()).result(60)
        told: list[tuple[Decision, Outcome]] = self.policy.outcomes
        return told

    def close(self) -> None:
        """Stop the gateway and its loop."""
        self.run(self.gateway.stop()).result(60)
        self.run(_end_tasks()).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        join(self._thread)
        self._loop.close()


async def _end_tasks() -> None:
    """What asyncio.run does in a real gateway: or a later test is blamed for the tasks."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await connections_closed()


async def connections_closed() -> None:
    """Wait until no connection of this event loop is open: TLS takes its leave after the close."""
    transports = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        while any(
            each.get_extra_info("socket").fileno() >= 0 for each in list(transports.values())
        ):
            await asyncio.sleep(0.01)


async def _start(gateway: Gateway) -> None:
    await gateway.connect()
    await gateway.start()


@contextlib.contextmanager
def running_gateway(triton: str, policy: Any = None, **settings: Any) -> Iterator[GatewayThread]:
    """A gateway in front of `triton`, stopped at the end."""
    settings = {
        "port": 0,
        "grace_s": 5.0,
        "ready_timeout_s": 60.0,
        "failover_wait_s": 1.0,
        **settings,
    }
    thread = GatewayThread(GatewayConfig(triton, **settings), policy or FixedPolicy())
    try:
        thread.run(_start(thread.gateway)).result(60)
        yield thread
    finally:
        thread.close()


def write_doubles(
    repository: Path,
    notes: Path,
    draft_lengths: Sequence[int] = DRAFT_LENGTHS,
    max_batch_size: int = 256,
) -> tuple[str, ...]:
    """A Triton repository of doubles: the variants of qwen_mtp, and another model."""
    lengths = {f"qwen_mtp_k{length}": length for length in draft_lengths} | {"other": 0}
    for name, length in lengths.items():
        parameters = {
            "draft_length": str(length),
            "notes": str(notes),
            "max_seq_len": "512",
            "max_batch_size": str(max_batch_size),
            "fingerprint": "f0",
            CHAT_FORMAT: json.dumps(
                {"tool_calls": "json", "can_think": True, "opens": [False, False, True]}
            ),
            "measured_on": '{"device": "double", "engine": "x"}',
        }
        config = ModelConfig(name, INPUTS, OUTPUTS, parameters)
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(to_pbtxt(config))
        (repository / name / "1" / "model.py").write_bytes(DOUBLE.read_bytes())
    return tuple(lengths)


@contextlib.contextmanager
def triton_of_doubles(
    folder: Path, access: GrpcAccess = LOCAL, *, grpc_port: int = 0, max_batch_size: int = 256
) -> Iterator[TritonServer]:
    """A real Triton that serves doubles; its notes are in `folder`/notes."""
    notes = folder / "notes"
    notes.mkdir(parents=True)
    models = write_doubles(folder / "repository", notes, max_batch_size=max_batch_size)
    install, ports = find_triton(), Ports(grpc=grpc_port, http=0)
    server = TritonServer(install, folder / "repository", models, folder, ports, access=access)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class RawStream:
    """A ModelStreamInfer call whose messages are seen as they are on the wire, parsed only."""

    def __init__(self, url: str, metadata: Any = None) -> None:
        """Connect to the gRPC endpoint at `url`, on a connection of its own."""
        self._channel = grpc.insecure_channel(url, [("grpc.use_local_subchannel_pool", 1)])
        self._sent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method = self._channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
        self._call = method(iter(self._sent.get, None), metadata=metadata, timeout=60)

    def send(self, request: Any) -> None:
        """Send a message, or the bytes of one."""
        self._sent.put(request if isinstance(request, bytes) else request.SerializeToString())

    def receive(self) -> Any:
        """The next pb.ModelStreamInferResponse; raises grpc.RpcError, StopIteration at the end."""
        return pb.ModelStreamInferResponse.FromString(next(self._call))

    def receive_to_end(self) -> None:
        """Throw messages away until the stream ends; raises grpc.RpcError for a bad end."""
        for _ in self._call:
            pass

    def half_close(self) -> None:
        """Say that no more requests come."""
        self._sent.put(None)

    def close(self) -> None:
        """Cancel what is in flight."""
        self._call.cancel()
        self.half_close()
        self._channel.close()


@contextlib.contextmanager
def raw_stream(url: str, metadata: Any = None) -> Iterator[RawStream]:
    """A RawStream, closed at the end."""
    stream = RawStream(url, metadata)
    try:
        yield stream
    finally:
        stream.close()


def script_request(
    model: str = "qwen_mtp",
    request_id: str = "",
    outputs: Sequence[str] = (),
    parameters: dict[str, Any] | None = None,
    streaming: bool = True,
    **script: Any,
) -> Any:
    """A pb.ModelInferRequest that tells a double what to answer."""
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    text = json.dumps(script).encode()
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    request.inputs.add(name="streaming", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(bytes([streaming]))
    for name in outputs:
        request.outputs.add(name=name)
    for key, value in (parameters or {}).items():
        form = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[key], form, value)
    return request


def wait_until(is_true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def watch_until_back(server: TritonServer, dead: int) -> None:
    """Look after a server whose process `dead` ended, as `serve` does: a start may fail."""

    def is_back() -> bool:
        server.check()
        return server.pid not in (0, dead)

    wait_until(is_back)


def text_of(response: Any) -> str:
    """The text that a response brings, without its length."""
    names = [output.name for output in response.infer_response.outputs]
    content: bytes = response.infer_response.raw_output_contents[names.index("text_output")]
    return content[4:].decode()


def parameter(response: Any, name: str) -> str:
    """A text parameter of a response."""
    return str(response.infer_response.parameters[name].string_param)


def is_last(response: Any) -> bool:
    """Is it the last response of its request?"""
    final = response.infer_response.parameters["triton_final_response"].bool_param
    return bool(final or response.error_message)
