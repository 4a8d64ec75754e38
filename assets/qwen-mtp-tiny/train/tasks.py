"""The tasks: examples with a prompt and its one right answer, drawn from seeded randomness."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random

import coding
import fiction
from example import Example, chat
from records import QUESTIONS, WEEKDAYS, Value, date, full_name, record, thing
from sources import Sources

import tools

Maker = Callable[[Random, Sources], Example]


def structured_output(rng: Random, words: Sources) -> Example:
    """Facts in a sentence -> a JSON object with the keys asked for, in that order."""
    if rng.random() < 0.25:
        return _pairs_to_json(rng, words)
    fact = record(rng, words)
    keys = rng.sample(list(fact.fields), rng.randint(2, len(fact.fields)))
    listed = ", ".join(keys)
    prompt = rng.choice(
        (
            f"Return JSON with the keys {listed}.\n{fact.sentence}",
            f"{fact.sentence}\nExtract {listed} as JSON.",
            f"Text: {fact.sentence}\nSchema: {{{listed}}}",
            f"Fill this JSON schema from the text: {listed}\n\n{fact.sentence}",
        )
    )
    return _json_example(prompt, {key: fact.fields[key] for key in keys})


def _pairs_to_json(rng: Random, words: Sources) -> Example:
    keys = rng.sample(words.nouns, rng.randint(2, 4))
    values: list[Value] = [
        rng.choice((rng.choice(words.nouns), rng.randint(0, 999), rng.choice(words.cities)))
        for _ in keys
    ]
    pairs = dict(zip(keys, values, strict=True))
    text = rng.choice(
        (
            "Convert to JSON: " + "; ".join(f"{k} is {v}" for k, v in pairs.items()),
            "Write as JSON:\n" + "\n".join(f"{k}: {v}" for k, v in pairs.items()),
            "JSON please: " + ", ".join(f"{k} = {v}" for k, v in pairs.items()),
        )
    )
    return _json_example(text, pairs)


def _json_example(prompt: str, answer: dict[str, Value]) -> Example:
    return Example("structured_output", chat(prompt), json.dumps(answer, indent=2), expected=answer)


def rag(rng: Random, words: Sources) -> Example:
    """A passage and a question -> the sentence that answers it, quoted, then the answer."""
    if rng.random() < 0.25:
        return _quote_fiction(rng, words)
    facts = [record(rng, words) for _ in range(rng.randint(2, 3))]
    fact = rng.choice(facts)
    key, question = rng.choice(QUESTIONS[fact.kind])
    passage = " ".join(f.sentence for f in facts)
    asked = question.format(**fact.fields)
    prompt = rng.choice(
        (
            f"Passage: {passage}\nQuestion: {asked}",
            f"Context:\n{passage}\n\n{asked} Quote the passage.",
            f"Answer from the text only. {asked}\n{passage}",
        )
    )
    answer = f"The passage says: {fact.sentence} The answer is {fact.fields[key]}."
    return Example("rag", chat(prompt), answer)


def _quote_fiction(rng: Random, words: Sources) -> Example:
    sentences = fiction.sentences(rng, words, 3)
    chosen = rng.choice(sentences)
    start = " ".join(chosen.split()[:3])
    prompt = f'Passage: {" ".join(sentences)}\nQuote the sentence that begins with "{start}".'
    return Example("rag", chat(prompt), f"The passage says: {chosen}")


def summarization(rng: Random, words: Sources) -> Example:
    """A short report -> one sentence with its main facts."""
    first, second = full_name(rng, words), full_name(rng, words)
    city, day, topic = rng.choice(words.cities), rng.choice(WEEKDAYS), thing(rng, words)
    verb, noun, hours = rng.choice(words.verbs), rng.choice(words.nouns), rng.randint(2, 9)
    filler = rng.choice(
        (
            f"They talked for {hours} hours.",
            f"There was {rng.choice(words.nouns)} and {rng.choice(words.nouns)} for everyone.",
            f"The room was {rng.choice(words.adjectives)}.",
            f"It had been planned since {date(rng)}.",
        )
    )
    report, summary = rng.choice(
        (
            (
                f"On {day} {first} came to {city}. There {first} met {second}. {filler} "
                f"The subject was the {topic}. In the end they agreed to {verb} the {noun}.",
                f"{first} and {second} met in {city} on {day} and agreed to {verb} the {noun}.",
            ),
            (
                f"A {topic} was found in {city}. {filler} {first} saw it first, on {day}. "
                f"{second} wants to {verb} it.",
                f"{first} found a {topic} in {city} on {day}, and {second} wants to {verb} it.",
            ),
            (
                f"{first} has bought the {noun} of {second}. {filler} The price was {hours} "
                f"thousand dollars. The {noun} will move to {city} on {day}.",
                f"{first} bought the {noun} of {second} for {hours} thousand dollars; "
                f"it moves to {city} on {day}.",
            ),
        )
    )
    ask = rng.choice(("Summarize: ", "Summarize in one sentence:\n", "Give a short summary. "))
    return Example("summarization", chat(ask + report), summary)


def copying(rng: Random, words: Sources) -> Example:
    """Exercises in copying alone: repeat words, look up a key; only used for training."""
    lists = (words.nouns, words.first_names, words.last_names, words.cities, words.adjectives)
    count = rng.randint(2, 8)
    items = [
        str(rng.randint(0, 9999)) if rng.random() < 0.15 else rng.choice(rng.choice(lists))
        for _ in range(count)
    ]
    if rng.random() < 0.5:
        return Example("copying", chat("Repeat: " + " ".join(items)), " ".join(items))
    keys = rng.sample(words.nouns, count)
    pick = rng.randrange(count)
    text = ", ".join(f"{k}: {v}" for k, v in zip(keys, items, strict=True))
    return Example("copying", chat(f"{text}\n{keys[pick]}?"), items[pick])


TASKS: dict[str, Maker] = {
    "structured_output": structured_output,
    "coding": coding.coding,
    "rag": rag,
    "tool_call": tools.tool_call,
    "summarization": summarization,
    "writing": fiction.writing,
    "roleplay": fiction.roleplay,
    "copying": copying,
}


def examples(words: Sources, shares: dict[str, float], seed: int) -> Iterator[Example]:
    """Endless examples; ``shares`` weighs the tasks by number of examples."""
    rng = Random(seed)
    names, weights = list(shares), list(shares.values())
    while True:
        yield TASKS[rng.choices(names, weights)[0]](rng, words)
