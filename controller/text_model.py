"""A linear model of tasks over the words and marks of a bounded window of text.

Its weights are few, readable and lie in data/task_model.json, which
`python -m trt_mtp.controller.train_task_model` writes from data/task_prompts.jsonl.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from trt_mtp.controller.tasks import TASKS

WINDOW_CHARS = 500  # read from each end
EDGE_WORDS = 16  # the first and the last words, where instructions lie, are features twice
EDGE_CHARS = 150  # of each end, read as pairs of characters where a script has no spaces
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
    (b"```", b"#fence"),
    (b'":', b"#json"),
    (b"[]", b"#numbered"),
    (b"\\", b"#backslash"),
    (b"$", b"#dollar"),
    (b"=", b"#equals"),
    (b"()", b"#call"),
    (b"</", b"#tag"),
    (b"\n\n", b"#paragraphs"),
    (b"\n-", b"#list"),
    (b"|", b"#table"),
    (b"://", b"#link"),
)


def features(head: str, tail: str, num_chars: int) -> set[bytes]:
    """The features of a prompt; `head` and `tail` are its ends, equal where it is short."""
    if num_chars <= 2 * WINDOW_CHARS:
        text = head
    else:
        text = f"{head[:WINDOW_CHARS]}\n{tail[-WINDOW_CHARS:]}"
    raw = text.encode("utf-8", "replace")
    words = raw.translate(_WORD_BYTES).split()
    found = set(words)
    edges = words if len(words) <= 2 * EDGE_WORDS else words[:EDGE_WORDS] + words[-EDGE_WORDS:]
    found.update([b"^" + word for word in edges])
    signs = raw.translate(None, _LETTERS_DIGITS_SPACE)
    found.update([mark for piece, mark in _MARKS if piece in signs])
    found.add(_size_mark(num_chars))
    num_digits = len(raw.translate(None, _NOT_DIGITS))
    if num_digits:
        found.add(b"#many-digits" if num_digits * 16 > len(raw) else b"#digits")
    if text[-3:].rstrip().endswith(("?", "？")):  # noqa: RUF001 - the full-width question mark
        found.add(b"#question")
    if not text.isascii():
        found.add(b"#not-ascii")
        ends = text if len(text) <= 2 * EDGE_CHARS else text[:EDGE_CHARS] + text[-EDGE_CHARS:]
        for run in _NO_SPACES.findall(ends):
            found.update([(a + b).encode() for a, b in pairwise(run)])
    return found


def _size_mark(num_chars: int) -> bytes:
    if num_chars < 100:
        return b"#short"
    return b"#medium" if num_chars < 800 else b"#long"


class TextScore(NamedTuple):
    """Log-odds by task, in the order of TASKS, and the features that count most for the best."""

    scores: list[float]
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextModel:
    """Weights by feature: pairs of task index and log-odds, most of them zero and left out."""

    bias: tuple[float, ...]
    weights: Mapping[bytes, tuple[tuple[int, float], ...]]
    known: frozenset[bytes]
    strong: tuple[Mapping[bytes, float], ...]  # by task: telling features, minus their weights

    def score(self, found: set[bytes]) -> TextScore:
        """Log-odds of every task for the features of a prompt."""
        scores, hits = list(self.bias), found & self.known
        weights = self.weights
        for feature in hits:
            for task, weight in weights[feature]:
                scores[task] += weight
        best = scores.index(max(scores))
        strong = self.strong[best]
        evidence = sorted(hits & strong.keys(), key=strong.__getitem__)[:3]
        return TextScore(scores, tuple([f.decode("utf-8", "replace") for f in evidence]))


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
    strong = tuple(
        {f: -w for f, pairs in weights.items() for t, w in pairs if t == task and w > 0.4}
        for task in range(len(TASKS))
    )
    return TextModel(tuple(record["bias"]), weights, frozenset(weights), strong)
