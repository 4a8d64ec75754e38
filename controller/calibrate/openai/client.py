"""A client that loads a server over OpenAI's API, as load_client.py does over Triton's gRPC.

Pieces of a stream are only kept with their times while answers come in, and read afterwards.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Sequence

import aiohttp

from trt_mtp.controller.calibrate.load_client import ANSWER_TIMEOUT_S, Batch
from trt_mtp.controller.calibrate.load_streams import LIVE_S, LOOK_S, MODEL_SILENT_S, QUIET_S
from trt_mtp.controller.calibrate.openai.answer import SPREAD, RawStream, message_of, read_answer
from trt_mtp.controller.calibrate.openai.counters import (
    PATH,
    PATHS,
    Counters,
    has_positions,
    parse_counters,
    survival_between,
    with_positions,
    with_survival,
)
from trt_mtp.controller.calibrate.openai.server import (
    CALL_TIMEOUT_S,
    CONNECT_S,
    OpenAiServer,
    body_of,
)

CLOSING_S = 0.01
EVENTS = "text/event-stream"
NO_STREAM = "the server sends no stream of events, so that no time of a token can be taken"
COUNTERS = (
    "tells acceptance in its metrics only: a batch's mean stands for each of its answers, and all "
    "else that the server does counts as well"
)
POSITIONS = "tells accepted drafts as one sum: the draft positions are a batch's in its metrics"
NOTHING = "tells nothing of accepted drafts"
# of one stream: some 30,000 tokens with all that is told of them
MAX_ANSWER_BYTES = 16 * 1024 * 1024


class OpenAiClient:
    """Connections to a server. Make it inside the event loop."""

    def __init__(
        self, server: OpenAiServer, draft_length: int | None, notes: dict[str, None]
    ) -> None:
        """`draft_length` is the server's where it is known; `notes` gets what it doesn't tell."""
        self._notes = notes
        self._server = server
        self._draft_length = draft_length
        self._session = aiohttp.ClientSession(
            headers=server.headers,
            # one connection for each request: llama.cpp's server closes them after a stream
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(
                total=ANSWER_TIMEOUT_S, sock_connect=CONNECT_S, sock_read=MODEL_SILENT_S
            ),
        )
        self._has_counters = draft_length != 0
        self._heard_s = 0.0

    async def close(self) -> None:
        """Close the connections, which end in the loop's next turns."""
        await self._session.close()
        await asyncio.sleep(CLOSING_S)

    async def answers(self, requests: Sequence[bytes], concurrency: int) -> Batch:
        """The answers to `requests`, in their order, with `concurrency` in flight throughout.

        While the last ones are answered, earlier requests are sent again, or the last would run at
        a lower load. Their connections are closed when all is answered, which ends them. A server
        that is lost or stops answering ends the batch.
        """
        raw = [RawStream() for _ in requests]
        before = await self._counters()
        start_s = time.perf_counter()
        await self._load(requests, raw, concurrency)
        elapsed_s = time.perf_counter() - start_s
        readings = [read_answer(one, self._draft_length) for one in raw]
        batch = Batch(tuple(one.answer for one in readings), elapsed_s)
        notes = dict.fromkeys(note for one in readings for note in one.notes)
        if not batch.lost and self._has_counters:
            batch = self._completed(batch, notes, before, await self._counters())
        if self._draft_length != 0 and not any(answer.num_steps for answer in batch.answers):
            notes |= {NOTHING: None} if any(not one.error for one in batch.answers) else {}
        self._notes |= notes
        return batch

    async def is_live(self) -> bool:
        """Does the server answer anything at all?"""
        status, _ = await self._get(f"{self._server.base_url}/models", LIVE_S)
        return status > 0

    async def _load(
        self, requests: Sequence[bytes], raw: Sequence[RawStream], concurrency: int
    ) -> None:
        """Have all answered; raises what a worker raises."""
        indices, left = itertools.count(), set(range(len(requests)))

        async def work() -> None:
            """Answer one request after the other, until all are answered or the server is lost."""
            while left:
                index = next(indices)
                into = raw[index] if index < len(raw) else RawStream()
                await self._ask(requests[index % len(requests)], into)
                if into.is_lost:
                    _lose([raw[at] for at in left], into.error)
                    return
                left.discard(index)

        self._heard_s = time.perf_counter()
        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        watching = asyncio.create_task(self._silent())
        try:  # bounded by `_ask` and `_silent`
            over, _ = await asyncio.wait([*workers, watching], return_when=asyncio.FIRST_COMPLETED)
            if over == {watching}:
                _lose([raw[at] for at in left], watching.result())
        finally:
            for task in (*workers, watching):
                task.cancel()
            ended = await asyncio.gather(*workers, watching, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _ask(self, body: bytes, into: RawStream) -> None:
        """Send a request and keep its answer's pieces; what fails is said in `into`."""
        url, clock = f"{self._server.base_url}/chat/completions", time.perf_counter
        headers = {"Content-Type": "application/json", "Accept": EVENTS}
        into.sent_s, num_bytes = clock(), 0
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    into.error = await _refusal(response)
                    return
                if response.content_type != EVENTS:
                    into.error = NO_STREAM
                    return
                while piece := await response.content.readany():
                    self._heard_s = clock()
                    into.pieces.append((self._heard_s, piece))
                    num_bytes += len(piece)
                    if num_bytes > MAX_ANSWER_BYTES:
                        into.pieces.clear()
                        into.error = f"the answer has more than {MAX_ANSWER_BYTES} bytes"
                        return
        except TimeoutError as error:
            into.error, into.is_lost = str(error) or "no whole answer in time", True
        except (aiohttp.ClientError, OSError) as error:
            into.error, into.is_lost = " ".join(str(error).split()) or type(error).__name__, True

    async def _silent(self) -> str:
        """Wait until the server neither sends nor answers; why it is given up then."""
        while True:
            await asyncio.sleep(LOOK_S)
            quiet_s = time.perf_counter() - self._heard_s
            if quiet_s > QUIET_S and not (await self.is_live() or await self.is_live()):
                quiet_s = time.perf_counter() - self._heard_s
                if quiet_s > QUIET_S:
                    return f"it sent nothing for {quiet_s:.0f} s and doesn't answer"

    async def _counters(self) -> Counters:
        """Its counters of drafts; empty where it has none."""
        if not self._has_counters:
            return {}
        path = PATHS.get(self._server.kind, PATH)
        status, content = await self._get(f"{self._server.root}{path}", CALL_TIMEOUT_S)
        self._has_counters = status == 200
        return parse_counters(content.decode(errors="replace")) if status == 200 else {}

    def _completed(
        self, batch: Batch, notes: dict[str, None], before: Counters, after: Counters
    ) -> Batch:
        """The batch, with what its answers leave out of acceptance from the counters."""
        survival = survival_between(before, after, self._draft_length)
        if not survival:
            return batch
        answers = batch.answers
        if SPREAD in notes and has_positions(after):
            del notes[SPREAD]
            notes[POSITIONS] = None
            answers = tuple(with_positions(answer, survival) for answer in answers)
        elif not any(answer.num_steps for answer in answers):
            notes[COUNTERS] = None
            answers = tuple(with_survival(answer, survival) for answer in answers)
        return Batch(answers, batch.elapsed_s)

    async def _get(self, url: str, timeout_s: float) -> tuple[int, bytes]:
        """The status and body at `url`; status 0 where nothing answers within `timeout_s`."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        try:
            async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
                return response.status, await body_of(response)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, b""


def _lose(raw: Sequence[RawStream], reason: str) -> None:
    """The server is lost, and with it what it has not answered yet."""
    for one in raw:
        one.error, one.is_lost = one.error or reason, True


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """Why a request was refused, as one sentence."""
    content = await body_of(response)
    try:
        said = message_of(json.loads(content))
    except (ValueError, RecursionError):
        said = message_of(content.decode(errors="replace"))
    return f"HTTP {response.status}: {said or response.reason}"
