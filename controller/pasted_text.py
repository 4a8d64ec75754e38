"""Whether a prompt asks a question of prose that is pasted into it, as retrieval does."""

import re

FEWEST_CHARS = 1_200  # a question and what it is asked of; questions alone are shorter
WINDOW_CHARS = 2_000  # that are looked at
_QUESTION_MARKS = ("?", "\uff1f", "\u061f")  # the full-width one and the Arabic one
_SIGNS_OF_CODE = b"={};_<>"
_MOST_SIGNS = 0.008  # of the bytes: prose has half of that at most, code 0.011 at least
_LAST_USER = "<|im_start|>user\n"
_CONTENT = re.compile(r'(?<!\\)"content"\s*:\s*"')  # where one begins in JSON


def asks_of_pasted_text(head: str, tail: str, num_chars: int) -> bool:
    """Whether a turn of `num_chars` is long prose, and its first or last line is a question.

    `head` and `tail` are its ends, both all of it where it is short.
    """
    if num_chars <= FEWEST_CHARS:
        return False
    start, end = head[:WINDOW_CHARS], tail[-WINDOW_CHARS:]
    first, last = start.lstrip().partition("\n")[0], end.rstrip()
    if not last.endswith(_QUESTION_MARKS) and not first.rstrip().endswith(_QUESTION_MARKS):
        return False
    raw = start.encode("utf-8", "replace")
    return len(raw) - len(raw.translate(None, _SIGNS_OF_CODE)) <= _MOST_SIGNS * len(raw)


def asks_in_text(head: str, tail: str, num_chars: int) -> bool:
    """The same of the last turn of a text in ChatML, of all of it where it isn't in that form."""
    _, opening, turn = tail.rpartition(_LAST_USER)
    if opening:
        return asks_of_pasted_text(turn, turn, len(turn))
    return asks_of_pasted_text(head, tail, num_chars)


def asks_in_messages(head: str, tail: str, num_chars: int) -> bool:
    """The same of chat messages in JSON that nobody parsed: `head` and `tail` are its ends."""
    *before, turn = _CONTENT.split(tail)
    turn = unescaped(turn).rstrip(' \n"}]')
    if before:
        return asks_of_pasted_text(turn, turn, len(turn))
    return asks_of_pasted_text(unescaped(_CONTENT.split(head, 1)[-1]), turn, num_chars)


def unescaped(text: str) -> str:
    """A text as it was before it was written into JSON, as far as lines and quotes go."""
    return text.replace("\\n", "\n").replace('\\"', '"')
