"""How a client's request ends other than with an answer: what it is told, and with which status."""

import grpc

from trt_mtp.errors import InputError, TrtMtpError


class RpcFailure(Exception):
    """Ends a client's call with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class QueueFullError(TrtMtpError):
    """All variants are busy, and as many requests wait as may."""


class WaitedTooLongError(TrtMtpError):
    """The request's time was over before a variant was free."""


class UnauthenticatedError(TrtMtpError):
    """No token, or one that is nobody's."""


class LimitError(TrtMtpError):
    """More than the tenant may use; `retry_after_s` says when to come again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AnswerError(TrtMtpError):
    """An answer that can't be completed; `code` is what Triton would have given."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def failure(error: TrtMtpError) -> RpcFailure:
    """The status of a request that was refused, or whose answer broke off."""
    if isinstance(error, AnswerError):
        code = error.code
    elif isinstance(error, InputError):
        code = grpc.StatusCode.INVALID_ARGUMENT
    elif isinstance(error, UnauthenticatedError):
        code = grpc.StatusCode.UNAUTHENTICATED
    elif isinstance(error, QueueFullError | LimitError):
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
    elif isinstance(error, WaitedTooLongError):
        code = grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        code = grpc.StatusCode.UNAVAILABLE
    return RpcFailure(code, str(error))
