"""`trt-mtp` with the gateway's checks of honest gRPC requests switched out, to see what they cost.

Out are: the limits of requests; the bytes that wait for each stream and caller, both ways, and
streams by caller; tokens looked at before a call's handler, and again for each request; prompts'
lengths; the form of traces; secrets in request ids; and the ends of waits for messages.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from trt_mtp.controller.gateway import grpc_stream, grpc_unary, lease, proxy
from trt_mtp.controller.gateway.access.authenticator import Caller
from trt_mtp.controller.gateway.access.stream_counts import StreamCounts
from trt_mtp.controller.gateway.byte_room import ByteRoom, Hold
from trt_mtp.controller.gateway.grpc_interceptor import Gatekeeper


class NoSecrets:
    """In place of the module."""

    @staticmethod
    def token_hex(size: int) -> str:
        """No secret."""
        return "0"


def nothing(*_: Any) -> None:
    """No check."""


def always(*_: Any) -> bool:
    """There is room."""
    return True


@contextmanager
def nobody_counts(*_: Any) -> Iterator[None]:
    """One stream more."""
    yield


@contextmanager
def unheld(room: ByteRoom, _: int) -> Iterator[Hold]:
    """Bytes that are not counted."""
    yield Hold(room, 0)


@asynccontextmanager
async def unbounded_message(context: Any, _: ByteRoom) -> AsyncIterator[bytes]:
    """The message, whenever it comes."""
    yield await context.read()


async def unbounded_write(context: Any, answer: bytes) -> None:
    """Send, for as long as that takes."""
    await context.write(answer)


async def intercept(_: Gatekeeper, continuation: Any, details: Any) -> Any:
    """Let everybody in."""
    return await continuation(details)


REPLACED: tuple[tuple[Any, str, Any], ...] = (
    (proxy, "check_request", nothing),
    (lease, "secrets", NoSecrets),
    (grpc_stream, "forwarded_metadata", lambda _: ()),
    (grpc_unary, "only_message", unbounded_message),
    (grpc_unary, "write", unbounded_write),
    (Caller, "check_known", nothing),
    (Caller, "_check_length", nothing),
    (StreamCounts, "one", nobody_counts),
    (ByteRoom, "take_now", always),
    (ByteRoom, "give_back", nothing),
    (ByteRoom, "hold_now", unheld),
    (Hold, "resize", nothing),
    (Gatekeeper, "intercept_service", intercept),
)


def main() -> None:
    """Switch them out and run the command."""
    from trt_mtp.cli import main as run

    for holder, name, replacement in REPLACED:
        assert hasattr(holder, name), f"{holder} has no {name} any more"
        setattr(holder, name, replacement)
    run()


if __name__ == "__main__":
    main()
