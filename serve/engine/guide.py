"""The grammar of one answer as its tokens come: which one may be next, after drafts too.

Before the end of the reasoning every token may come but those that end an answer. The grammar
begins right behind it, wherever in a drafted block that is.
"""

import re
from enum import Enum, auto
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trt_mtp.serve.contract import STUCK

MAX_ERROR_CHARS = 200  # of what llguidance says
PARSE_ERROR = "regex parse error:"  # the next line is the pattern, the one after marks the place
NOTHING_FITS = ("NoExtension", "NoExtensionBias")
UNKNOWN_FORMAT = re.compile(r"Unknown format: (\S+)")
ONE_OF = (
    "oneOf is only kept to where no two of it can both fit: use anyOf, or give each a property "
    "with a const of its own"
)

Words = npt.NDArray[np.uint32]  # a bit per token, 32 in a word, lowest first


class Marks(NamedTuple):
    """Tokens around reasoning and calls, -1 where the tokenizer has none, and those that end."""

    think: int
    think_end: int
    call: int
    end_ids: frozenset[int]


class Phase(Enum):
    """Where an answer is."""

    OPENING = auto()  # reasoning or the grammar may begin
    REASONING = auto()
    GRAMMAR = auto()
    OVER = auto()


class Guide:
    """One answer's grammar. Tokens are tried, as drafts are, and taken back, or kept."""

    def __init__(
        self, matcher: Any, marks: Marks, phase: Phase, num_words: int, hold_ends: int | None
    ) -> None:
        """`matcher` is llguidance's, at its start; masks have `num_words` words.

        End tokens are held back for the first `hold_ends` tokens of the answer, or for as long as
        anything else may come (None).
        """
        self._matcher = matcher
        self._marks = marks
        self._phase = self._kept_phase = phase
        self._num_tried = 0  # tokens of the grammar
        self._num_ahead = 0  # tokens, of any kind
        self._num_kept = 0
        self._hold_ends = hold_ends
        self._not_ends = np.full(num_words, 2**32 - 1, np.uint32)
        for token in marks.end_ids:
            self._not_ends[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
        self.error = ""  # why it can't go on, a sentence

    def fill(self, words: Words) -> bool:
        """Write into `words` which token may be next; false where all may, as after the end."""
        if self._phase is Phase.OVER or self.error:
            return False
        if self._phase is Phase.REASONING:
            words[:] = self._not_ends
            return True
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            self.error = grammar_error(self._matcher.get_error())
            return False
        if not self._drop_ends_as_text(words):
            return False
        if self._phase is Phase.OPENING:
            words[self._marks.think // 32] |= np.uint32(1 << self._marks.think % 32)
        if self._holds_ends():
            held = words & self._not_ends
            if held.any():
                words[:] = held
        return True

    def try_token(self, token: int) -> None:
        """Go on as if `token` were kept; it is one that may be next."""
        self._num_ahead += 1
        self._step(token)

    def take_back(self) -> None:
        """Forget the tokens that were tried."""
        if self._num_tried:
            self._matcher.rollback(self._num_tried)
        self._phase, self._num_tried, self._num_ahead = self._kept_phase, 0, 0

    def push(self, token: int) -> bool:
        """Keep `token`; returns whether the answer is over with it."""
        self._step(token)
        self._kept_phase, self._num_tried = self._phase, 0
        self._num_kept += 1
        return self._phase is Phase.OVER

    def _drop_ends_as_text(self, words: Words) -> bool:
        """Take out end tokens that llguidance means as the text they stand for, which none has.

        Returns whether another token may come; without one, there is an error.
        """
        others = words & self._not_ends
        if np.array_equal(others, words) or self._matcher.is_accepting():
            return True
        words[:] = others
        if not others.any():
            self.error = grammar_error("the text of an end token can't be written")
        return not self.error

    def _holds_ends(self) -> bool:
        return self._hold_ends is None or self._num_kept + self._num_ahead < self._hold_ends

    def _step(self, token: int) -> None:
        marks = self._marks
        if self._phase is Phase.OPENING and token == marks.think:
            self._phase = Phase.REASONING
        elif self._phase is Phase.REASONING:
            if token == marks.think_end:
                self._phase = Phase.GRAMMAR
            elif token == marks.call and self._matcher.validate_tokens([token]):
                self._consume(token)  # a call ends the reasoning
        elif self._phase is not Phase.OVER:
            self._consume(token)

    def _consume(self, token: int) -> None:
        self._phase = Phase.GRAMMAR
        if token in self._marks.end_ids:
            self._phase = Phase.OVER
        elif not self._matcher.consume_token(token):
            self.error = grammar_error(self._matcher.get_error())
        else:
            self._num_tried += 1
            if self._matcher.is_stopped():
                self._phase = Phase.OVER


def _pattern_in(lines: list[str]) -> str:
    """The pattern that the parser of regular expressions shows; empty for one of several lines."""
    at = next((number for number, line in enumerate(lines) if line.endswith(PARSE_ERROR)), -1)
    shown = lines[at + 1] if 0 <= at < len(lines) - 1 else ""
    return "" if shown.startswith("~~~") else shown


def grammar_error(text: str) -> str:
    """A sentence of what llguidance says: its line that begins with `error:`, or its first one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["unknown error"]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = "no text fits" if lines[0] in NOTHING_FITS else (errors or lines)[0]
    form = UNKNOWN_FORMAT.search(reason)
    if form:
        reason = f"texts can't be held to the format {form[1]}: leave it out, or give a pattern"
    elif "coerce_one_of" in reason:  # an option that clients don't have
        reason = ONE_OF
    elif errors and (pattern := _pattern_in(lines)):
        reason = f"{reason}, in the pattern {pattern}"
    return f"{STUCK}{reason[:MAX_ERROR_CHARS]}"
