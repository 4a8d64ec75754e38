"""What is refused in OpenAI's form: an object with message, type, param and code.

https://platform.openai.com/docs/guides/error-codes; the openai packages read `x-should-retry`,
`retry-after-ms` and `Retry-After` (openai-python, _base_client.py).
"""

import json
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc
from aiohttp import web

from trt_mtp.controller.gateway.failure import (
    AnswerError,
    LimitError,
    NotReadyError,
    QueueFullError,
    RequestError,
    RpcError,
    status_of,
)
from trt_mtp.controller.gateway.http.errors import http_status, wrong_method
from trt_mtp.controller.gateway.http.paths import not_served
from trt_mtp.errors import InputError, TrtMtpError

REQUEST_ID = "x-request-id"
_GIVEN_ID = re.compile(r"[\w.:/-]{1,128}", re.ASCII)
RETRY_S = 1.0  # when to come again where nobody knows
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    413: "request_too_large", 415: "unsupported_media_type", 429: "rate_limit_exceeded",
    503: "unavailable", 504: "timeout",
}  # fmt: skip
# what begins or is in a sentence of the gateway or of a variant -> the parameter that it is about
_PARAMS = (
    (re.compile(r"together they may be at most|with its answer it may|tokens: at most"), "prompt"),
    (
        re.compile(
            r"^(max_tokens|min_tokens|temperature|top_k|top_p|seed|frequency_penalty"
            r"|presence_penalty) is "
        ),
        "",
    ),
    (re.compile(r"^(messages(?:\[\d+\][\w.\[\]]*)?)"), ""),
    (re.compile(r"^(tools)"), ""),
    (re.compile(r"^sampling_param_logprobs"), "logprobs"),
    (re.compile(r"^guided_decoding\.(tool_choice)"), ""),
    (re.compile(r"^guided_decoding\.(?:regex|choice)"), "structured_outputs"),
    (re.compile(r"^guided_decoding"), "response_format"),
    (re.compile(r"^request parameter (task|draft_length|session_id|tenant|latency_class)"), ""),
    (re.compile(r"^the prompt|^input_ids "), "prompt"),
    (re.compile(r"stop texts?\b"), "stop"),
)
_TOO_LONG = _PARAMS[0][0]


class ParameterError(InputError):
    """A request whose parameter `param` is wrong, or asks for what isn't done here."""

    def __init__(
        self, message: str, param: str | None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class Refusal(NamedTuple):
    """An error as clients see it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = {}

    def body(self) -> str:
        """The JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, kind),
            "param": self.param,
            "code": self.code or _CODES.get(self.status),
        }
        return json.dumps({"error": error}, ensure_ascii=False)

    def response(self) -> web.Response:
        """The response."""
        return web.Response(
            status=self.status,
            headers=self.headers,
            text=self.body(),
            content_type="application/json",
        )


def refusal_of(error: TrtMtpError, prompt: str) -> Refusal:
    """What a client is told; `prompt` is the name of the parameter that has the prompt."""
    if isinstance(error, ParameterError):
        return Refusal(error.status, str(error), error.param, error.code)
    status, message = http_status(status_of(error).code), str(error)
    if isinstance(error, InputError) or status == 400:
        param = _param_of(message, prompt)
        if _TOO_LONG.search(message):
            return Refusal(status, _as_openai_has_it(message), param, "context_length_exceeded")
        return Refusal(status, message, param, "invalid_value")
    return Refusal(status, message, headers=_retry_headers(error))


def _as_openai_has_it(message: str) -> str:
    """The sentence about a prompt that is too long, after the words by which clients know one.

    LiteLLM, for one, then takes a model with a longer context; it does not look at the code.
    """
    most = re.search(r"at most (\d+)", message)
    limit = f" is {most[1]} tokens" if most else " is exceeded"
    return f"This model's maximum context length{limit}: {message}"


def _param_of(message: str, prompt: str) -> str | None:
    for pattern, name in _PARAMS:
        found = pattern.search(message)
        if found:
            return prompt if name == "prompt" else name or found[1]
    return None


def _retry_headers(error: TrtMtpError) -> dict[str, str]:
    """When to come again, or not to: the client's package sends what failed twice more."""
    if isinstance(error, LimitError | QueueFullError | NotReadyError):
        wait_s = error.retry_after_s if isinstance(error, LimitError) else RETRY_S
        return {
            "Retry-After": str(math.ceil(wait_s)),
            "retry-after-ms": str(math.ceil(wait_s * 1000)),
        }
    # several variants were tried, or the request's own time is over
    is_hopeless = isinstance(error, AnswerError) or not isinstance(error, RequestError)
    return {"x-should-retry": "false"} if is_hopeless else {}


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Have a response an id: the client's own where it can be repeated, or a new one."""
    given = request.headers.get(REQUEST_ID, "")
    is_fit = _GIVEN_ID.fullmatch(given) is not None
    response.headers[REQUEST_ID] = given if is_fit else f"req_{secrets.token_hex(12)}"


@web.middleware
async def openai_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every error that a handler raises, as a refusal."""
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except web.HTTPException as error:
        return _of_http(request, error).response()
    except TrtMtpError as error:
        prompt = "messages" if "chat" in request.path else "prompt"
        return refusal_of(error, prompt).response()
    except RpcError as error:
        return Refusal(http_status(error.code), error.details).response()
    except grpc.aio.AioRpcError as error:
        return Refusal(http_status(error.code()), error.details() or "").response()


def _of_http(request: web.Request, error: web.HTTPException) -> Refusal:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        limit = f"{request.client_max_size} bytes are taken here (--max-message-mb)"
        return Refusal(413, f"the request's body is too large: at most {limit}")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return Refusal(405, wrong_method(request, error))
    if isinstance(error, web.HTTPNotFound):
        return Refusal(404, not_served(request, "docs/openai.md"))
    return Refusal(error.status, error.reason)
