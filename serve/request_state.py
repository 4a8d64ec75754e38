"""A request that a variant's Triton model is answering: what was sent of it, and what comes next.

Runs inside Triton's python-backend process; only there `triton_python_backend_utils` exists.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trt_mtp.serve.contract import (
    CANCELLED,
    IN_FLIGHT,
    INTERNAL_ERROR,
    LOGPROBS,
    NUM_INPUT,
    NUM_REASONING,
    OUTPUTS,
)
from trt_mtp.serve.engine.base import Chunk, Generation
from trt_mtp.serve.pending_message import PendingMessage
from trt_mtp.serve.variant_request import VariantRequest

NUMPY_TYPES = {
    "TYPE_STRING": np.object_,
    "TYPE_INT32": np.int32,
    "TYPE_UINT64": np.uint64,
    "TYPE_FP32": np.float32,
    "TYPE_BOOL": np.bool_,
}
DTYPES = {spec.name: NUMPY_TYPES[spec.data_type] for spec in OUTPUTS}


class RequestState:
    """A running request; after submission only the response sender's thread uses it."""

    def __init__(
        self,
        request_id: str,
        sender: Any,
        outputs: frozenset[str],
        request: VariantRequest,
    ) -> None:
        self.request_id = request_id  # empty if the client gave none
        self.sender = sender  # Triton's, of this request
        self.outputs = outputs - request.omitted
        self.is_streaming = request.is_streaming
        self._wants_logprobs = request.request.num_logprobs is not None
        self.num_input_tokens = len(request.request.prompt_ids)
        self.seed = request.request.sampling.seed
        self.generation: Generation | None = None
        self.is_cancelled_in_band = False  # by another request; the client reads to the end
        self._pending = PendingMessage(request.echo, self.outputs, request.interval)
        start = request.request.reasoning
        self._reasoning = start and start.counter(request.request.emitted_ids)
        self._tells_read = request.tells_read
        self._has_told_input = False
        self._last: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Add a chunk to the next response."""
        self._pending.add(chunk)
        if self._reasoning is not None:
            self._reasoning.push(chunk.token_ids)
        self._last = chunk

    @property
    def is_over(self) -> bool:
        """True if the last chunk was added."""
        return self._last is not None and self._last.finish_reason is not None

    def take_response(self, num_in_flight: int) -> Any:
        """The response with the chunks since the last one; None if none is needed.

        `num_in_flight` requests are left when it is sent.
        """
        chunk = self._last
        if chunk is None:
            return None
        if chunk.finish_reason == "error":
            return error_response(INTERNAL_ERROR + chunk.error, pb_utils.TritonError.INTERNAL)
        if chunk.finish_reason == "cancelled" and not self.is_cancelled_in_band:
            return error_response(CANCELLED, pb_utils.TritonError.CANCELLED)
        if chunk.finish_reason is None and not (self.is_streaming and self.is_due()):
            return None
        values: dict[str, Any] = {"text_output": [self._pending.text.encode()]}
        values["output_ids"] = self._pending.token_ids
        if self._wants_logprobs:
            values[LOGPROBS] = [f"[{', '.join(self._pending.logprobs)}]".encode()]
        values[IN_FLIGHT] = [num_in_flight]
        if self._pending.text and not self._has_told_input:
            self._has_told_input = True
            values[NUM_INPUT] = [self.num_input_tokens]
        if chunk.finish_reason is not None:
            values |= self._closing_values(chunk)
        self._pending.sent()
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.array(value, DTYPES[name]))
                for name, value in values.items()
                if name in self.outputs
            ]
        )

    def take_read(self, num_in_flight: int) -> Any:
        """The response before all others, that its grammar was accepted; None if it isn't due."""
        if not self._tells_read or IN_FLIGHT not in self.outputs:
            return None
        self._tells_read = False
        value = np.array([num_in_flight], DTYPES[IN_FLIGHT])
        return pb_utils.InferenceResponse([pb_utils.Tensor(IN_FLIGHT, value)])

    def is_due(self) -> bool:
        """Whether what there is since the last response is to be sent now."""
        return self._pending.is_due()

    def _closing_values(self, chunk: Chunk) -> dict[str, Any]:
        counters = chunk.counters
        drafted = counters.num_draft_tokens
        optional: dict[str, Any] = {} if chunk.margin is None else {"margin": [chunk.margin]}
        if self._reasoning is not None:
            optional[NUM_REASONING] = [self._reasoning.num_tokens]
        return optional | {
            "finish_reason": [str(chunk.finish_reason).encode()],
            NUM_INPUT: [self.num_input_tokens],
            "num_output_tokens": [chunk.num_output_tokens],
            "num_steps": [counters.num_steps],
            "num_draft_tokens": [counters.num_draft_tokens],
            "num_accepted_draft_tokens": [counters.num_accepted_draft_tokens],
            "accepted_per_position": list(counters.accepted_per_position),
            "cut_after": [counters.cut_after],
            "total_draft_tokens": [drafted],
            "total_accepted_draft_tokens": [counters.num_accepted_draft_tokens],
            "acceptance_rate": [counters.num_accepted_draft_tokens / max(drafted, 1)],
            "seed": [self.seed],
        }


def error_response(message: str, code: Any) -> Any:
    """A response that carries an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
