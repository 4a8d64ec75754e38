"""One training or evaluation example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """A conversation and the answer that ends it.

    ``expected`` is what an evaluation compares with, where that isn't the answer's text;
    ``learn_prompt`` says that the prompt is prose worth learning, too.
    """

    task: str
    messages: list[Message]
    answer: str
    tools: list[dict[str, Any]] | None = None
    expected: Any = None
    learn_prompt: bool = False


def chat(user: str, system: str | None = None) -> list[Message]:
    """A conversation of one question."""
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": user}]
