"""The gateway's own request parameters in a request of an OpenAI client.

They are in the body's `trt_mtp` (extra_body of the openai package) or in headers `x-trt-mtp-*`.
What clients send for other servers' sessions and priorities is understood as well.
"""

from collections.abc import Mapping
from typing import Any

from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.gateway.openai.schema import CommonRequest
from trt_mtp.controller.request import MAX_NAME_CHARS
from trt_mtp.serve.contract import INTERVAL, PARAMETERS
from trt_mtp.serve.streaming_interval import INTERVALS

PREFIX = "x-trt-mtp-"
# of Claude Code, Codex, and routers of other servers, which keep a conversation on one server
SESSION_HEADERS = (
    "x-claude-code-session-id", "session-id", "session_id", "x-session-affinity", "x-session-id",
)  # fmt: skip
TIMEOUT_HEADER = "x-stainless-read-timeout"  # s, of the openai packages
MAX_TIMEOUT_S = 3_600.0
DEFAULT_PRIORITY = 100  # of the gateway's queue, where 1 is first
_TIERS = {"priority": 10, "flex": 1_000}  # of service_tier


def request_parameters(
    request: CommonRequest, headers: Mapping[str, str], pinned: int | None
) -> dict[str, Any]:
    """The request parameters by name; `pinned` is the draft length in the model's name.

    Raises ParameterError where that is not the one asked for besides.
    """
    parameters = _given(request, headers)
    length = parameters.get("draft_length")
    if pinned is not None:
        if length is not None and str(length) not in ("auto", str(pinned)):
            raise ParameterError(
                f"the model {request.model!r} is at draft length {pinned}, and draft_length is "
                f"{str(length)[:MAX_NAME_CHARS]!r}: give one of them",
                "trt_mtp.draft_length",
            )
        parameters["draft_length"] = pinned
    priority = _priority(request)
    if priority != DEFAULT_PRIORITY:
        parameters["priority"] = priority
    timeout_s = timeout_of(headers)
    if timeout_s is not None:
        parameters["timeout"] = int(timeout_s * 1e6)
    return parameters


def given_interval(request: CommonRequest, limit: int) -> dict[str, int]:
    """The inputs for how much goes into a chunk of an answer of up to `limit` tokens.

    Raises ParameterError for one that is longer than that, or without a stream.
    """
    values = {name: getattr(request.trt_mtp, name, None) for name in INTERVALS}
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if not request.stream:
            raise ParameterError(f"{name} goes with stream: true", f"trt_mtp.{name}")
    if 0 < limit < given.get(INTERVAL, 1):
        raise ParameterError(
            f"{INTERVAL} is {given[INTERVAL]}, longer than the answer: expected 1 to {limit}",
            f"trt_mtp.{INTERVAL}",
        )
    return given


def _given(request: CommonRequest, headers: Mapping[str, str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name in PARAMETERS:
        value = getattr(request.trt_mtp, name, None)
        if value is None:
            value = headers.get(PREFIX + name.replace("_", "-"))
        if value is not None:
            parameters[name] = value
    if "session_id" not in parameters:
        session = next((headers[name] for name in SESSION_HEADERS if name in headers), None)
        session = request.prompt_cache_key or session
        if session:
            parameters["session_id"] = session[:MAX_NAME_CHARS]
    return parameters


def _priority(request: CommonRequest) -> int:
    """`priority` is vLLM's: 0 by default, and lower is sooner."""
    if request.priority is not None:
        return min(max(DEFAULT_PRIORITY + request.priority, 1), 2**31 - 1)
    return _TIERS.get(request.service_tier or "", DEFAULT_PRIORITY)


def timeout_of(headers: Mapping[str, str]) -> float | None:
    """How long the client waits, in seconds; None where it doesn't say."""
    try:
        value = float(headers.get(TIMEOUT_HEADER, ""))
    except ValueError:
        return None
    return min(value, MAX_TIMEOUT_S) if value > 0 else None
