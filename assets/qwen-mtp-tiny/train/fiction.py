"""Open-ended tasks from public-domain prose and plays: many right continuations for each prompt."""

from __future__ import annotations

import re
from random import Random

from example import Example, chat
from sources import Sources

ANSWER_CHARS = (140, 280)
SENTENCE_END = re.compile(r"(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<=[.!?]) ")


def cut(text: str, low: int, high: int) -> str:
    """The beginning of ``text``: to its last sentence end in low .. high, else to a word end."""
    if len(text) <= high:
        return text
    ends = [m.end() for m in re.finditer(r"[.!?;:]['\"]?(?= )|,(?= )", text[:high])]
    stops = [end for end in ends if end >= low and text[end - 1] != ","]
    return text[: stops[-1]] if stops else text[:high].rsplit(" ", 1)[0]


def writing(rng: Random, words: Sources) -> Example:
    """The beginning of a piece of a novel -> its continuation."""
    pieces = rng.choice(words.paragraphs).split(" ")
    start = rng.randrange(max(1, len(pieces) - 60))
    given = rng.randint(12, 30)
    prompt = " ".join(pieces[start : start + given])
    answer = cut(" ".join(pieces[start + given : start + given + 70]), *ANSWER_CHARS)
    if not answer:
        return writing(rng, words)
    ask = rng.choice(("Continue the story: ", "Go on with this novel:\n", "Write what follows. "))
    return Example("writing", chat(ask + prompt), answer, learn_prompt=True)


def roleplay(rng: Random, words: Sources) -> Example:
    """A character of a play and a line said to it -> the character's reply."""
    speech = rng.choice(words.speeches)
    system = f"You are {speech.speaker} in {speech.play}."
    messages = chat(cut(speech.cue, 60, 200), system)
    answer = cut(speech.reply, *ANSWER_CHARS)
    return Example("roleplay", messages, answer, learn_prompt=True)


def sentences(rng: Random, words: Sources, count: int) -> list[str]:
    """``count`` neighbouring sentences of 30 to 110 characters, no two begin alike."""
    while True:
        parts = SENTENCE_END.split(rng.choice(words.paragraphs))
        parts = [part for part in parts if 30 <= len(part) <= 110 and '"' not in part]
        starts = {" ".join(part.split()[:3]) for part in parts[:count]}
        if len(parts) >= count and len(starts) == count:
            return parts[:count]
