"""What is refused over HTTP, in Triton's form: a JSON object with a sentence."""

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

import grpc
from aiohttp import web

from trt_mtp.controller.gateway.failure import LimitError, RpcError, status_of
from trt_mtp.controller.gateway.http.paths import not_served
from trt_mtp.controller.request import MAX_NAME_CHARS
from trt_mtp.errors import TrtMtpError

STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
UNKNOWN_STATUS = 502


def http_status(code: grpc.StatusCode) -> int:
    """The HTTP status for a gRPC one."""
    return STATUSES.get(code, UNKNOWN_STATUS)


def error_body(sentence: str) -> str:
    """The JSON that says it."""
    return json.dumps({"error": sentence})


def error_headers(error: TrtMtpError) -> Mapping[str, str]:
    """When to come again, where that is known."""
    if isinstance(error, LimitError):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    return {}


def refused(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """A refusal."""
    return web.Response(
        status=status, headers=headers, text=error_body(sentence), content_type="application/json"
    )


def wrong_method(request: web.Request, error: web.HTTPMethodNotAllowed) -> str:
    """A sentence: which methods the path takes, or that web pages need --cors-origin."""
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        origin = request.headers.get("Origin", "")[:MAX_NAME_CHARS]
        return f"web pages of {origin!r} may not use {request.path}: there is no --cors-origin"
    allowed = " or ".join(sorted(error.allowed_methods))
    return f"{request.path} takes {allowed}, not {request.method}"


@web.middleware
async def errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every error that a handler raises, as a refusal."""
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except web.HTTPRequestEntityTooLarge:
        limit = f"{request.client_max_size} bytes are taken here (--max-message-mb)"
        return refused(413, f"the request's body is too large: at most {limit}")
    except web.HTTPNotFound:
        return refused(404, not_served(request, "docs/gateway.md"))
    except web.HTTPMethodNotAllowed as error:
        return refused(405, wrong_method(request, error))
    except web.HTTPException as error:
        return refused(error.status, error.reason)
    except TrtMtpError as error:
        found = status_of(error)
        return refused(http_status(found.code), found.details, error_headers(error))
    except RpcError as error:
        return refused(http_status(error.code), error.details)
    except grpc.aio.AioRpcError as error:
        return refused(http_status(error.code()), error.details() or error.code().name)
    except ConnectionResetError:  # the client is gone, which is no failure of ours
        raise asyncio.CancelledError from None
