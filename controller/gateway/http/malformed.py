"""What is no HTTP request that can be read, refused in the form of everything else."""

from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, LineTooLong

from trt_mtp.controller.gateway.http.errors import error_body, refused
from trt_mtp.controller.gateway.http.pieces import PiecewiseHandler

MAX_HEADER_BYTES = 16 * 1024  # of each, and of the address; a token behind a proxy may have 9 KB
MAX_HEAD_BYTES = 64 * 1024  # of all together; what is parsed of them takes several times as much

_SENTENCE = error_body(
    f"the request's headers are too long: at most {MAX_HEAD_BYTES} bytes are taken together"
).encode()
_TOO_LONG_HEAD = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b"
) % (len(_SENTENCE), _SENTENCE)


class Connection(PiecewiseHandler):
    """A connection whose refusals of malformed requests are ours."""

    __slots__ = ("_body", "_num_head_bytes")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._body: Any = None  # of the request that came last
        self._num_head_bytes = 0  # since then

    def parse(self, data: bytes) -> None:
        """Parse what came; headers that don't end are given up: nobody knows yet whose they are."""
        num_before, is_body = self._request_count, self._body and not self._body.is_eof()
        super().parse(data)
        if self._request_count != num_before and self._messages:
            self._body, self._num_head_bytes = self._messages[-1][1], 0
        elif not is_body:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES and self.transport is not None:
                self.transport.write(_TOO_LONG_HEAD)
                self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The refusal; aiohttp's own shows bytes of the request, on several lines."""
        response = super().handle_error(request, status, exc, message)
        if isinstance(exc, HttpProcessingError):
            response = refused(*refusal_of(exc))
            response.force_close()
        return response


def refusal_of(error: HttpProcessingError) -> tuple[HTTPStatus, str]:
    """Status and sentence.

    >>> refusal_of(LineTooLong(b"Bearer abc", 8190))[0].value
    431
    """
    if isinstance(error, LineTooLong):
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, (
            f"a header or the address of the request is too long: at most {MAX_HEADER_BYTES} bytes "
            "are taken for each"
        )
    if error.message.startswith("Too many headers"):
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        return status, "the request has too many headers: at most 128 are taken"
    if isinstance(error, BadHttpMethod) and "HTTPS" in error.message:
        return HTTPStatus.BAD_REQUEST, "the request is HTTPS, and this port takes HTTP"
    reason = error.message.partition("\n")[0].rstrip(":")[:80]
    return HTTPStatus.BAD_REQUEST, f"the request is not HTTP/1.1 ({reason})"
