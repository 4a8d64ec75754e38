"""What a request is guessed to ask for."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy_fixtures import request
from tools.train_task_model import (
    SOURCES,
    as_json,
    predict,
    read_prompts,
    train,
)
from trt_mtp.controller.task import guess_task
from trt_mtp.controller.tasks import TASKS
from trt_mtp.controller.text_model import (
    MODEL_PATH,
    TextModel,
    Words,
    load_text_model,
    read_words,
)
from trt_mtp.errors import InputError

CLEAR = {
    "Write a Python function that removes duplicates from a list.": "coding",
    "Solve for x: 3x + 7 = 22": "math",
    "Translate to German: where is the station?": "multilingual",
    "Write a short poem about the sea in winter": "writing",
    "Summarize the following article in three sentences: The council met.": "summarization",
    "Pretend you are a pirate and greet me, stay in character.": "roleplay",
    "Extract the name and the date as JSON with the keys name, date": "structured_output",
    "Context: The museum opened in 1923.\n\nQuestion: When did it open?\nAnswer:": "rag",
    "用Python写一个二分查找的函数": "coding",
    "Übersetze diesen Satz ins Englische.": "multilingual",
    "Résume le texte suivant en trois phrases.": "summarization",
    "Escribe un poema sobre el otoño.": "writing",
}


@pytest.mark.parametrize(("text", "task"), CLEAR.items())
def test_clear_requests_are_guessed(text: str, task: str) -> None:
    """A plainly worded request in five languages is what it says."""
    assert guess_task(request(text)).task == task


def test_a_hint_wins() -> None:
    """The client's word is taken, with certainty."""
    guess = guess_task(request("Write a poem", hint_task="math"))
    assert (guess.task, guess.confidence) == ("math", 1.0)


def test_an_unknown_hint_names_the_nearest_task() -> None:
    """A misspelt task is an error that helps."""
    with pytest.raises(InputError, match="did you mean summarization"):
        guess_task(request(hint_task="sumarization"))


def test_structure_outweighs_words() -> None:
    """A response format makes it structured output and tools a tool call, whatever the text."""
    text = "What is the weather in Oslo?"
    assert guess_task(request(text, has_response_format=True)).task == "structured_output"
    assert guess_task(request(text, has_tools=True)).task == "tool_call"


def test_a_predicted_answer_is_no_free_writing() -> None:
    """What repeats a known text is predictable, whatever the text is about."""
    text = "Write the story again, with the name Ada in place of Eve."
    assert guess_task(request(text)).task == "writing"
    assert guess_task(request(text, has_prediction=True)).task not in ("writing", "roleplay")


def test_a_system_prompt_that_casts_a_character_is_roleplay() -> None:
    """`You are Captain Ahab` is a role, `You are a helpful assistant` is none."""
    text = "What say you of the whale?"
    assert guess_task(request(text, system="You are Captain Ahab.")).task == "roleplay"
    plain = guess_task(request("What is 2 + 2 * 7?", system="You are a helpful assistant."))
    assert plain.task == "math"


def test_reasons_name_what_was_seen() -> None:
    """A guess says which words or which structure it rests on."""
    guess = guess_task(request("Translate this: hello", has_tools=True, temperature=1.0))
    assert any("translate" in reason for reason in guess.reasons)
    assert "tools are given" in guess.reasons


def test_only_the_ends_of_a_prompt_are_read() -> None:
    """The middle of a long prompt changes nothing."""
    long = "Summarize this report.\n" + "lorem ipsum " * 100_000
    other = long[:5000] + "def f(): return 1\n" * 1000 + long[5000:]
    a, b = guess_task(request(long)), guess_task(request(other))
    assert a.probabilities == b.probabilities


def test_a_ten_megabyte_prompt_is_read_through_its_window() -> None:
    """Size is no reason to fail."""
    assert guess_task(request("x" * 10_000_000)).task in TASKS


@given(st.text(max_size=300), st.text(max_size=50), st.floats(0, 2))
def test_any_text_gives_probabilities(text: str, system: str, temperature: float) -> None:
    """Whatever is sent, lone surrogates included, the probabilities sum to one, likely first."""
    guess = guess_task(request(text + "\ud800", system=system, temperature=temperature))
    shares = [share for _, share in guess.probabilities]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert {task for task, _ in guess.probabilities} <= set(TASKS)


def test_the_prompts_cover_every_task_language_and_source() -> None:
    """At least 60 prompts per task, by three ways of asking, in five languages."""
    prompts = [p for p in read_prompts() if p.source != "k"]
    for task in TASKS:
        own = [p for p in prompts if p.task == task]
        assert len({p.text for p in own}) >= 60
        assert {p.source for p in own} == set(SOURCES)
        assert {p.language for p in own} == {"en", "zh", "de", "fr", "es"}


def test_training_is_reproducible_and_learns() -> None:
    """The same prompts give the same file; two tasks are told apart."""
    prompts = [p for p in read_prompts() if p.task in ("coding", "writing") and p.source == "a"]
    first, second = train(prompts), train(prompts)
    assert as_json(first) == as_json(second)
    assert json.loads(as_json(first))["tasks"] == list(TASKS)
    guess = predict(first, ["Write a Java function that reverses a string"])[0]
    assert TASKS[int(guess.argmax())] == "coding"


def test_the_model_file_is_for_these_tasks() -> None:
    """The shipped weights fit the code that reads them: a telling word speaks for its task."""
    model = load_text_model(MODEL_PATH)
    score = model.score(read_words("Translate it", "Translate it", 12))
    assert len(model.bias) == len(score.scores) == len(TASKS)
    assert TASKS[score.scores.index(max(score.scores))] == "multilingual"
    assert score.evidence[0] == '"translate"'


@given(st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=6), st.data())
def test_packed_scores_are_the_sums_of_their_weights(
    words: list[bytes], data: st.DataObject
) -> None:
    """Adding all tasks at once gives what adding task by task gives, negative sums included."""
    weight = st.floats(-9, 9).map(lambda w: round(w, 2))
    tasks = list(enumerate(TASKS))
    weights = {
        name: tuple((i, data.draw(weight)) for i, _ in tasks) for name in (b"a", b"b", b"^b")
    }
    scores = TextModel([0.5] * len(TASKS), weights).score(Words(words, words)).scores
    hits = {*words} | {b"^" + word for word in words}
    for i, _ in tasks:
        expected = 0.5 + sum(weights[h][i][1] for h in hits if h in weights)
        assert scores[i] == pytest.approx(expected)


def test_no_text_can_overflow_a_packed_score() -> None:
    """All words of the shipped model together stay within a field's 16 bits."""
    for sign in (1, -1):
        sums = [abs(b) for b in load_text_model().bias]
        for pairs in json.loads(MODEL_PATH.read_text())["weights"].values():
            for task, weight in pairs:
                sums[task] += max(sign * weight, 0.0)
        assert max(sums) * 100 < 2**15
