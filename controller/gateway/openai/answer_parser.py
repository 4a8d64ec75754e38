"""An answer's text as it streams, read for reasoning and tool calls in Qwen's forms.

The deltas are the same however the text is cut into pieces, but for where a text is cut. What may
be the beginning of a mark is held back, and so are line breaks before one, which belong to the
form.
"""

from collections.abc import Mapping

from trt_mtp.controller.gateway.openai.call_json import JsonCall
from trt_mtp.controller.gateway.openai.call_xml import XmlCall
from trt_mtp.controller.gateway.openai.deltas import CallReader, Delta, Kind, ToolSchemas, open_end

THINK, THINK_END, CALL, BARE_CALL = "<think>", "</think>", "<tool_call>", "<function="
MAX_BLANKS = 1_024  # before <think>; an answer may be blanks without end


class AnswerParser:
    """Reads one answer."""

    def __init__(
        self, form: str, schemas: ToolSchemas | None, *, can_think: bool, is_thinking: bool
    ) -> None:
        """`form` is that of tool calls, "json" or "xml"; without `schemas` none are read.

        `is_thinking` if the prompt ended inside the reasoning.
        """
        calls = () if schemas is None else (CALL, BARE_CALL) if form == "xml" else (CALL,)
        self._marks: Mapping[Kind, tuple[str, ...]] = {
            "reasoning": (THINK_END, *calls),
            "content": calls,
        }
        self._form = form
        self._schemas = schemas or {}
        self._held = ""
        self._num_breaks = 0  # line breaks at the end that may belong to the form
        self._call: CallReader | None = None
        self._region: Kind = "reasoning" if is_thinking else "content"
        self._is_after_mark = is_thinking
        self._may_open = can_think and not is_thinking  # <think> may come first

    def push(self, text: str) -> list[Delta]:
        """The deltas that `text` makes final."""
        self._held += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def end(self) -> list[Delta]:
        """What was held back, when the answer is over."""
        self._may_open = False
        deltas = self.push("")
        if self._call is not None:
            return deltas + self._call.end()
        self._emit(deltas, self._held)
        self._held = ""
        if self._num_breaks:
            deltas.append(Delta(self._region, "\n" * self._num_breaks))
        return deltas

    def _step(self, deltas: list[Delta]) -> bool:
        """Read up to the next mark, or the end of a call; false where more text is needed."""
        if self._call is not None:
            return self._read_call(deltas, self._call)
        if self._may_open and not self._has_opened():
            return False
        marks = self._marks[self._region]
        places = {self._held.find(mark): mark for mark in marks}
        places.pop(-1, None)
        if not places:
            keep = open_end(self._held, marks) if marks else 0
            end = len(self._held) - keep
            self._emit(deltas, self._held[:end])
            self._held = self._held[end:]
            return False
        at = min(places)
        mark = places[at]
        self._emit(deltas, self._held[:at])
        self._held = self._held[at + (0 if mark == BARE_CALL else len(mark)) :]
        self._region, self._num_breaks, self._is_after_mark = "content", 0, True
        if mark != THINK_END:
            is_bare = mark == BARE_CALL
            is_xml = self._form == "xml"
            self._call = XmlCall(self._schemas, is_bare=is_bare) if is_xml else JsonCall()
        return True

    def _has_opened(self) -> bool:
        """Whether it is settled if the answer begins with reasoning."""
        text = self._held.lstrip()
        if len(self._held) - len(text) > MAX_BLANKS:
            pass
        elif text.startswith(THINK):
            self._region, self._is_after_mark = "reasoning", True
            self._held = text.removeprefix(THINK)
        elif THINK.startswith(text):
            return False
        self._may_open = False
        return True

    def _read_call(self, deltas: list[Delta], call: CallReader) -> bool:
        read = call.push(self._held)
        deltas += read.deltas
        self._held = read.rest or ""
        if read.rest is None:
            return False
        self._call = None
        return True

    def _emit(self, deltas: list[Delta], text: str) -> None:
        """A text of the region, without the line breaks around marks."""
        if self._is_after_mark:
            text = text.lstrip("\n")
        if not text:
            return
        self._is_after_mark = False
        shown = text.rstrip("\n")
        if shown:
            deltas.append(Delta(self._region, "\n" * self._num_breaks + shown))
            self._num_breaks = 0
        self._num_breaks += len(text) - len(shown)
