"""HTTP as a client speaks it, without help from a library that would hide something."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The JSON of each server-sent event."""
        events = self.body.decode().split("\n\n")
        assert events.pop() == ""
        return [json.loads(event.removeprefix("data: ")) for event in events]

    @property
    def error(self) -> str:
        """What a refusal says, in whichever form."""
        value = self.json() if self.body.startswith(b"{") else self.events()[-1]
        return str(value["error"])


@contextmanager
def sent(
    address: str,
    method: str,
    path: str,
    body: Any = None,
    token: str = "",
    headers: Mapping[str, str] | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """A response whose body has not been read; the connection is closed at the end."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, data, headers)
        yield connection.getresponse()
    finally:
        connection.close()


def ask(
    address: str | None,
    method: str,
    path: str,
    body: Any = None,
    token: str = "",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send a request, `body` as JSON unless it is bytes, and read the response."""
    assert address is not None
    with sent(address, method, path, body, token, headers) as response:
        return Reply(response.status, dict(response.getheaders()), response.read())
