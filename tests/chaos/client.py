"""One client: stock tritonclient, answers compared token by token as they come."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as grpcclient
from tritonclient.utils import InferenceServerException

from tests.chaos.answers import Expected
from tests.triton_client import FINAL, tensor

MODEL = "qwen_mtp"
DEADLINE_S = 60.0  # for one answer: what takes longer hangs
RETRY_S = 0.1
# clients are processes of their own: what one of them saw of the gateway is not another's to know
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
NUM_PAUSES = 20
NUM_SHOWN = 20  # tokens, and characters of text, of an answer that is not the expected one
MAX_SHOWN = 200  # characters of its request
FAILED_OVER = "failed_over"  # parameter of a last response
WRITE_FAILED = "Internal error from Core"  # how grpc.aio says that the connection broke
# what refuses a request before its first token: sentences of the gateway, and what gRPC says when a
# request comes to a gateway that ends
REFUSALS = (
    "requests wait, which is the limit",
    "no variant",
    "the gateway is shutting down",
    "CANCELLED",
    "GOAWAY received",
    WRITE_FAILED,
)


class End(Enum):
    """How a stream ended."""

    INTACT = "intact"
    REFUSED = "refused"
    LOST = "lost"
    LEFT = "left"  # by the client


@dataclass(slots=True)
class Answer:
    """What a client has of an answer so far, and how it ended."""

    expected: Expected
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""
    num_output_tokens: int = 0
    is_over: bool = False
    is_failed_over: bool = False
    num_resumed: int = 0  # times that the client went on after the gateway's own death
    error: str = ""

    def take(self, result: Any) -> None:
        """Add a response; raises ValueError where it is not what was expected."""
        response = result.get_response()
        outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
        self.text += b"".join(outputs.get("text_output", ())).decode()
        self.token_ids += outputs.get("output_ids", np.array([], np.int32)).tolist()
        if "finish_reason" in outputs:
            self.finish_reason = outputs["finish_reason"][0].decode()
            self.num_output_tokens = int(outputs["num_output_tokens"][0])
        self.is_over = response.parameters[FINAL].bool_param
        self.is_failed_over |= bool(response.parameters[FAILED_OVER].string_param)
        wanted = self.expected
        if self.token_ids != list(wanted.token_ids[: len(self.token_ids)]):
            raise ValueError(f"other tokens than expected: {self._in_short()}")
        if not wanted.text.startswith(self.text):
            raise ValueError(f"other text than expected: {self._in_short()}")

    def _in_short(self) -> str:
        """The end of what came and of what was expected, with the request."""
        count = len(self.token_ids)
        expected = self.expected.token_ids[max(count - NUM_SHOWN, 0) : count]
        return (
            f"{count} came, the last {self.token_ids[-NUM_SHOWN:]} {self.text[-NUM_SHOWN:]!r} for "
            f"{list(expected)}, asked with {str(self.expected.inputs)[:MAX_SHOWN]}"
        )

    def check_whole(self) -> None:
        """Raise ValueError unless this is all of the expected answer."""
        wanted = self.expected
        is_whole = (
            self.token_ids == list(wanted.token_ids)
            and self.text == wanted.text
            and self.finish_reason == wanted.finish_reason
            and self.num_output_tokens == len(wanted.token_ids)
        )
        if not is_whole:
            raise ValueError(
                f"ended ({self.finish_reason}) with {len(self.token_ids)} tokens, said to be "
                f"{self.num_output_tokens}; {len(wanted.token_ids)} were expected"
            )


async def ask(
    url: str,
    expected: Expected,
    gateway_is_down: asyncio.Event,
    *,
    pause_s: float = 0.0,
    leave_after: int | None = None,
) -> tuple[End, Answer]:
    """Ask, and read all of the answer, or leave after so many messages.

    Between the first ones, NUM_PAUSES, the client does something else for `pause_s`.

    When the gateway itself dies the client goes on with the tokens that it has, as
    docs/reliability.md tells it to.
    """
    answer = Answer(expected)
    while True:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await _read(url, answer, pause_s, leave_after)
            if not answer.is_over:
                return End.LEFT, answer
            answer.check_whole()
            return End.INTACT, answer
        except grpc.aio.AioRpcError as error:
            answer.error = f"{error.code().name}: {error.details()}"
            is_cut = error.code() == grpc.StatusCode.UNAVAILABLE or error.details() == WRITE_FAILED
            if not is_cut or not gateway_is_down.is_set():
                return _refused_or_lost(answer)
            answer.num_resumed += bool(answer.token_ids)
            await asyncio.sleep(RETRY_S)
        except InferenceServerException as error:
            answer.error = str(error.message())
            return _refused_or_lost(answer)
        except ValueError as error:
            answer.error = str(error)
            return End.LOST, answer
        except TimeoutError:
            answer.error = f"no end within {DEADLINE_S:.0f} s, {len(answer.token_ids)} tokens"
            return End.LOST, answer


def _refused_or_lost(answer: Answer) -> tuple[End, Answer]:
    is_refusal = any(sentence in answer.error for sentence in REFUSALS)
    return (End.REFUSED if is_refusal and not answer.token_ids else End.LOST), answer


async def _read(url: str, answer: Answer, pause_s: float, leave_after: int | None) -> None:
    """Read an answer, or the rest of it, on a stream of its own."""
    inputs = dict(answer.expected.inputs)
    if answer.token_ids:
        inputs["emitted_ids"] = answer.token_ids
    request = {
        "model_name": MODEL,
        "inputs": [tensor(name, value) for name, value in inputs.items()],
        "enable_empty_final_response": True,
    }

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield request

    async with grpcclient.InferenceServerClient(url, channel_args=OWN_CONNECTION) as client:
        responses = client.stream_infer(requests())
        num_seen = 0
        try:
            async for result, error in responses:
                if error is not None:
                    raise error
                answer.take(result)
                num_seen += 1
                if answer.is_over or num_seen == leave_after:
                    return
                if num_seen <= NUM_PAUSES:
                    await asyncio.sleep(pause_s)
        finally:
            responses.cancel()
        raise ValueError(f"the stream ended after {len(answer.token_ids)} tokens")
