"""Text of others on our terminal and in our logs: nothing in it is obeyed.

A model, a server or another user's file may say what moves the cursor, sets the clipboard, turns
the direction of writing, or begins a log line of its own.
"""

import re

# C0 and C1 but tabs and line breaks, and what Unicode has for the direction of text
_OBEYED = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` with what a terminal would obey written out.

    >>> printable("a\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same, with line breaks written out, too."""
    return printable(text).replace("\r", "\\r").replace("\n", "\\n")
