"""What waits for the next message of a streamed answer."""

import time

import pytest

from trt_mtp.serve.engine.base import Chunk, SpeculationCounters
from trt_mtp.serve.pending_message import PendingMessage
from trt_mtp.serve.streaming_interval import Interval

BOTH = frozenset({"text_output", "output_ids"})


def chunk(*token_ids: int, text: str = "x") -> Chunk:
    """A chunk with these tokens."""
    return Chunk(text, token_ids, SpeculationCounters(), num_output_tokens=len(token_ids))


def test_the_first_tokens_wait_for_none() -> None:
    """Whatever the interval; an echo alone is no answer."""
    pending = PendingMessage("prompt", BOTH, Interval(100, 1.0))
    assert not pending.is_due()
    pending.add(chunk(1))
    assert pending.is_due()
    assert (pending.text, pending.token_ids) == ("promptx", [1])


def test_the_rest_waits_for_enough_tokens() -> None:
    """So many, and none that were sent."""
    pending = PendingMessage("", BOTH, Interval(3, 1000.0))
    pending.add(chunk(1))
    pending.sent()
    assert not pending.is_due()
    pending.add(chunk(2, 3))
    assert not pending.is_due()
    pending.add(chunk(4))
    assert pending.is_due()
    assert pending.token_ids == [2, 3, 4]


def test_or_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last message on; without a token there is nothing to send."""
    pending = PendingMessage("", BOTH, Interval(100, 0.5))
    pending.add(chunk(1))
    pending.sent()
    pending.add(chunk(2))
    now = time.monotonic()
    assert not pending.is_due()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.0)
    assert pending.is_due()
    pending.sent()
    monkeypatch.setattr(time, "monotonic", lambda: now + 10.0)
    assert not pending.is_due()


def test_without_an_interval_each_chunk_is_due() -> None:
    """If it has something of what is asked for."""
    pending = PendingMessage("", frozenset({"text_output"}), Interval())
    pending.add(chunk(1))
    pending.sent()
    pending.add(chunk(2, text=""))
    assert not pending.is_due()
    pending.add(chunk(3))
    assert pending.is_due()
