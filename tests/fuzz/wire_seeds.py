"""Well-formed and wrong bytes to begin with, for tests.fuzz.fuzz_wire."""

import hashlib
import json
from pathlib import Path

from tests.gateway_fixtures import script_request
from tests.http2_client import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    RST_STREAM,
    SERVICE_PATH,
    SETTINGS,
    frame,
    header_block,
    message,
    opening,
)

TOKEN = "good"
PUSH_PROMISE, PING, WINDOW_UPDATE, CONTINUATION = 5, 6, 8, 9
PATH = b"/v2/models/qwen_mtp/generate"

HTTP_TOKENS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b"\r\n ",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"%00",
        b"../",
    ),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: +5\r\n"),
    *(b"Content-Length: 99999999999999999999\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding : chunked\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Host: b\r\n", b"FFFFFFFFFFFFFFFF\r\n", b"5;a=b\r\n"),
    *(b"GET /metrics HTTP/1.1\r\n", b"HTTP/1.0", b"HTTP/9.9", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(b"/v1/chat/completions", b"/v1/models/", b"\xff\xfe", b'"stream":true', b"1e400"),
)


def http_request(start: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
    """One with the token, and the body's length."""
    size = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n%b%b\r\n%b" % (
        start,
        TOKEN.encode(),
        headers,
        size,
        body,
    )


BODY = json.dumps({"text_input": json.dumps({"tokens": 2}), "streaming": True}).encode()
ONE = BODY.replace(b', "streaming": true', b"")
CHAT = b'{"model":"qwen_mtp","messages":[{"role":"user","content":"{}"}],"max_tokens":2}'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ONE), ONE)

HTTP_SEEDS = (
    http_request(b"GET /v2/health/live"),
    http_request(b"GET /metrics"),
    http_request(b"POST " + PATH, body=ONE),
    http_request(b"POST " + PATH + b"_stream", body=BODY),
    http_request(b"POST " + PATH, CHUNKED) + CHUNKS,
    http_request(b"POST " + PATH, CHUNKED + b"Content-Length: 3\r\n") + CHUNKS,  # smuggling
    http_request(b"POST " + PATH, b"Content-Length: 3\r\nContent-Length: 4\r\n") + b"{}",
    http_request(b"POST " + PATH, b"X: a\r\n b\r\n", ONE),  # obsolete folding
    http_request(b"POST /v1/chat/completions", b"Content-Type: application/json\r\n", CHAT),
    http_request(b"GET /v1/models"),
    http_request(b"GET /v2/health/live") * 20,  # pipelined
    http_request(b"GET //v2/../..%2f..%2fetc/passwd"),
    http_request(b"OPTIONS *"),
    http_request(b"CONNECT a:1"),
)

GRPC_TOKENS = (
    frame(SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"),
    frame(SETTINGS, 0, 0, b"\0\5\0\0\0\0"),
    frame(SETTINGS, ACK, 0, b"") * 3,
    frame(RST_STREAM, 0, 1, b"\0\0\0\x08"),
    frame(PING, 0, 0, bytes(8)),
    frame(GOAWAY, 0, 0, bytes(8)),
    frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"),
    frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    frame(CONTINUATION, 0, 1, b"\0\1a\1b"),
    frame(CONTINUATION, END_HEADERS, 1, b""),
    frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)),
    frame(DATA, END_STREAM, 1, b""),
    frame(DATA, 8, 1, b"\xff" * 3),  # padded beyond its end
    frame(2, 0, 1, bytes(5)),  # PRIORITY
    *(b"\x3f\xe1\xff\xff\x03", b"\x82", b"\x84", b"\xbe", b"\x40", b"\x10"),  # HPACK
    *(b"\1", b"\0\0\0\0\0", b"\1\0\0\0\4abcd", b"\xff\xff\xff\xff"),
)


def grpc_call(stream: int, method: str, token: str = TOKEN, *more: tuple[str, str]) -> bytes:
    """The beginning of a call with the token."""
    pairs = [
        *((":method", "POST"), (":scheme", "http"), (":path", SERVICE_PATH + method)),
        *((":authority", "a"), ("te", "trailers"), ("content-type", "application/grpc")),
        *(("authorization", f"Bearer {token}"), *more),
    ]
    return frame(HEADERS, END_HEADERS, stream, header_block(pairs))


RAW = script_request(tokens=2, request_id="id").SerializeToString()
SINGLE = script_request(tokens=2, streaming=False).SerializeToString()
END = frame(DATA, END_STREAM, 1, b"")
WHOLE = opening() + grpc_call(1, "ModelStreamInfer") + message(1, RAW) + END

GRPC_SEEDS = (
    opening(),
    WHOLE,
    opening() + grpc_call(1, "ModelInfer") + message(1, SINGLE) + END,
    opening() + grpc_call(1, "ModelReady") + message(1, b"\x0a\x08qwen_mtp") + END,
    opening() + grpc_call(1, "ServerLive", "bad") + message(1, b"") + END,
    opening() + grpc_call(1, "ModelInfer", "bad") + message(1, SINGLE, missing=9) + END,
    opening() + grpc_call(1, "Nothing") + END,
    opening() + grpc_call(1, "ModelInfer", TOKEN, ("grpc-encoding", "gzip")) + END,
    opening() + grpc_call(1, "ModelInfer", TOKEN, ("grpc-timeout", "1n")) + message(1, SINGLE),
    opening((INITIAL_WINDOW_SIZE, 0)) + grpc_call(1, "ModelStreamInfer") + message(1, RAW),
    opening()
    + b"".join(
        grpc_call(n, "ModelStreamInfer") + frame(RST_STREAM, 0, n, b"\0\0\0\x08")
        for n in range(1, 41, 2)
    ),
    opening() + frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"\0\1a\1b") * 20,
    WHOLE.replace(b"/inference.GRPC", b"/inference.GRP\xff"),  # no UTF-8
    WHOLE.replace(b"content-type", b"content-typ\xff"),
    WHOLE.replace(TOKEN.encode(), b"goo\xff"),
    WHOLE + grpc_call(3, "ModelStreamInfer") + message(3, RAW),
)

SEEDS = {"http": HTTP_SEEDS, "grpc": GRPC_SEEDS}
TOKENS = HTTP_TOKENS + GRPC_TOKENS


def write_tokens(path: Path, *more: str) -> Path:
    """A tenants' file with TOKEN, and `more` tokens of tenants of their own."""
    tenants = [
        {"name": token, "token_sha256": [hashlib.sha256(token.encode()).hexdigest()]}
        for token in (TOKEN, *more)
    ]
    path.write_text(json.dumps({"schema_version": 1, "tenants": tenants}))
    return path
