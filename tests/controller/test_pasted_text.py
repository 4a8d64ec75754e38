"""Questions of text that is pasted into a prompt, which is what retrieval sends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.json_request import features_from_json
from trt_mtp.controller.pasted_text import asks_of_pasted_text
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.task import guess_task

PROSE = "The lighthouse was built of granite, and its keeper wrote down each ship that passed. "
QUESTION = "How many ships passed in the second winter?"
CODE = "def total(rows):\n    return {key: sum(row[key] for row in rows) for key in rows[0]}\n"
SIZES = (20, 1_000)


def in_messages(*turns: str) -> RequestFeatures:
    return features_from_json({"messages": [{"role": "user", "content": turn} for turn in turns]})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_question_of_pasted_prose_is_retrieval(size: int, is_first: bool) -> None:
    """Whether the question comes before the text or after it, and however long that is."""
    parts = [QUESTION, PROSE * size] if is_first else [PROSE * size, QUESTION]
    features = in_messages("\n\n".join(parts))
    assert features.asks_of_pasted_text
    guess = guess_task(features)
    assert guess.task == "rag"
    assert "a long text with a question" in guess.reasons


def test_what_is_no_question_of_pasted_prose() -> None:
    """A short question, a long text without one, code with one, and many short turns."""
    assert not in_messages(QUESTION).asks_of_pasted_text
    assert not in_messages("Summarize this.\n" + PROSE * 20).asks_of_pasted_text
    code = in_messages(CODE * 20 + "\nWhy does this raise a KeyError?")
    assert not code.asks_of_pasted_text
    assert guess_task(code).task == "coding"
    assert not in_messages(*[QUESTION] * 60).asks_of_pasted_text


@given(st.text(max_size=1_200), st.text(max_size=1_200))
def test_short_turns_never_do(head: str, tail: str) -> None:
    """Nothing of 1,200 characters or less is taken for a question of a text."""
    assert not asks_of_pasted_text(head, tail, min(len(head), len(tail)))
