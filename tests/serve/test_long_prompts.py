"""Long prompts are read apart: nobody waits for them, and they can be cancelled meanwhile."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from trt_mtp.serve.contract import GUIDED, LONG_BYTES
from trt_mtp.serve.long_prompts import LongPrompts, ReceivedRequest

TIMEOUT_S = 60.0


class Reading:
    """Submissions that end when they are let."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.has_begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def submit(self, request: ReceivedRequest) -> None:
        """Read the prompt of `request`, which takes a while."""
        self.begun.append(request.request_id)
        self.has_begun.release()
        assert self.may_end.acquire(timeout=TIMEOUT_S)

    def wait(self) -> None:
        """Wait until the next one has begun."""
        assert self.has_begun.acquire(timeout=TIMEOUT_S)


def request_of(request_id: str, text: bytes = b"", num_ids: int = 0) -> ReceivedRequest:
    """A request with a text and `num_ids` token ids."""
    inputs = {"text_input": np.array([text], np.object_), "input_ids": np.zeros(num_ids, np.int32)}
    return ReceivedRequest(request_id, inputs, "", frozenset(), None)


@pytest.fixture
def reading() -> Reading:
    """What the thread does."""
    return Reading()


@pytest.fixture
def prompts(reading: Reading) -> Iterator[LongPrompts]:
    """A thread that reads."""
    opened = LongPrompts(reading.submit)
    yield opened
    opened.close()


def test_a_request_is_long_by_the_bytes_of_its_inputs() -> None:
    """Text and token ids count together."""
    assert not request_of("a", b"x" * LONG_BYTES).is_long
    assert request_of("a", b"x" * LONG_BYTES, num_ids=1).is_long
    assert request_of("a", num_ids=LONG_BYTES // 4 + 1).is_long


def test_nobody_waits_until_a_prompt_is_read(prompts: LongPrompts, reading: Reading) -> None:
    """put returns while a prompt is being read, and those that wait are read in their order."""
    for name in "abc":
        prompts.put(request_of(name))
    for begun in (["a"], ["a", "b"], ["a", "b", "c"]):
        reading.wait()
        assert reading.begun == begun
        reading.may_end.release()


def test_many_long_prompts_hold_up_no_shorter_one(prompts: LongPrompts, reading: Reading) -> None:
    """It is read after two more of them at most, and short ones hold up no long one either."""
    sizes = {"read": 1, "long1": 90, "long2": 90, "long3": 90, "short1": 20, "short2": 21}
    for name, size in sizes.items():
        prompts.put(request_of(name, b"x" * (size * LONG_BYTES)))
        if name == "read":
            reading.wait()
    reading.may_end.release(len(sizes))
    for _ in range(len(sizes) - 1):
        reading.wait()
    assert reading.begun == ["read", "short1", "long1", "short2", "long2", "long3"]


def test_one_that_waits_is_taken_out(prompts: LongPrompts, reading: Reading) -> None:
    """A request that nobody has begun to read is never read; another id's stays."""
    for name in "abc":
        prompts.put(request_of(name))
    reading.wait()
    taken = prompts.take("b")
    assert taken is not None
    assert taken.request_id == "b"
    assert prompts.take("a") is prompts.take("b") is prompts.take("x") is None
    reading.may_end.release(2)
    reading.wait()
    assert reading.begun == ["a", "c"]


def test_what_is_for_the_one_being_read_waits_for_it(
    prompts: LongPrompts, reading: Reading
) -> None:
    """A cancellation that comes while a prompt is read is made once it is submitted."""
    prompts.put(request_of("a"))
    reading.wait()
    is_done = threading.Event()
    assert not prompts.defer("b", is_done.set)
    assert prompts.defer("a", is_done.set)
    assert not is_done.is_set()
    reading.may_end.release()
    assert is_done.wait(TIMEOUT_S)
    assert not prompts.defer("a", is_done.set)


def test_grammars_on_trial_hold_up_no_prompts(prompts: LongPrompts, reading: Reading) -> None:
    """A prompt is read meanwhile; both kinds can be cancelled."""
    guided = {GUIDED: np.array([b"{}"], np.object_)}
    for name in ("grammar", "waits"):
        prompts.put(ReceivedRequest(name, guided, "", frozenset(), None))
    reading.wait()
    prompts.put(request_of("prompt", b"x" * LONG_BYTES))
    reading.wait()
    assert reading.begun == ["grammar", "prompt"]
    assert prompts.take("waits") is not None
    assert prompts.defer("grammar", lambda: None)
    for _ in range(2):
        reading.may_end.release()
