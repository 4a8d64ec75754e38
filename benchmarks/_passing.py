"""A proxy that only passes a stream's messages on: what gRPC alone costs in a gateway's place.

`python -m benchmarks._passing TRITON FROM TO` passes requests for the model FROM to TO. It prints
its address as JSON, as a gateway does, and serves until it is ended.
"""

import asyncio
import json
import sys
from typing import Any

import grpc

from trt_mtp.serve.kserve import SERVICE


def named(model: str) -> bytes:
    """The first field of a ModelInferRequest."""
    return b"\n" + bytes([len(model)]) + model.encode()


async def passed(context: Any, call: Any, name: bytes, other: bytes) -> None:
    """Both ways at once, until both sides have ended."""

    async def back() -> None:
        while (raw := await call.read()) is not grpc.aio.EOF:
            await context.write(raw)

    returning = asyncio.create_task(back())
    while (raw := await context.read()) is not grpc.aio.EOF:
        await call.write(raw.replace(name, other, 1))
    await call.done_writing()
    await returning


async def serve(triton: str, model: str, other: str) -> None:
    """Serve ModelStreamInfer and nothing else."""
    async with grpc.aio.insecure_channel(triton) as channel:
        stream = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")

        async def handle(_: Any, context: Any) -> None:
            await passed(context, stream(), named(model), named(other))

        server = grpc.aio.server()
        handlers = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(json.dumps({"gateway": f"127.0.0.1:{port}"}), flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:4]))
