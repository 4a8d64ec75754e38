"""A double of servers that speak OpenAI's API: streams, usage and what each kind tells of drafts.

The shapes are those that the servers' docs have (see trt_mtp.controller.calibrate.openai). Of each
step all drafts but the last are accepted.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

MODEL = "qwen"


@dataclass(slots=True)
class Behavior:
    """What a double is and does."""

    kind: str = "vllm"  # its models' owned_by
    draft_length: int = 3
    length_file: Path | None = None  # holds the draft length instead
    tells: bool = True  # acceptance, in the answers
    counts: bool = False  # acceptance, in /metrics
    has_usage: bool = True
    streams: bool = True
    key: str = ""
    step_s: float = 0.002
    fault: str = ""  # "error": an error in mid-stream; "cut": its end; "drop": of the connection
    # "endless": a line without an end follows
    asked: list[dict[str, Any]] = field(default_factory=list)
    num_steps: int = 0  # of all answers
    num_tokens: int = 0

    @property
    def accepted(self) -> int:
        """Drafts accepted in each step."""
        return max(self.draft_length - 1, 0)


def _told(behavior: Behavior, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the last chunk's root, and its choice, tell of `steps`."""
    length, accepted = behavior.draft_length, steps * behavior.accepted
    histogram = [0] * (length + 1)
    histogram[behavior.accepted] = steps
    if not behavior.tells or not length:
        return {}, {}
    if behavior.kind == "vllm":
        block = {
            "acceptance_histogram": histogram,
            "num_spec_steps": steps,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": steps * length,
            "num_spec_tokens": length,
        }
        return {"metrics": {"speculative_decoding": block}}, {}
    if behavior.kind == "tensorrt_llm":
        block = {
            "acceptance_histogram": histogram,
            "num_spec_steps": steps,
            "total_accepted_draft_tokens": accepted,
            "total_draft_tokens": steps * length,
            "num_spec_tokens": length,
        }
        return {}, {"speculative_decoding": block}
    if behavior.kind == "sglang":
        info = {"spec_verify_ct": steps, "spec_correct_drafts_histogram": histogram}
        return {}, {"meta_info": info}
    return {"timings": {"draft_n": steps * length, "draft_n_accepted": accepted}}, {}


def _metrics(behavior: Behavior) -> str:
    """Counters as vLLM's or llama.cpp's /metrics have them, or SGLang's."""
    steps, accepted = behavior.num_steps, behavior.num_steps * behavior.accepted
    if behavior.kind == "sglang":
        return (
            f'sglang:spec_verify_calls_total{{model_name="qwen"}} {steps}.0\n'
            f'sglang:generation_tokens_total{{model_name="qwen"}} {behavior.num_tokens}.0\n'
            f'sglang:num_requests_total{{model_name="qwen"}} {len(behavior.asked)}.0\n'
        )
    lines = [
        "# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.",
        f'{behavior.kind}:spec_decode_num_drafts_total{{engine="0"}} {steps}.0',
        f'{behavior.kind}:spec_decode_num_accepted_tokens_total{{engine="0"}} {accepted}.0',
    ]
    name = f"{behavior.kind}:spec_decode_num_accepted_tokens_per_pos_total"
    for position in range(behavior.draft_length):
        count = steps if position < behavior.accepted else 0
        lines.append(f'{name}{{engine="0",position="{position}"}} {count}.0')
    return "\n".join(lines)


async def _chunks(behavior: Behavior, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The chunks of an answer of as many tokens as were asked for."""
    total = request["max_tokens"]
    yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    sent, steps = 0, 0
    while sent < total:
        await asyncio.sleep(behavior.step_s)
        new = min(1 + behavior.accepted, total - sent) if sent else 1
        steps += sent > 0
        sent += new
        delta = {"content": "word " * new}
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        if behavior.fault and sent > total / 2:
            return
    behavior.num_steps += steps
    behavior.num_tokens += total
    root, choice = _told(behavior, steps)
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "length", **choice}], **root}
    if behavior.has_usage:
        usage = {"prompt_tokens": 9, "completion_tokens": total, "total_tokens": 9 + total}
        yield {"choices": [], "usage": usage, **root}


class _Handlers:
    def __init__(self, behavior: Behavior) -> None:
        self.behavior = behavior

    @web.middleware
    async def check_key(self, request: web.Request, handler: Any) -> web.StreamResponse:
        key = self.behavior.key
        if key and request.headers.get("Authorization") != f"Bearer {key}":
            error = {"message": "Incorrect API key provided", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def models(self, _: web.Request) -> web.Response:
        entry = {"id": MODEL, "object": "model", "created": 1, "owned_by": self.behavior.kind}
        return web.json_response({"object": "list", "data": [entry]})

    async def metrics(self, _: web.Request) -> web.Response:
        if not self.behavior.counts:
            raise web.HTTPNotFound
        return web.Response(text=_metrics(self.behavior))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.behavior.length_file is not None:
            self.behavior.draft_length = int(self.behavior.length_file.read_text())
        self.behavior.asked.append(body)
        if not self.behavior.streams:
            message = {"role": "assistant", "content": "all at once"}
            return web.json_response({"choices": [{"index": 0, "message": message}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        try:
            await response.prepare(request)
            async for chunk in _chunks(self.behavior, body):
                await response.write(f"data: {json.dumps(chunk)}\r\n\r\n".encode())
                await response.write(b": ping\n\n")
        except ConnectionError:  # the client has enough
            return response
        if self.behavior.fault == "endless":
            with contextlib.suppress(ConnectionError):
                while True:
                    await response.write(b"x" * 65_536)
        elif self.behavior.fault == "error":
            await response.write(b'data: {"error": {"message": "the engine broke"}}\n\n')
        elif self.behavior.fault == "drop":
            assert request.transport is not None
            request.transport.abort()
        elif not self.behavior.fault:
            await response.write(b"data: [DONE]\n\n")
        return response


async def _started(behavior: Behavior) -> tuple[web.AppRunner, int]:
    handlers = _Handlers(behavior)
    app = web.Application(middlewares=[handlers.check_key])
    app.add_routes(
        [
            web.get("/v1/models", handlers.models),
            web.get("/metrics", handlers.metrics),
            web.post("/v1/chat/completions", handlers.chat),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, int(runner.addresses[0][1])


async def _ended(runner: web.AppRunner) -> None:
    """Stop it, with the answers and connections that are left."""
    server = runner.server
    assert server is not None
    for connection in server.connections:
        if connection.transport is not None:
            connection.transport.abort()
    await runner.cleanup()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)  # closed transports end in the loop's next turn


@contextmanager
def openai_double(behavior: Behavior) -> Iterator[str]:
    """Its base URL while it runs, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner, port = asyncio.run_coroutine_threadsafe(_started(behavior), loop).result(30)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(_ended(runner), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
