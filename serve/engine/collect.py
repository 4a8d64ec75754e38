"""Whole answers from an engine, for callers that don't stream."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.engine.base import Chunk, Engine, Request, SpeculationCounters

ANSWER_S = 1800.0  # for all answers that were submitted before it, too


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    counters: SpeculationCounters
    margin: float | None = None  # of the first token, if wanted


class _Collector:
    """Gathers the chunks of one answer."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.is_done = threading.Event()

    def __call__(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        if chunk.finish_reason is not None:
            self.is_done.set()

    def answer(self) -> Answer:
        if not self.is_done.wait(ANSWER_S):
            raise TrtMtpError(f"the engine did not end an answer within {ANSWER_S:.0f} s")
        last = self.chunks[-1]
        if last.finish_reason == "error":
            raise TrtMtpError(last.error)
        return Answer(
            text="".join(chunk.text for chunk in self.chunks),
            token_ids=tuple(token for chunk in self.chunks for token in chunk.token_ids),
            finish_reason=str(last.finish_reason),
            counters=last.counters,
            margin=next((c.margin for c in self.chunks if c.margin is not None), None),
        )


def collect(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    """The answers to `requests`, all submitted at once, in their order.

    Raises InputError for a request that can't be run, TrtMtpError when the engine fails.
    """
    collectors = []
    for request in requests:
        collector = _Collector()
        engine.submit(request, collector)
        collectors.append(collector)
    return [collector.answer() for collector in collectors]
