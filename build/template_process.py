"""Chat templates rendered in a process of their own, with limits (trt_mtp/confined.py).

A template comes with a checkpoint, which may be anybody's. jinja2's sandbox keeps it from code, and
the process from time, memory and files.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from trt_mtp.confined import ConfinedProcess, LostError, answer_messages

if TYPE_CHECKING:
    import jinja2

SECONDS = 10  # for one rendering
NUM_BYTES = 1 << 29  # for all that one takes
MAX_CHARS = 1 << 25  # of a rendering
MAX_COMPILED = 16  # templates that are kept
WARMING = (
    "{% generation %}{{ 'a b' | wordwrap(1) | pprint }}{{ [1] | tojson }}{% endgeneration %}",
    "{{ strftime_now('%c') }}{{ undefined.name }}",
    "{{ raise_exception('') }}",
    "{% no statement %}",
)


class TemplateLimitError(Exception):
    """A template took too much."""


class TemplateError(Exception):
    """What a template makes of what it is given; `kind` is the error's name in Python."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class RefusalError(TemplateError):
    """A template's own `raise_exception`."""


class Renderers:
    """Processes that render, as many as threads that do it at once."""

    def __init__(self) -> None:
        self._idle: list[ConfinedProcess] = []
        self._lock = threading.Lock()

    def render(self, source: str, values: Mapping[str, Any] | None) -> str:
        """`source` with `values`; without them it is only compiled.

        Raises TemplateError, TemplateLimitError.
        """
        job = json.dumps([source, values]).encode()
        with self._one() as process:
            try:
                answer = json.loads(process.ask(job, SECONDS))
            except LostError:
                raise _too_much() from None
        if answer["kind"] == "MemoryError":
            raise _too_much()
        if answer["kind"]:
            error = RefusalError if answer["kind"] == _Refusal.__name__ else TemplateError
            raise error(answer["kind"], answer["text"])
        return str(answer["text"])

    def close(self) -> None:
        """End the processes; later renderings start others."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    @contextmanager
    def _one(self) -> Iterator[ConfinedProcess]:
        with self._lock:
            process = self._idle.pop() if self._idle else _renderer()
        try:
            yield process
        finally:
            with self._lock:
                self._idle.append(process)


RENDERERS = Renderers()


def _renderer() -> ConfinedProcess:
    return ConfinedProcess(__name__, b"", NUM_BYTES, SECONDS)


def _too_much() -> TemplateLimitError:
    return TemplateLimitError(f"it took more than {SECONDS} s or {NUM_BYTES >> 20} MiB")


# what follows runs in the process alone


class _Refusal(Exception):
    """What `raise_exception` raises."""


def main() -> None:
    """The process, with all that is imported on demand: later it can open no file."""
    for source in WARMING:
        _answer(json.dumps([source, {}]).encode())
    answer_messages(lambda _: _answer)


def _answer(job: bytes) -> bytes:
    try:
        source, values = json.loads(job)
        template = _compiled(source)
        text = "" if values is None else template.render(**values)
        kind = "" if len(text) <= MAX_CHARS else MemoryError.__name__
    except Exception as error:  # of whatever kind a template makes
        kind, text = type(error).__name__, _said(error)
    return json.dumps({"kind": kind, "text": text[:MAX_CHARS]}).encode()


def _said(error: Exception) -> str:
    import jinja2

    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    return str(error)


@lru_cache(MAX_COMPILED)
def _compiled(source: str) -> "jinja2.Template":
    """A chat template with the tags, filters and functions that Hugging Face gives it."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_generation_tag(), "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(source)


def _generation_tag() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class GenerationTag(Extension):
        """`{% generation %}`, which marks answers for training, as the text inside it."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 has it as an instance variable)

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            """The statements up to `{% endgeneration %}`, unchanged."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationTag


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise _Refusal(message)
