"""A linear model of tasks over the words and marks of a bounded window of text.

Its weights are few, readable and lie in data/task_model.json, which
`python -m tools.train_task_model` writes from tools/data/task_prompts.txt.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from trt_mtp.controller.tasks import TASKS

WINDOW_CHARS = 200  # read from each end
EDGE_WORDS = 12  # the first and the last words, where instructions lie, are features twice
EDGE_CHARS = 150  # of each end, read as pairs of characters where a script has no spaces
TELLING = 0.5  # log-odds from which a word is named as a reason
MODEL_PATH = Path(__file__).parent / "data" / "task_model.json"

# ASCII letters to lower case, ASCII punctuation and digits to spaces, all else as it is
_WORD_BYTES = bytes(
    byte | 0x20 if 65 <= byte <= 90 else byte if byte >= 128 or 97 <= byte <= 122 else 32
    for byte in range(256)
)
_NO_SPACES = re.compile("[\u3040-\u30ff\u4e00-\u9fff]{2,}")  # Chinese and Japanese
_LETTERS_DIGITS_SPACE = bytes(
    byte for byte in range(256) if byte >= 128 or byte == 32 or chr(byte).isalnum()
)
_NOT_DIGITS = bytes(byte for byte in range(256) if not 48 <= byte <= 57)
_MARKS = (  # what is left of a text without letters, digits and spaces -> feature
    (b'":', b"#json"),
    (b"=", b"#equals"),
    (b"\n\n", b"#paragraphs"),
)


_MARK_WORDS = {  # how a reason names a mark
    "#json": "JSON",
    "#equals": "equals signs",
    "#paragraphs": "paragraphs",
    "#short": "few words",
    "#medium": "a few sentences",
    "#long": "much text",
    "#digits": "digits",
    "#many-digits": "many digits",
    "#question": "a question at the end",
    "#not-ascii": "letters beyond ASCII",
}


def in_words(feature: str) -> str:
    """A feature of the model's file as a reader of a reason knows it.

    >>> in_words("^json"), in_words("#short")
    ('"json"', 'few words')
    """
    return _MARK_WORDS.get(feature) or f'"{feature.removeprefix("^")}"'


class Words(NamedTuple):
    """The features of a text: its words and marks, and the words at its ends once more."""

    anywhere: list[bytes]  # words, marks (`#...`) and pairs of characters; repeats count once
    edges: list[bytes]

    def names(self) -> set[bytes]:
        """The features as the model's file names them: those of the edges begin with `^`."""
        return {*self.anywhere, *(b"^" + word for word in self.edges)}


def read_words(head: str, tail: str, num_chars: int) -> Words:
    """The features of a prompt; `head` and `tail` are its ends, equal where it is short."""
    if num_chars <= 2 * WINDOW_CHARS:
        text = head
    else:
        text = f"{head[:WINDOW_CHARS]}\n{tail[-WINDOW_CHARS:]}"
    raw = text.encode("utf-8", "replace")
    words = raw.translate(_WORD_BYTES).split()
    edges = words if len(words) <= 2 * EDGE_WORDS else words[:EDGE_WORDS] + words[-EDGE_WORDS:]
    signs = raw.translate(None, _LETTERS_DIGITS_SPACE)
    marks = [mark for piece, mark in _MARKS if piece in signs]
    marks.append(_size_mark(num_chars))
    num_digits = len(raw.translate(None, _NOT_DIGITS))
    if num_digits:
        marks.append(b"#many-digits" if num_digits * 16 > len(raw) else b"#digits")
    if text[-3:].rstrip().endswith(("?", "？")):  # noqa: RUF001 - the full-width question mark
        marks.append(b"#question")
    if not text.isascii():
        marks.append(b"#not-ascii")
        ends = text if len(text) <= 2 * EDGE_CHARS else text[:EDGE_CHARS] + text[-EDGE_CHARS:]
        for run in _NO_SPACES.findall(ends):
            marks += [(a + b).encode() for a, b in pairwise(run)]
    return Words(words + marks, edges)


def _size_mark(num_chars: int) -> bytes:
    if num_chars < 100:
        return b"#short"
    return b"#medium" if num_chars < 800 else b"#long"


