"""Where a server listens on this machine, and asking it there."""

import http.client
from dataclasses import dataclass

from trt_mtp.interrupts import time_left

HOST = "127.0.0.1"
GET_S = 1.0  # for one answer
LEAST_S = 0.05  # of a GET while the time that is left runs out


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
        return response.read()
    finally:
        connection.close()


def answers(port: int, path: str) -> bool:
    """Whether a GET of `path` succeeds."""
    try:
        get(port, path)
    except (OSError, http.client.HTTPException):
        return False
    return True
