"""Make controller/data/task_model.json from tools/data/task_prompts.txt; always the same bytes.

Run `python -m tools.train_task_model`. Prints how well each way of asking (source)
is guessed by a model that was trained on the others.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trt_mtp.controller.tasks import TASKS
from trt_mtp.controller.text_model import MODEL_PATH, read_words
from trt_mtp.files import to_json, write_atomic

PROMPTS_PATH = Path(__file__).parent / "data" / "task_prompts.txt"
MAX_ALTERNATIVES = 3  # prompts made from a line
SOURCES = ("a", "w", "s", "c")  # ways of asking, each held out in turn
WORDS = "k"  # the source that is a list of telling words, always trained on
L1 = 3e-4
STEPS = 200
MIN_WEIGHT = 0.4  # smaller ones are left out: without them the held-out texts are guessed better
_ALTERNATIVES = re.compile(r"\{([^{}]*\|[^{}]*)\}")

Matrix = NDArray[np.floating[Any]]


class Prompt(NamedTuple):
    """One labelled prompt."""

    task: str
    source: str
    language: str
    text: str


def read_prompts(path: Path = PROMPTS_PATH) -> list[Prompt]:
    """The prompts of a file in the form that the head of tools/data/task_prompts.txt describes."""
    prompts, task = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            task = line[1:-1]
        elif line and not line.startswith("#"):
            source, language, text = line.split(" ", 2)
            texts = text.split() if source == WORDS else expand(text.replace("\\n", "\n"))
            prompts += [Prompt(task, source, language, text) for text in texts]
    return prompts


def expand(text: str) -> list[str]:
    """The texts that a line's alternatives give, each alternative used once.

    >>> expand("{sort|merge} {lists|sets}")
    ['sort lists', 'merge sets']
    """
    counts = [len(group.split("|")) for group in _ALTERNATIVES.findall(text)]
    num_texts = min(max(counts, default=1), MAX_ALTERNATIVES)

    def variant(i: int) -> str:
        return _ALTERNATIVES.sub(lambda m: _nth(m[1].split("|"), i), text)

    return list(dict.fromkeys(variant(i) for i in range(num_texts)))


def _nth(options: list[str], i: int) -> str:
    return options[i % len(options)]


def _word_features(word: str) -> set[bytes]:
    """A telling word at the edge of a text and anywhere, and nothing of the text's form."""
    return {feature for feature in prompt_features(word) if not feature.startswith(b"#")}


def prompt_features(text: str) -> set[bytes]:
    """The features of a whole prompt, through the windows that a request is read by."""
    return read_words(text[:2000], text[-2000:], len(text)).names()


class Trained(NamedTuple):
    """A dense model: features in the order of the rows of `weights` [features, tasks]."""

    names: list[bytes]
    weights: Matrix
    bias: Matrix


def train(prompts: list[Prompt], l1: float = L1) -> Trained:
    """Multinomial logistic regression with an L1 penalty, by FISTA (Beck and Teboulle, 2009)."""
    rows = [
        _word_features(p.text) if p.source == WORDS else prompt_features(p.text) for p in prompts
    ]
    seen = Counter(feature for row in rows for feature in row)
    names = sorted(feature for feature, count in seen.items() if count >= 2)
    column = {feature: i for i, feature in enumerate(names)}
    x = np.zeros((len(rows), len(names)), dtype=np.float32)
    for i, row in enumerate(rows):
        x[i, [column[feature] for feature in row if feature in column]] = 1.0
    y = np.eye(len(TASKS), dtype=np.float32)[[TASKS.index(prompt.task) for prompt in prompts]]
    weights, bias = _fista(x, y, l1)
    return Trained(
        names, np.where(np.abs(weights) >= MIN_WEIGHT, weights, 0.0).round(2), bias.round(2)
    )


def _fista(x: Matrix, y: Matrix, l1: float) -> tuple[Matrix, Matrix]:
    rate = 2.0 * len(x) / (_largest_eigenvalue(x) * 1.05 + len(x))
    weights = np.zeros((x.shape[1], y.shape[1]))
    bias, momentum = np.zeros(y.shape[1]), 1.0
    ahead = weights
    for _ in range(STEPS):
        error = (_softmax(x @ ahead + bias) - y) / len(x)
        step = ahead - rate * (x.T @ error)
        new = np.sign(step) * np.maximum(np.abs(step) - rate * l1, 0.0)
        next_momentum = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / next_momentum * (new - weights)
        weights, momentum = new, next_momentum
        bias -= rate * error.sum(axis=0)
    return weights, bias


def _largest_eigenvalue(x: Matrix) -> float:
    """Of xᵀx, by power iteration: the bound on the step size."""
    vector = np.ones(x.shape[1], dtype=x.dtype)
    value = 1.0
    for _ in range(30):
        vector = x.T @ (x @ vector)
        value = float(np.linalg.norm(vector))
        vector /= value
    return value


def _softmax(scores: Matrix) -> Matrix:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def predict(model: Trained, texts: list[str]) -> Matrix:
    """Probabilities [texts, tasks]."""
    column = {feature: i for i, feature in enumerate(model.names)}
    scores = np.tile(model.bias, (len(texts), 1))
    for i, text in enumerate(texts):
        known = [column[f] for f in prompt_features(text) if f in column]
        scores[i] += model.weights[known].sum(axis=0)
    return _softmax(scores)


def confusion(prompts: list[Prompt], held_out: str) -> NDArray[np.int64]:
    """Counts [true task, guessed task] of source `held_out`, trained on all others."""
    model = train([p for p in prompts if p.source != held_out])
    test = [p for p in prompts if p.source == held_out]
    guesses = predict(model, [p.text for p in test]).argmax(axis=1)
    counts = np.zeros((len(TASKS), len(TASKS)), dtype=np.int64)
    for prompt, guess in zip(test, guesses, strict=True):
        counts[TASKS.index(prompt.task), guess] += 1
    return counts


def as_json(model: Trained) -> str:
    """The model file: one line for each feature, so that a change can be read."""
    weights: dict[str, Any] = {}
    for name, row in zip(model.names, model.weights, strict=True):
        pairs = [[i, float(w)] for i, w in enumerate(row) if w]
        if pairs:
            weights[name.decode()] = pairs
    lines = ",\n".join(
        f"  {json.dumps(k, ensure_ascii=False)}: {json.dumps(v)}" for k, v in weights.items()
    )
    head = to_json(
        {"schema_version": 1, "tasks": list(TASKS), "bias": [float(b) for b in model.bias]}
    )
    return head.rstrip("}\n") + ',\n "weights": {\n' + lines + "\n }\n}\n"


def main() -> None:
    """Train, check by source, write."""
    prompts = read_prompts()
    for source in SOURCES:
        counts = confusion(prompts, source)
        print(f"source {source} held out: {counts.trace() / counts.sum():.3f} of {counts.sum()}")
    model = train(prompts)
    write_atomic(MODEL_PATH, as_json(model))
    kept = int(model.weights.any(axis=1).sum())
    print(
        f"{MODEL_PATH}: {len(prompts)} prompts, {kept} features, "
        f"{MODEL_PATH.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