class TextScore(NamedTuple):
    """Log-odds by task, in the order of TASKS, and the features that count most for the best."""

    scores: list[float]
    evidence: tuple[str, ...]  # such as `"json"` and `few words`


Weights = Mapping[bytes, tuple[tuple[int, float], ...]]  # pairs of task and log-odds, few per word


class _Table:
    """The weights of words in one place, anywhere or at the edges.

    A word's log-odds for all tasks are one integer, in hundredths, 16 bits a task: adding two
    such integers adds all tasks at once.
    """

    def __init__(self, weights: Weights) -> None:
        self._known = frozenset(weights)
        self._packed = {word: _pack(pairs) for word, pairs in weights.items()}

    def known(self, words: Iterable[bytes]) -> frozenset[bytes]:
        """The words among `words` that have weights, each once."""
        return self._known.intersection(words)

    def add(self, total: int, hits: Iterable[bytes]) -> int:
        """`total` with the packed log-odds of known words."""
        return sum(map(self._packed.__getitem__, hits), total)


class _Telling:
    """The words that speak for one task, ranked by their log-odds."""

    def __init__(self, weights: Weights, task: int) -> None:
        weighted = [(-w, name) for name, pairs in weights.items() for t, w in pairs if t == task]
        ranked = [name for minus, name in sorted(weighted) if -minus > TELLING]
        self._names = [in_words(name.decode()) for name in ranked]
        self._edges = {name[1:]: i for i, name in enumerate(ranked) if name.startswith(b"^")}
        self._anywhere = {n: i for i, n in enumerate(ranked) if not n.startswith(b"^")}
        self._edge_words, self._words = frozenset(self._edges), frozenset(self._anywhere)

    def first(self, hits: frozenset[bytes], edge_hits: frozenset[bytes]) -> tuple[str, ...]:
        """The three strongest reasons, each once: a word at an end is also one anywhere."""
        ranks = list(map(self._anywhere.__getitem__, hits & self._words))
        ranks += map(self._edges.__getitem__, edge_hits & self._edge_words)
        ranks.sort()
        return tuple(dict.fromkeys(map(self._names.__getitem__, ranks[:6])))[:3]


def _pack(pairs: Iterable[tuple[int, float]]) -> int:
    return sum(round(100 * weight) << 16 * task for task, weight in pairs)


_FIELDS = struct.Struct(f"<{len(TASKS)}h")
_SIGNS = sum(1 << 16 * task + 15 for task in range(len(TASKS)))  # keeps fields from borrowing


class TextModel:
    """A bias per task, and weights of words anywhere and at the edges."""

    def __init__(self, bias: Sequence[float], weights: Weights) -> None:
        self.bias = tuple(bias)
        self._bias = _pack(enumerate(bias)) + _SIGNS
        edges = {name[1:]: pairs for name, pairs in weights.items() if name.startswith(b"^")}
        self._edges = _Table(edges)
        self._anywhere = _Table({k: v for k, v in weights.items() if not k.startswith(b"^")})
        self._telling = [_Telling(weights, task) for task in range(len(TASKS))]

    def score(self, words: Words) -> TextScore:
        """Log-odds of every task for the features of a prompt."""
        anywhere, edges = self._anywhere, self._edges
        hits, edge_hits = anywhere.known(words.anywhere), edges.known(words.edges)
        total = edges.add(anywhere.add(self._bias, hits), edge_hits)
        fields = _FIELDS.unpack((total ^ _SIGNS).to_bytes(_FIELDS.size, "little"))
        best = fields.index(max(fields))
        return TextScore(
            [field / 100 for field in fields], self._telling[best].first(hits, edge_hits)
        )


@cache
def load_text_model(path: Path = MODEL_PATH) -> TextModel:
    """The model in `path`, read once."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["tasks"] != list(TASKS):
        raise ValueError(f"{path} was trained for other tasks")
    weights = {
        feature.encode(): tuple((int(task), float(weight)) for task, weight in pairs)
        for feature, pairs in record["weights"].items()
    }
    return TextModel(record["bias"], weights)
