"""The task of a request: probabilities over all tasks, with the reasons.

Structure first (what the client says, tools, response format, temperature), then the text model
over a bounded window. The work doesn't grow with the prompt.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.tasks import TASKS
from trt_mtp.controller.text_model import TextModel, load_text_model, read_words
from trt_mtp.errors import InputError
from trt_mtp.files import nearest

SYSTEM_CHARS = 600
SYSTEM_WEIGHT = 0.5  # a system prompt says what a service is for, not what this request asks
MAX_LAG = 3.9  # log-odds behind the best from which a task is left out: 2% as likely
# log-odds where the client predicts the answer, an edited file or document: it repeats what it has
PREDICTED = {"coding": 2.0, "rag": 2.0, "writing": -3.0, "roleplay": -3.0}
PASTED = 5.0  # log-odds for rag where a long text comes with a question
_SERVICE_WORDS = ("assistant", "helpful", "expert", "model", "bot", "tool", "qwen", "engineer")
_INDEX = {task: i for i, task in enumerate(TASKS)}


class TaskGuess(NamedTuple):
    """The likely tasks, most likely first, and why."""

    probabilities: tuple[tuple[str, float], ...]  # sums to 1
    reasons: tuple[str, ...]

    @property
    def task(self) -> str:
        """The most likely task."""
        return self.probabilities[0][0]

    @property
    def confidence(self) -> float:
        """The probability of the most likely task."""
        return self.probabilities[0][1]


def guess_task(request: RequestFeatures, model: TextModel | None = None) -> TaskGuess:
    """The task of a request; raises InputError if its own hint names no task."""
    if request.hint_task is not None:
        return _hinted(request.hint_task)
    model = model or load_text_model()
    text = model.score(read_words(request.head, request.tail, request.num_chars))
    scores, reasons = text.scores, []
    if text.evidence:
        reasons.append("prompt with " + ", ".join(text.evidence))
    if request.system:
        _add_system(model, request.system, scores, reasons)
        if _casts_a_character(request.system):
            scores[_INDEX["roleplay"]] += 2.5
            reasons.append("the system prompt casts a character")
    _add_structure(request, scores, reasons)
    return TaskGuess(_probabilities(scores), tuple(reasons))


def _hinted(task: str) -> TaskGuess:
    if task not in _INDEX:
        raise InputError(
            f"task is {task[:80]!r}{nearest(task[:80], TASKS)} (known: {', '.join(TASKS)})"
        )
    return TaskGuess(((task, 1.0),), ("the request names its task",))


def _add_system(model: TextModel, system: str, scores: list[float], reasons: list[str]) -> None:
    text = model.score(read_words(system[:SYSTEM_CHARS], "", 0))
    for i, score in enumerate(text.scores):
        scores[i] += SYSTEM_WEIGHT * (score - model.bias[i])
    if text.evidence:
        reasons.append("system prompt with " + ", ".join(text.evidence))


def _casts_a_character(system: str) -> bool:
    """True for `You are Captain Ahab`, false for `You are a helpful assistant`."""
    opening = system[:300].lower()
    if not opening.startswith(("you are ", "you play ", "play ", "stay in character")):
        return False
    return not any(word in opening for word in _SERVICE_WORDS)


def _add_structure(request: RequestFeatures, scores: list[float], reasons: list[str]) -> None:
    """Log-odds of facts outside the text; set by hand, and corrected by the drafts' acceptance."""
    if request.has_response_format:
        scores[_INDEX["structured_output"]] += 6.0
        reasons.append("a response format is given")
    elif request.has_tools:
        scores[_INDEX["tool_call"]] += 4.0
        reasons.append("tools are given")
    if request.has_prediction:
        for task, change in PREDICTED.items():
            scores[_INDEX[task]] += change
        reasons.append("the answer is predicted")
    if request.asks_of_pasted_text:
        scores[_INDEX["rag"]] += PASTED
        reasons.append("a long text with a question")
    if request.temperature >= 0.9:
        for task in ("writing", "roleplay"):
            scores[_INDEX[task]] += 0.4
        reasons.append("high temperature")


def _probabilities(scores: Sequence[float]) -> tuple[tuple[str, float], ...]:
    best = max(scores)
    floor = best - MAX_LAG
    likely = [(score, task) for score, task in zip(scores, TASKS, strict=True) if score > floor]
    if len(likely) == 1:
        return ((likely[0][1], 1.0),)
    likely.sort(reverse=True)
    shares = [math.exp(score - best) for score, _ in likely]
    total = sum(shares)
    return tuple([(task, share / total) for (_, task), share in zip(likely, shares, strict=True)])
