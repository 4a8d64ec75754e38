"""How a client's request ends other than with an answer: what it is told, and with which status.

RequestError                gRPC                  HTTP (http/errors.py)
├── NotReadyError           UNAVAILABLE           503
├── QueueFullError          RESOURCE_EXHAUSTED    429
├── WaitedTooLongError      DEADLINE_EXCEEDED     504
├── ClientStalledError      DEADLINE_EXCEEDED     504
├── ForbiddenError          PERMISSION_DENIED     403
├── UnauthenticatedError    UNAUTHENTICATED       401
├── LimitError              RESOURCE_EXHAUSTED    429, with Retry-After
├── WrongRequestError       INVALID_ARGUMENT      400
└── AnswerError             as Triton's           500 or 503

InputError is INVALID_ARGUMENT and 400, any other TrtMtpError UNAVAILABLE and 503.
VariantFailedError is not for clients: it sends a request to another variant.
"""

import asyncio
import time
from traceback import clear_frames
from typing import Any

import grpc

from trt_mtp.controller.gateway.servers.health import CallEnd
from trt_mtp.errors import InputError, TrtMtpError


class RpcError(Exception):
    """Ends a client's call with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class RequestError(TrtMtpError):
    """A request that is not answered; `code` is the status of its call."""

    code = grpc.StatusCode.UNAVAILABLE


class NotReadyError(RequestError):
    """No variant that could take the request is ready now; one may be soon."""


class QueueFullError(RequestError):
    """All variants are busy, and as many requests wait as may."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class WaitedTooLongError(RequestError):
    """The request's time was over before a variant was free."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class ClientStalledError(RequestError):
    """The client doesn't take what it is sent."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class ForbiddenError(RequestError):
    """A request that this caller may not make."""

    code = grpc.StatusCode.PERMISSION_DENIED


class UnauthenticatedError(RequestError):
    """No token, or one that is nobody's."""

    code = grpc.StatusCode.UNAUTHENTICATED


class LimitError(RequestError):
    """More than the tenant may use; `retry_after_s` says when to come again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WrongRequestError(RequestError):
    """A request that its variant refuses before it answers, as every other one would."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class AnswerError(RequestError):
    """An answer that can't be completed; `code` is what Triton would have given."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class VariantFailedError(Exception):
    """A variant failed, which says nothing of the request: another one may answer it.

    `end` is what it says of the variant. `is_lost` if the variant is gone, rather than that it said
    what went wrong; `is_unreachable` if the whole server is.
    """

    def __init__(
        self,
        reason: str,
        variant: str,
        end: CallEnd = CallEnd.FAILED,
        *,
        is_lost: bool = True,
        is_unreachable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.variant = variant
        self.end = end
        self.is_lost = is_lost
        self.is_unreachable = is_unreachable

    def final(self, since: float | None = None) -> AnswerError:
        """What the client is told if this ends its answer.

        Another variant was waited for since the monotonic time `since`, if it is given.
        """
        if not self.is_lost:
            return AnswerError(grpc.StatusCode.INTERNAL, str(self))
        waited = ""
        if since is not None:
            waited_s = time.monotonic() - since
            waited = f", and no other could go on within {waited_s:.1f} s (--failover-wait-s)"
        return AnswerError(
            grpc.StatusCode.UNAVAILABLE,
            f"variant {self.variant} was lost before the answer was complete ({self}){waited}; "
            f"send the request again",
        )


def status_of(error: TrtMtpError) -> RpcError:
    """The status of a request that was refused, or whose answer broke off."""
    if isinstance(error, RequestError):
        code = error.code
    elif isinstance(error, InputError):
        code = grpc.StatusCode.INVALID_ARGUMENT
    else:
        code = grpc.StatusCode.UNAVAILABLE
    return RpcError(code, str(error))


def let_go(error: BaseException | None) -> None:
    """Have an error that was dealt with, and those before it, no longer hold what raised them.

    An error holds the frames it came through, and a request of megabytes is in some of them. gRPC
    and asyncio keep errors in cycles, which last until the garbage collector looks: it counts
    objects, not bytes, and a thousand such requests are gigabytes.
    """
    while error is not None:
        clear_frames(error.__traceback__)  # tasks have their errors' tracebacks, too
        error.__traceback__ = None
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                let_go(each)
        before, error.__cause__, error.__context__ = error.__context__, None, None
        error = before


async def end_call(context: Any, error: RpcError) -> None:
    """End a client's call with a status; what is in the caller's frame is kept for a while.

    Where gRPC can't send it, because the client is gone or takes not even the first message, the
    call is dropped, which resets its stream.
    """
    let_go(error)
    try:
        await context.abort(error.code, error.details)
    except grpc.aio.AbortError as aborted:  # which the call and it keep in a cycle
        let_go(aborted.__context__)
        raise
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None
