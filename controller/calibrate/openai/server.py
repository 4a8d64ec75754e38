"""A server that speaks OpenAI's API: its address, its kind, and what it is asked for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from trt_mtp.controller.calibrate.openai.answer import message_of
from trt_mtp.controller.client import Prompt
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import nearest, read_text

CONNECT_S = 3.0
CALL_TIMEOUT_S = 10.0  # for what a server answers without its model
MAX_NAMED = 10  # models that an error names
MAX_BODY_BYTES = 16 * 1024 * 1024
OUR_KIND = "trt-mtp"
# what a kind of server is asked for besides, so that it tells more; others may refuse these keys
_MORE: dict[str, dict[str, Any]] = {
    "vllm": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "sglang": {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "return_meta_info": True,
    },
}


@dataclass(frozen=True, slots=True)
class OpenAiServer:
    """A server and the model on it that is asked."""

    base_url: str  # without a slash at the end
    model: str
    kind: str = ""  # what it says of itself: vllm, sglang, llamacpp, tensorrt_llm, trt-mtp …
    key: str = field(default="", repr=False)  # never shown

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def root(self) -> str:
        """The address without the API's path, where the metrics are."""
        return self.base_url.removesuffix("/v1")

    def body(self, prompt: Prompt) -> bytes:
        """A chat request for `prompt`, streamed."""
        values: dict[str, Any] = {
            "model": self.model,
            "messages": list(prompt.messages),
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.temperature,
            "seed": prompt.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if prompt.tools:
            values["tools"] = list(prompt.tools)
        return json.dumps(values | _MORE.get(self.kind, {}), ensure_ascii=False).encode()


def base_url(option: str, text: str) -> str:
    """The base URL in `text`, with the path /v1 where it has none; raises InputError.

    >>> base_url("--openai", "http://127.0.0.1:8000")
    'http://127.0.0.1:8000/v1'
    """
    try:
        parts = urlsplit(text.strip())
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_one = False
    if not is_one or parts.query or parts.fragment or parts.username or parts.password:
        raise InputError(
            f"{option} {text.partition('@')[2] or text!r}: expected the base URL of an OpenAI API, "
            f"as in http://127.0.0.1:8000/v1"
        )
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def read_key(file: Path | None, variable: str | None) -> str:
    """The API key in `file`, else the one in the environment; empty without both.

    Raises InputError for a file that can't be read, and for a key that no header can hold.
    """
    where = str(file) if file else "OPENAI_API_KEY"
    key = (read_text(file) if file else variable or "").strip()
    if file and not key:
        raise InputError(f"{file} is empty: expected an API key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(f"{where} has no API key: expected one word without spaces")
    return key


async def found_server(url: str, model: str | None, key: str) -> OpenAiServer:
    """The server at `url`, asked for its models.

    Without a `model`, the only one that it has. Raises InputError for a key that it refuses and a
    model that it doesn't have, TrtMtpError where it can't be reached or doesn't speak OpenAI's API.
    """
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S, sock_connect=CONNECT_S)
    headers = OpenAiServer(url, "", key=key).headers
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(f"{url}/models", allow_redirects=False) as response,
        ):
            content = await body_of(response)
            listed = _models(url, response.status, content)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or f"no answer within {CALL_TIMEOUT_S:.0f} s"
        raise TrtMtpError(f"can't reach an OpenAI API at {url}: {reason}") from None
    return _chosen(url, listed, model, key)


async def body_of(response: aiohttp.ClientResponse) -> bytes:
    """The body, its first MAX_BODY_BYTES and a little at most."""
    content = bytearray()
    while len(content) < MAX_BODY_BYTES and (piece := await response.content.readany()):
        content += piece
    return bytes(content)


def _models(url: str, status: int, content: bytes) -> list[dict[str, Any]]:
    """The entries of its models."""
    if status in (401, 403):
        raise InputError(
            f"{url} refuses the API key ({status}): put the right one into OPENAI_API_KEY, or into "
            f"a file for --openai-key-file"
        )
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    data = value.get("data") if isinstance(value, dict) else None
    if status != 200 or not isinstance(data, list):
        said = f"{status}: {message_of(value)}" if status != 200 and value else str(status)
        raise TrtMtpError(
            f"{url}/models answers no list of models ({said}): name the base URL of an OpenAI API, "
            f"which often ends in /v1"
        )
    return [entry for entry in data if isinstance(entry, dict) and "id" in entry]


def _chosen(
    url: str, listed: Sequence[dict[str, Any]], model: str | None, key: str
) -> OpenAiServer:
    names = {str(entry["id"]): entry for entry in listed}
    told = ", ".join(list(names)[:MAX_NAMED]) or "none"
    if model is None:
        if len(names) != 1:
            raise InputError(f"{url} has several models, or none: name one with --model of {told}")
        model = next(iter(names))
    if model not in names:
        raise InputError(
            f"the model {model!r} does not exist at {url}{nearest(model, names)}; there are {told}"
        )
    owner = names[model].get("owned_by")
    return OpenAiServer(url, model, owner if isinstance(owner, str) else "", key)
