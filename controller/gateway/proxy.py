"""The way of a request, from the client's door to its last message.

GrpcStream and the HTTP handlers read a request; `Proxy.handle` has it answered:

    quota          access/authenticator.py   what the caller may use, and what is charged
    queue          admission_queue.py        who gets the next free place
    router         router.py                 what each variant could do for it now
    decision       controller/policy.py      who may have it (controller/filters.py), who is fastest
    lease          lease.py                  the answer read from that variant
    observers      observers.py, metrics.py  told once of each lease, and of each request
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.authenticator import Caller
from trt_mtp.controller.gateway.admission_queue import AdmissionQueue
from trt_mtp.controller.gateway.call import MAX_HUNG, InferenceCall
from trt_mtp.controller.gateway.failure import (
    AnswerError,
    LimitError,
    VariantFailedError,
    WaitedTooLongError,
)
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.metrics import GatewayMetrics
from trt_mtp.controller.gateway.retry_budget import RetryBudget
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.gateway.servers.upstream import Metadata
from trt_mtp.controller.request import (
    Hints,
    RequestFeatures,
    is_streaming,
    read_features,
    read_hints,
)
from trt_mtp.controller.request_limits import check_request
from trt_mtp.controller.tasks import TASKS
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.kserve import InferRequest, parse_stream_response

log = logging.getLogger(__name__)

TOO_MUCH = "your requests and single answers hold too many bytes here: ask for fewer at once"
RETRY_S = 1.0

Send = Callable[[bytes], Awaitable[None]]
ReadFeatures = Callable[[InferRequest, Hints], RequestFeatures]


class Proxy:
    """Answers requests to the public model, each from as many variants as it takes."""

    def __init__(
        self, pool: Pool, queue: AdmissionQueue, retries: RetryBudget, metrics: GatewayMetrics
    ) -> None:
        self.pool = pool
        self.queue = queue
        self.retries = retries
        self.metrics = metrics

    def open(
        self,
        request: InferRequest,
        caller: Caller,
        metadata: Metadata = (),
        deadline_at: float | None = None,
        read: ReadFeatures = read_features,
        optional_outputs: frozenset[str] = frozenset(),
    ) -> InferenceCall:
        """The call of a request, checked; raises InputError for one that is wrong.

        `read` is for a door that knows more of the request than its tensors say, and
        `optional_outputs` are to be in the answers of variants that have them.
        """
        with self.metrics.refusing():
            lengths = self.pool.index.draft_lengths
            hints = read_hints(request, TASKS, lengths)
            check_request(request)
            features = caller.own(read(request, hints))
            if features.thinking is None:
                features = replace(features, thinking=self.pool.index.thinks_by_default)
        reasons = hints.wants_reasons
        return InferenceCall(
            request, features, caller, metadata, deadline_at, reasons, optional_outputs
        )

    async def handle(self, call: InferenceCall, send: Send) -> None:
        """Carry the answer to the client through `send`.

        Raises AnswerError if it can't be completed, LimitError if the caller has no quota left,
        and as `AdmissionQueue.place`. The request is counted whatever happens.
        """
        self.retries.request()
        with self.metrics.counted(call), call.quota():
            last_message = await self._answer(call, send)
        if last_message is not None:  # a client that has the whole answer finds it counted
            await send(last_message)

    async def answer_once(
        self,
        request: InferRequest,
        caller: Caller,
        metadata: Metadata = (),
        deadline_at: float | None = None,
    ) -> Any:
        """The one pb.ModelInferResponse to a request that is not streamed; raises TrtMtpError.

        Triton gives no single answers for the variants' kind of model, so it is asked for a stream.
        """
        if is_streaming(request):
            self.metrics.refused()
            raise InputError(
                "one answer is given here: for streaming, use ModelStreamInfer or generate_stream"
            )
        return await self.single_answer(self.open(request, caller, metadata, deadline_at))

    async def single_answer(self, call: InferenceCall) -> Any:
        """The pb.ModelInferResponse to a call that is not streamed; raises as `handle`.

        While it grows here, it counts in its caller's room, and ends where all that the caller has
        there is too much: a variant may send without end.
        """
        answers: list[bytes] = []
        with call.caller.room.hold_now(0) as hold:

            async def keep(raw: bytes) -> None:
                hold.grow(len(raw))
                if call.caller.room.is_overfull:
                    raise LimitError(TOO_MUCH, RETRY_S)
                answers.append(raw)

            await self.handle(call, keep)
        return only_answer(answers)

    async def _answer(self, call: InferenceCall, send: Send) -> bytes | None:
        """Send all of the answer but its last message, which is returned if there is one."""
        while True:
            lease = await self._place(call)
            try:
                with lease:  # sends the request
                    async for message in lease:
                        await send(message)
                return lease.last_message
            except VariantFailedError as failure:
                self._retry(call, lease, failure)

    async def _place(self, call: InferenceCall) -> Lease:
        """The next free place at a variant that can take the call."""
        try:
            return await self.queue.place(call)
        except WaitedTooLongError:
            raise
        except TrtMtpError:
            if call.last_failure is None:
                raise
            raise call.last_failure.final(since=call.last_failure_at) from None

    def _retry(self, call: InferenceCall, lease: Lease, failure: VariantFailedError) -> None:
        """Note a failure; raises AnswerError if the request may not be tried again."""
        log.warning("%s failed: %s", lease.replica.key, failure)
        call.note_failure(lease, failure)
        if call.hangs_variants:
            silent = " and ".join(replica.key for replica in call.failed_variants[-MAX_HUNG:])
            raise AnswerError(
                grpc.StatusCode.INTERNAL,
                f"variants {silent} sent nothing for too long in answer to this request, which may "
                f"be the cause: it goes to no other",
            ) from None
        if not call.can_continue or not self.retries.take():
            raise failure.final() from None


def only_answer(messages: Iterable[bytes]) -> Any:
    """The pb.ModelInferResponse among a single answer's messages; raises AnswerError for none."""
    for raw in messages:
        response = parse_stream_response(raw).infer_response
        if response.outputs:
            return response
    raise AnswerError(grpc.StatusCode.INTERNAL, "the variant ended without an answer")
