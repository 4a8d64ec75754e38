"""What of a streamed answer waits for its next message, and whether it is to be sent now."""

import json
import time

from trt_mtp.serve.engine.base import Chunk
from trt_mtp.serve.streaming_interval import Interval


class PendingMessage:
    """Text and tokens since the last message; the first one has no predecessor to wait after."""

    def __init__(self, echo: str, outputs: frozenset[str], interval: Interval) -> None:
        """`echo` comes before the answer's own text; `outputs` are those that are asked for."""
        self.text = echo
        self.token_ids: list[int] = []
        self.logprobs: list[str] = []  # JSON of each token
        self._outputs = outputs
        self._interval = interval
        self._has_begun = False  # an echo alone is no answer
        self._sent_at: float | None = None  # monotonic; the last message

    def add(self, chunk: Chunk) -> None:
        """Add a chunk."""
        self.text += chunk.text
        self.token_ids += chunk.token_ids
        # as they come: those of a long answer together would hold up all others
        self.logprobs += [json.dumps(e.to_json(), ensure_ascii=False) for e in chunk.logprobs]
        self._has_begun = True

    def is_due(self) -> bool:
        """Whether there is something, and enough of it or for long enough."""
        if not self._has_news() or self._sent_at is None:
            return self._has_news()
        is_enough = len(self.token_ids) >= self._interval.tokens
        return is_enough or time.monotonic() - self._sent_at >= self._interval.seconds

    def sent(self) -> None:
        """It is on its way; begin the next one."""
        self.text, self.token_ids, self.logprobs = "", [], []
        self._sent_at = time.monotonic()

    def _has_news(self) -> bool:
        has_text = bool(self.text) and "text_output" in self._outputs
        has_ids = bool(self.token_ids) and "output_ids" in self._outputs
        return self._has_begun and (has_text or has_ids)
