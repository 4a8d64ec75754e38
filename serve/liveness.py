"""Does a server answer? Threads ask it again and again, over gRPC and over HTTP."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping

from trt_mtp.serve.tls_files import TlsFiles

MISSED_PROBES = 3  # in a row: each is given a third of the limit
INTERVAL_S = 1.0  # after an answer
GRPC, HTTP = "gRPC", "HTTP"

Ask = Callable[[float], bool]  # did it answer, within seconds?


class Liveness:
    """Runs probes in threads, one each, so that a hanging probe does not hide another one.

    It counts unanswered probes in a row rather than time: if this process is stopped for an hour,
    at most one probe fails.
    """

    def __init__(self, probes: Mapping[str, Ask], limit_s: float) -> None:
        """Start the probes; one is silent after `limit_s` without an answer."""
        self._probe_s = limit_s / MISSED_PROBES
        self._missed = dict.fromkeys(probes, 0)
        self._ended = threading.Event()
        for name, ask in probes.items():
            threading.Thread(target=self._run, args=(name, ask), daemon=True).start()

    def silent(self) -> tuple[str, ...]:
        """The probes without an answer for the whole limit."""
        return tuple(name for name, missed in self._missed.items() if missed >= MISSED_PROBES)

    def end(self) -> None:
        """Start no more probes; a running one ends at its own deadline."""
        self._ended.set()

    def _run(self, name: str, ask: Ask) -> None:
        while not self._ended.is_set():
            start = time.monotonic()
            try:
                is_answered = ask(self._probe_s)
            except OSError:  # refused, reset, timed out
                is_answered = False
            if is_answered:
                self._missed[name] = 0
                self._ended.wait(INTERVAL_S)
            else:
                # a probe that fails at once lasts as long as one that times out
                self._ended.wait(max(0.0, start + self._probe_s - time.monotonic()))
                self._missed[name] += 1


def http_probe(host: str, port: int) -> Ask:
    """Asks for /v2/health/live, whatever proxies there are; any answer is one."""

    def ask(timeout_s: float) -> bool:
        connection = http.client.HTTPConnection(reachable(host), port, timeout=timeout_s)
        try:
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
        except http.client.HTTPException:
            return False
        finally:
            connection.close()
        return True

    return ask


def grpc_probe(host: str, port: int, tls: TlsFiles | None) -> Ask:
    """Asks for KServe's ServerLive; any answer is one, also a refusal of our certificate.

    The call is written by hand. gRPC's own client can't tell a server that refuses it from one that
    is gone, wants to verify a server by a name that we don't know, goes through proxies, and has
    threads in a process that forks.

    With a client CA, the server's own certificate is shown, which that CA need not have signed:
    then the refusal shows that gRPC's threads live, and no more.
    """
    is_mutual = tls is not None and tls.ca is not None
    request = _server_live("http" if tls is None else "https")

    def ask(timeout_s: float) -> bool:
        deadline, address = time.monotonic() + timeout_s, (reachable(host), port)
        if tls is None:
            with socket.create_connection(address, timeout_s) as plain:
                return _is_answered(plain, request, deadline)
        # wrapped before it connects: ssl loses a connected one that is reset meanwhile, unclosed
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        with _client_context(tls).wrap_socket(
            socket.socket(family), do_handshake_on_connect=False
        ) as secure:
            secure.settimeout(timeout_s)
            secure.connect(address)
            try:
                secure.settimeout(_left(deadline))
                secure.do_handshake()
                return _is_answered(secure, request, deadline) or is_mutual
            except TimeoutError:
                raise
            except OSError:
                if is_mutual:
                    return True
                raise

    return ask


def reachable(host: str) -> str:
    """Where a server that listens on `host` can be reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def _client_context(tls: TlsFiles) -> ssl.SSLContext:
    """We only ask whether somebody is there: who it is doesn't matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if tls.ca is not None and tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    return context


# HTTP/2, RFC 9113: a frame has a length of 3 bytes, a type, flags, and a stream of 4 bytes
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x7
END_STREAM, END_HEADERS = 0x1, 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_MESSAGE = bytes(5)  # gRPC: not compressed, a length of 0


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _server_live(scheme: str) -> bytes:
    """A connection's beginning, and the call on stream 1."""
    fields = {
        b":method": b"POST",
        b":scheme": scheme.encode(),
        b":path": b"/inference.GRPCInferenceService/ServerLive",
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    block = b"".join(  # literals without indexing, RFC 7541 section 6.2.2
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in fields.items()
    )
    return (
        PREFACE
        + _frame(SETTINGS, 0, 0, b"")
        + _frame(HEADERS, END_HEADERS, 1, block)
        + _frame(DATA, END_STREAM, 1, NO_MESSAGE)
    )


def _is_answered(connection: socket.socket, request: bytes, deadline: float) -> bool:
    """True if the call has an end, false if the connection ends before."""
    connection.settimeout(_left(deadline))
    connection.sendall(request)
    received = b""
    while True:
        while len(received) < 9 or len(received) < 9 + int.from_bytes(received[:3]):
            connection.settimeout(_left(deadline))
            more = connection.recv(1 << 16)
            if not more:
                return False
            received += more
        size, kind, flags = int.from_bytes(received[:3]), received[3], received[4]
        received = received[9 + size :]
        if kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
            return True


def _left(deadline: float) -> float:
    """Seconds until `deadline`; raises TimeoutError after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
