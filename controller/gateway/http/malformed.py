"""What is no HTTP request that can be read, refused in the form of everything else."""

from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, HttpProcessingError, LineTooLong

from trt_mtp.controller.gateway.http.errors import refused

MAX_HEADER_BYTES = 16 * 1024  # of each, and of the address; a token behind a proxy may have 9 KB


class Connection(web.RequestHandler):
    """A connection whose refusals of malformed requests are ours."""

    __slots__ = ()

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
