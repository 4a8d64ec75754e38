"""How many tokens of an answer are reasoning, told by the tokens that open and close it."""

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import NamedTuple

from trt_mtp.serve.chat_format import ChatFormat
from trt_mtp.serve.variant_request import VariantRequest

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


class Reasoning:
    """Makes the counters for the answers of one checkpoint."""

    def __init__(self, encode: Callable[[str], tuple[int, ...]], chat_format: ChatFormat) -> None:
        """`encode` gives the token ids of a text."""

        def single(text: str) -> int:
            ids = encode(text)
            return ids[0] if len(ids) == 1 else -1

        blanks = frozenset(map(single, BLANKS)) - {-1}
        self._marks = Marks(single(THINK), single(THINK_END), single(CALL), blanks)
        self._format = chat_format

    def counter(self, request: VariantRequest) -> ReasoningCounter | None:
        """A counter that knows the tokens which other variants emitted.

        None where the reasoning can't be counted, because what ends it is not one token.
        """
        chat = request.chat
        phase = Phase.OVER
        if chat is not None and self._format.can_think:
            if min(self._marks.think, self._marks.think_end) < 0:
                return None
            is_open = self._format.is_open(chat.enable_thinking)
            phase = Phase.INSIDE if is_open else Phase.OPENING
        may_call = chat is not None and chat.has_tools
        counter = ReasoningCounter(self._marks, phase, may_call=may_call)
        counter.push(request.request.emitted_ids)
        return counter
