"""Requests with long prompts, or grammars: each kind is read in a thread of its own.

In turns the oldest of them and the smallest: whoever sends many long ones holds up nobody's shorter
one by more than two of them, and none waits for ever.

The thread in which Triton hands requests over goes on meanwhile, and so does the engine: short
requests never wait until a long text is tokenized.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from trt_mtp.serve.contract import GUIDED, LONG_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedRequest:
    """All that Triton hands over of a request."""

    request_id: str  # empty if the client gave none
    inputs: Mapping[str, NDArray[Any]]
    parameters: str  # a JSON object, or empty
    outputs: frozenset[str]
    sender: Any  # Triton's, for its responses

    @property
    def is_long(self) -> bool:
        """True for one that may take a while to read: a long prompt, or a grammar to compile."""
        return GUIDED in self.inputs or self.num_bytes > LONG_BYTES

    @property
    def num_bytes(self) -> int:
        """Those of its inputs."""
        return sum(
            sum(map(len, array.ravel().tolist())) if array.dtype == object else array.nbytes
            for array in self.inputs.values()
        )


class _Lane:
    """The requests that wait to be read one after the other, and the thread that does it."""

    def __init__(self, name: str, submit: Callable[[ReceivedRequest], None]) -> None:
        self._submit = submit
        self._waiting: deque[ReceivedRequest] = deque()
        self._current: ReceivedRequest | None = None
        self._deferred: list[Callable[[], None]] = []
        self._is_smallest_next = False  # else the oldest
        self._is_closed = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, request: ReceivedRequest) -> None:
        """Have `request` read and submitted when its turn comes; returns at once."""
        with self._wake:
            self._waiting.append(request)
            self._wake.notify()

    def take(self, request_id: str) -> ReceivedRequest | None:
        """Take a request out that nobody has begun to read; None if there is none of that id."""
        with self._wake:
            for request in self._waiting:
                if request.request_id == request_id:
                    self._waiting.remove(request)
                    return request
        return None

    def defer(self, request_id: str, action: Callable[[], None]) -> bool:
        """Have `action` called when the request is submitted; false if it isn't being read."""
        with self._wake:
            if self._current is None or self._current.request_id != request_id:
                return False
            self._deferred.append(action)
            return True

    def _take_next(self) -> ReceivedRequest:
        if len(self._waiting) > 1:
            self._is_smallest_next = not self._is_smallest_next
        if not self._is_smallest_next:
            return self._waiting.popleft()
        request = min(self._waiting, key=lambda request: request.num_bytes)
        self._waiting.remove(request)
        return request

    def close(self) -> None:
        """Let the thread end; no request may be waiting."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._is_closed):
                    self._wake.wait()  # for ever, where no long prompt comes
                if self._is_closed:
                    return
                self._current = request = self._take_next()
            self._submit(request)
            with self._wake:
                self._current = None
                deferred, self._deferred = self._deferred, []
            for action in deferred:
                action()


class LongPrompts:
    """The requests that wait to be read: those with grammars apart, whose trials take seconds."""

    def __init__(self, submit: Callable[[ReceivedRequest], None]) -> None:
        """`submit` reads a request and hands it to the engine; it raises nothing."""
        self._prompts, self._grammars = _Lane("long-prompts", submit), _Lane("grammars", submit)
        self._lanes = (self._prompts, self._grammars)

    def put(self, request: ReceivedRequest) -> None:
        """Have `request` read and submitted when its turn among its kind comes; returns at once."""
        (self._grammars if GUIDED in request.inputs else self._prompts).put(request)

    def take(self, request_id: str) -> ReceivedRequest | None:
        """Take a request out that nobody has begun to read; None if there is none of that id."""
        return next(filter(None, (lane.take(request_id) for lane in self._lanes)), None)

    def defer(self, request_id: str, action: Callable[[], None]) -> bool:
        """Have `action` called when the request is submitted; false if it isn't being read."""
        return any(lane.defer(request_id, action) for lane in self._lanes)

    def close(self) -> None:
        """Let the threads end; no request may be waiting."""
        for lane in self._lanes:
            lane.close()
