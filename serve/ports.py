"""Where a server listens on this machine, and asking it there."""

import http.client
import time
from dataclasses import dataclass

from trt_mtp.interrupts import time_left

HOST = "127.0.0.1"
GET_S = 1.0  # for one answer to begin, and between two pieces of it
BODY_S = 10.0  # for all of it
LEAST_S = 0.05  # of a GET while the time that is left runs out
MAX_BODY_BYTES = 1 << 24  # the metrics of hundreds of models
PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens on 127.0.0.1; 0 takes a free port, None leaves it off."""

    grpc: int = 0
    http: int | None = None  # any local user may end Triton 2.51 through it (CVE-2025-23310)
    metrics: int = 0


ANY_PORTS = Ports()


def get(port: int, path: str) -> bytes:
    """GET from this machine, without a proxy; raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(HOST, port, timeout=max(time_left(GET_S), LEAST_S))
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"status {response.status}")
        return body_of(response, BODY_S)
    finally:
        connection.close()


def body_of(response: http.client.HTTPResponse, timeout_s: float) -> bytes:
    """The body, which is neither endless nor comes byte by byte; raises OSError, HTTPException."""
    until, body = time.monotonic() + timeout_s, bytearray()
    while piece := response.read1(PIECE_BYTES):
        body += piece
        if len(body) > MAX_BODY_BYTES or time.monotonic() > until:
            raise http.client.HTTPException(
                f"it sends more than {MAX_BODY_BYTES:,} bytes, or takes longer than {timeout_s:g} s"
            )
    return bytes(body)


def answers(port: int, path: str) -> bool:
    """Whether a GET of `path` succeeds."""
    try:
        get(port, path)
    except (OSError, http.client.HTTPException):
        return False
    return True
