"""Grammars compiled on trial in a process of their own, which can be ended, before an engine does.

llguidance's limits don't hold all of its compiler's work: a `multipleOf` of nine digits, or a dozen
patterns in an `allOf`, would hold a thread for hours and take gigabytes.
"""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from trt_mtp.confined import ConfinedProcess, LostError, answer_messages

CPU_S = 1  # for one grammar
MEMORY_BYTES = 128 * 1024 * 1024  # for one grammar, above what the process has without one
ANSWER_S = 30.0  # for CPU_S, on a machine with much else to do
NICENESS = 5  # of its process: what answers goes before what tries
MAX_KNOWN = 1_024  # grammars whose trial is remembered


class GrammarTrial:
    """A process that compiles grammars for one tokenizer, started when it is needed."""

    def __init__(
        self, tokenizer: str, options: Mapping[str, Any], limits: Mapping[str, Any]
    ) -> None:
        """`tokenizer` is its JSON; `options` are LLTokenizer's, `limits` LLParserLimits'."""
        setup = json.dumps({"tokenizer": tokenizer, "options": options, "limits": limits})
        self._process = ConfinedProcess(__name__, setup.encode(), MEMORY_BYTES, CPU_S)
        self._known: OrderedDict[bytes, bool] = OrderedDict()  # by digest: is it within the limits
        self._lock = threading.Lock()

    def is_small(self, grammar: str) -> bool:
        """Whether compiling `grammar` is within the limits of time and memory.

        True for one that llguidance refuses in time, too. Raises TrtMtpError where no process can
        be started.
        """
        content = grammar.encode()
        digest = hashlib.sha256(content).digest()
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
            is_small, is_sure = self._tried(content)
            if is_sure:
                self._known[digest] = is_small
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
            return is_small

    def close(self) -> None:
        """End the process; a later trial starts another."""
        with self._lock:
            self._process.close()

    def _tried(self, content: bytes) -> tuple[bool, bool]:
        """Whether it is small, and whether it would be found so again."""
        try:
            self._process.ask(content, ANSWER_S)
        except LostError as lost:
            return False, not lost.is_late  # that was the machine, not the grammar
        return True, True


def main() -> None:
    """The process: an empty answer for each grammar that was compiled or refused."""
    answer_messages(_prepared)


def _prepared(setup: bytes) -> Callable[[bytes], bytes]:
    os.nice(NICENESS)
    compile_one = _compiler(**json.loads(setup))
    compile_one("start: /a/")  # so that what is only made once is there

    def answer(grammar: bytes) -> bytes:
        compile_one(grammar.decode())
        return b""

    return answer


def _compiler(
    tokenizer: str, options: Mapping[str, Any], limits: Mapping[str, Any]
) -> Callable[[str], None]:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    read = LLTokenizer(tokenizer, **options)

    def compile_one(grammar: str) -> None:
        """Compile it and compute its first mask, as an engine does."""
        try:
            matcher = LLMatcher(read, grammar, log_level=0, limits=LLParserLimits(**limits))
            if not matcher.is_error():
                matcher.compute_bitmask()
        except ValueError:  # the engine will say it
            return

    return compile_one
