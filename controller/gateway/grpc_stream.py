"""A client's ModelStreamInfer call: a stream of requests, each answered on its own.

Nothing buffers without bound: not what the client sends (`rooms`), nor what it doesn't take
(outbox.py). A client that reads slowly stops its own variant's stream, by HTTP/2 flow control, and
nobody else's; an answer that is short enough to wait here holds no place at its variant.
"""

import asyncio
import time
from functools import partial
from typing import Any

import grpc

from trt_mtp.controller.gateway.access.authenticator import Caller
from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.controller.gateway.call import check_may_pass, deadline_at, forwarded_metadata
from trt_mtp.controller.gateway.failure import ClientStalledError, RpcError, let_go, status_of
from trt_mtp.controller.gateway.outbox import Outbox
from trt_mtp.controller.gateway.proxy import Proxy
from trt_mtp.controller.gateway.servers.backend import Backend
from trt_mtp.controller.gateway.servers.upstream import UpstreamLost
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.kserve import InferRequest, error_response, read_request

# A client that sends it gets a failure as the stream's gRPC status. Triton is not sent it: 2.51
# (24.10) crashes with a segmentation fault when a decoupled model goes on after an error.
GRPC_ERRORS = ("triton_grpc_error", "true")
MAX_REQUESTS = 1_024  # of one stream that are not answered yet; then no more are read from it
MAX_BYTES = 16 * 1024 * 1024  # of these requests
MAX_CALLER_BYTES = 64 * 1024 * 1024  # read from all streams of a caller beyond those in its room
TOO_MUCH = "too many bytes of requests wait here: send it again when some are answered"
CLIENT_STALL_S = 60.0  # for a client to take a message
LAST_REQUESTS_S = 1.0  # for those that are on their way when the gateway is to end


