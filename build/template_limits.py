"""Limits of time and memory for chat templates, which come with a checkpoint that may be anybody's.

A watching thread raises an error in the one that renders. It can't come between the steps of one
operation, so those that make much of little are bounded by their operands.
"""

import ctypes
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10.0
NUM_BYTES = 1 << 29  # more than before
LOOK_S = 0.005
STAY_S = 1.0  # without a rendering for which the watching thread goes on looking
MAX_NUMBER = 100_000  # of a width, a count, an indent
MAX_ITEMS = 1 << 24  # characters or items that one operation makes
PAGE = os.sysconf("SC_PAGE_SIZE")


class TemplateLimitError(Exception):
    """A template took too much."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox in which no single operation makes much of little."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]  # text without end, and no chat template's
        for name, filter_ in list(self.filters.items()):
            self.filters[name] = bounded(name, filter_)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, unless that would be large."""
        if operator == "%" and isinstance(left, str):
            check_operands("format", left, right)
        elif isinstance(left, int) and isinstance(right, int) and operator != "%":
            bits = left.bit_length()
            _check(bits * right if operator == "**" else bits + right.bit_length())
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if hasattr(one, "__len__") and isinstance(other, int):
                    _check(len(one) * other)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        """str.format and str.format_map of the sandbox, unless the answer would be large."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **named: Any) -> str:
            check_operands("format", value.__self__, *args, *named.values())
            return wrapped(*args, **named)

        return checked

    def call(__self, __context: Any, __function: Any, *args: Any, **named: Any) -> Any:
        """A call of a function or a method, unless its answer would be large."""
        owner = getattr(__function, "__self__", None)
        if isinstance(owner, str | bytes | int):  # others are macros, or as large as what they get
            check_operands(__function.__name__, owner, *args, *named.values())
        return super().call(__context, __function, *args, **named)


def bounded(name: str, filter_: Any) -> Any:
    """A filter of that name that refuses what would become large."""
    first = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # before the value

    def checked(*args: Any, **named: Any) -> Any:
        check_operands(name, *args[first:], *named.values())
        return filter_(*args, **named)

    # jinja2 knows by these what to pass first
    checked.__dict__.update(getattr(filter_, "__dict__", {}))
    return checked


def check_operands(operation: str, value: Any, *others: Any) -> None:
    """Raise TemplateLimitError for an operation on `value` whose answer would be large."""
    if any(isinstance(other, int | float) and abs(other) > MAX_NUMBER for other in others):
        raise TemplateLimitError(f"a number above {MAX_NUMBER:,} in a call")
    texts = [text for text in (value, *others) if isinstance(text, str)]
    if operation == "replace" and len(texts) > 2:
        text, old, new = texts[:3]
        _check(text.count(old) * len(new))
    elif operation == "join":  # as a filter or as a method
        for items in (items for items in (value, *others) if isinstance(items, list | tuple)):
            _check(sum(len(item) for item in items if isinstance(item, str)))
            _check(len(items) * max(map(len, texts), default=0))
    elif operation == "format" and texts:  # its widths
        _check(sum(int(width[:9]) for width in re.findall(r"[0-9]{5,}", texts[0])))


def _check(size: int) -> None:
    if size > MAX_ITEMS:
        raise TemplateLimitError(f"more than {MAX_ITEMS:,} characters or items at once")


class _Rendering:
    """What is watched: which thread renders, until when, and the memory at the first look."""

    __slots__ = ("end", "first", "is_raised", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.end = time.monotonic() + SECONDS
        self.first: int | None = None
        self.is_raised = False


class _Watchdog:
    """One thread for all renderings: one for each would take longer to start than most render.

    Whoever takes a rendering out of `_active` ends it, which the interpreter's lock decides: a lock
    of ours could be left locked by the error that is raised in its holder.
    """

    def __init__(self) -> None:
        self._active: dict[_Rendering, None] = {}
        self._wakes = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> _Rendering:
        """Watch this thread; `end` follows."""
        if self._thread is None or not self._thread.is_alive():  # also in a process that forked
            self._start()
        rendering = _Rendering()
        self._active[rendering] = None  # from here on an error may be raised in us
        if not self._wakes.is_set():
            self._wakes.set()
        return rendering

    def end(self, rendering: _Rendering) -> None:
        """Watch it no longer; no error comes after this."""
        if self._active.pop(rendering, self) is None:
            return
        while not rendering.is_raised:
            time.sleep(0)
        _raise_in(rendering.thread, None)  # one that did not come yet

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(LOOK_S)
            now = time.monotonic()
            if self._active:
                last = now
                self._look(now)
            elif now - last > STAY_S:
                self._wakes.clear()
                if not self._active:
                    self._wakes.wait()  # for the next rendering
                last = time.monotonic()

    def _look(self, now: float) -> None:
        resident = _resident()
        for rendering in list(self._active):
            if rendering.first is None:
                rendering.first = resident
            is_over = now > rendering.end or resident - rendering.first > NUM_BYTES
            if is_over and self._active.pop(rendering, self) is None:
                _raise_in(rendering.thread, TemplateLimitError)
                rendering.is_raised = True


_WATCHDOG = _Watchdog()


@contextmanager
def limited() -> Iterator[None]:
    """What is inside ends after SECONDS, and when NUM_BYTES were taken: TemplateLimitError."""
    rendering = _WATCHDOG.begin()
    try:
        try:
            yield
        finally:
            _WATCHDOG.end(rendering)
    except TemplateLimitError as error:
        limit = f"{SECONDS:g} s or {NUM_BYTES >> 20} MiB"
        raise TemplateLimitError(str(error) or f"it took more than {limit}") from None


def _raise_in(thread: int, error: type[Exception] | None) -> None:
    kind = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind)


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE
