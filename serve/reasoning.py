"""Which tokens of an answer are reasoning, told by the tokens that open and close it."""

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import NamedTuple

from trt_mtp.serve.chat_format import ChatFormat, ChatOptions

THINK, THINK_END, CALL = "<think>", "</think>", "<tool_call>"
BLANKS = (" ", "  ", "\t", "\n", "\n\n", "\n\n\n", " \n", " \n\n")  # may precede what opens it


class Marks(NamedTuple):
    """Tokens around the reasoning, -1 for one that the tokenizer doesn't have."""

    think: int
    think_end: int
    call: int
    blanks: frozenset[int]


class Phase(Enum):
    """Where an answer is."""

    OPENING = auto()  # reasoning may begin
    INSIDE = auto()
    OVER = auto()


class ReasoningCounter:
    """Counts the reasoning tokens of one answer, without those around them."""

    def __init__(self, marks: Marks, phase: Phase, *, may_call: bool) -> None:
        """`phase` is where the answer begins; with `may_call` a call ends the reasoning."""
        self.num_tokens = 0
        self._marks = marks
        self._phase = phase
        self._ends = {marks.think_end, marks.call} if may_call else {marks.think_end}

    @property
    def is_inside(self) -> bool:
        """Is the last token reasoning, or what opened it?"""
        return self._phase is Phase.INSIDE

    def push(self, token_ids: Iterable[int]) -> None:
        """Go on with the answer's next tokens."""
        if self._phase is not Phase.OVER:
            for token in token_ids:
                self._step(token)

    def _step(self, token: int) -> None:
        if self._phase is Phase.OPENING:
            if token == self._marks.think:
                self._phase = Phase.INSIDE
            elif token not in self._marks.blanks:
                self._phase = Phase.OVER
        elif self._phase is Phase.INSIDE:
            if token in self._ends:
                self._phase = Phase.OVER
            else:
                self.num_tokens += 1


class ReasoningStart(NamedTuple):
    """Where an answer begins, and what ends its reasoning."""

    marks: Marks
    phase: Phase
    may_call: bool

    def counter(self, emitted_ids: Iterable[int] = ()) -> ReasoningCounter:
        """A counter that knows the tokens which other variants emitted."""
        counter = ReasoningCounter(self.marks, self.phase, may_call=self.may_call)
        counter.push(emitted_ids)
        return counter


class Reasoning:
    """Knows where the answers of one checkpoint begin."""

    def __init__(self, encode: Callable[[str], tuple[int, ...]], chat_format: ChatFormat) -> None:
        """`encode` gives the token ids of a text."""

        def single(text: str) -> int:
            ids = encode(text)
            return ids[0] if len(ids) == 1 else -1

        blanks = frozenset(map(single, BLANKS)) - {-1}
        self._marks = Marks(single(THINK), single(THINK_END), single(CALL), blanks)
        self._format = chat_format

    def start(self, chat: ChatOptions | None) -> ReasoningStart | None:
        """Where the answer to a prompt begins; `chat` is None for one that is no chat.

        None where the reasoning can't be told, because what ends it is not one token.
        """
        phase = Phase.OVER
        if chat is not None and self._format.can_think:
            if min(self._marks.think, self._marks.think_end) < 0:
                return None
            is_open = self._format.is_open(chat.enable_thinking, has_tools=chat.has_tools)
            phase = Phase.INSIDE if is_open else Phase.OPENING
        return ReasoningStart(self._marks, phase, may_call=chat is not None and chat.has_tools)