class GrpcStream:
    """One ModelStreamInfer call of a client.

    Requests to the public model are answered side by side, each on an upstream stream of its own.
    All others pass unread, one after the other: Triton 2.51 aborts when it refuses a request on a
    stream on which another one's answer is under way.
    """

    def __init__(self, proxy: Proxy, caller: Caller, context: Any, idle_s: float) -> None:
        """`idle_s` is how long it stays open while nothing is asked and nothing answered."""
        self._idle_s, self._idle_since = idle_s, time.monotonic()
        self._proxy = proxy
        self._caller = caller
        self._pool = proxy.pool
        self._context = context
        self._metadata = forwarded_metadata(context)
        self._fails_whole = GRPC_ERRORS in (context.invocation_metadata() or ())
        self._passing = asyncio.Lock()  # held by the request to another model that has its turn
        self._outbox = Outbox(context)
        self._room = asyncio.Semaphore(MAX_REQUESTS)
        self._rooms = (ByteRoom(MAX_BYTES), caller.room)  # for the requests' bytes
        self._answering: set[asyncio.Task[None]] = set()
        self._tasks = asyncio.TaskGroup()
        self._reader: asyncio.Task[None] | None = None
        self._is_reading = False
        self._is_cut_off = False
        self._is_failing = False

    async def run(self) -> None:
        """Carry messages until both sides are done; raises RpcError for any other end."""
        ended: RpcError | None = None
        try:
            async with self._tasks:
                self._reader = self._tasks.create_task(self._read_requests())
                self._tasks.create_task(self._outbox.run())
                await asyncio.wait([self._reader])
                if self._answering:
                    await asyncio.wait(self._answering)  # and each ends
                self._outbox.end()
        except* RpcError as group:
            ended = next(each for each in group.exceptions if isinstance(each, RpcError))
            let_go(group)
        if ended is None and self._is_cut_off:
            ended = RpcError(grpc.StatusCode.UNAVAILABLE, "the gateway is shutting down")
        if ended is not None:
            raise ended

    def drain(self) -> None:
        """Take the last requests; the stream ends when all are answered."""
        asyncio.get_running_loop().call_later(LAST_REQUESTS_S, self._cut_off)

    def _cut_off(self) -> None:
        """Read no more requests of a client that isn't done."""
        if self._reader is None or self._reader.done():
            return
        self._is_cut_off = True
        if self._is_reading:
            self._reader.cancel()

    async def _read_requests(self) -> None:
        while not self._is_cut_off:
            self._is_reading = True
            raw = await self._context.read()  # for as long as the client keeps its stream open
            self._is_reading = False
            if raw is grpc.aio.EOF:
                break
            await self._forward(raw)
            del raw  # not to be kept while the next one is waited for

    async def _forward(self, raw: bytes) -> None:
        try:
            request = read_request(raw)
            is_public = request.message.model_name == self._pool.public_name
            if not is_public:
                check_may_pass(self._caller, self._pool, request.message)
        except TrtMtpError as error:
            raise status_of(error) from None
        if self._caller.room.num_waiting_bytes + len(raw) > MAX_CALLER_BYTES:
            await self._outbox.put(error_response(TOO_MUCH, request.message.id, {}))
            return
        await self._room.acquire()  # until an answer ends, and each does
        for room in self._rooms:
            if not room.take_now(len(raw)):
                await room.take(len(raw))
        answering = self._answer(request) if is_public else self._pass_on(raw)
        task = self._tasks.create_task(answering)
        self._answering.add(task)
        task.add_done_callback(partial(self._has_room, len(raw)))

    def _has_room(self, size: int, task: "asyncio.Task[None]") -> None:
        self._idle_since = time.monotonic()
        self._answering.discard(task)
        self._room.release()
        for room in self._rooms:
            room.give_back(size)

    async def _answer(self, request: InferRequest) -> None:
        call = None
        try:
            until = deadline_at(request, self._context.time_remaining())
            call = self._proxy.open(request, self._caller, self._metadata, until)
            await self._proxy.handle(call, self._outbox.put)
        except TrtMtpError as error:
            if self._fails_whole:
                await self._outbox.flush()
                raise status_of(error) from None
            parameters = call.parameters if call else {}
            await self._outbox.put(error_response(str(error), request.message.id, parameters))

    def look(self) -> None:
        """End the call of a client that takes nothing or is no longer known, every now and then."""
        if self._is_failing:
            return
        try:
            self._caller.check_known()
            self._check_moves(time.monotonic())
        except TrtMtpError as error:
            self._is_failing = True
            self._tasks.create_task(_fail(status_of(error)))

    def _check_moves(self, now: float) -> None:
        if now - self._outbox.writing_since > CLIENT_STALL_S:
            raise ClientStalledError(
                f"the client took nothing of what was sent for {CLIENT_STALL_S:.0f} s"
            )
        if now - self._outbox.full_since > CLIENT_STALL_S:
            raise ClientStalledError(
                f"the client took too little of what was sent for {CLIENT_STALL_S:.0f} s, and its "
                f"answers wait for it at their variants"
            )
        if self._is_reading and not self._answering and now - self._idle_since > self._idle_s:
            raise ClientStalledError(
                f"no whole request came on this stream for {self._idle_s:g} s: open another one"
            )

    async def _pass_on(self, raw: bytes) -> None:
        """Forward a request to another model, and what comes back, on a stream of its own."""
        async with self._passing:
            try:
                with self._caller.passing_quota():
                    await self._pass_on_now(raw, self._pool.first_live())
            except TrtMtpError as error:
                raise status_of(error) from None

    async def _pass_on_now(self, raw: bytes, backend: Backend) -> None:
        upstream = backend.open_stream(self._metadata)
        upstream.begin(raw, is_last=True)
        try:
            while True:
                await self._outbox.put(await upstream.read())
        except UpstreamLost as lost:
            if not lost.is_orderly:
                await self._outbox.flush()
                raise RpcError(lost.code, lost.details) from None
        finally:
            backend.read_out(upstream)


async def _fail(error: RpcError) -> None:
    raise error
