"""Batches: one example a row, padded on the right, rows of similar length together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from example import Example
from sources import Sources
from tasks import examples
from tokenizer import END_OF_TEXT, SPECIAL, TURN_END, render
from tokenizers import Tokenizer
from torch import Tensor

LOOP_SHARE = 0.35  # of the prose examples
LOOP_TOKENS = 48


class Row(NamedTuple):
    """An example as tokens: ids, where the answer begins, and per token whether it is learned."""

    ids: list[int]
    begin: int
    learned: list[bool]


class Batch:
    """Token ids [B, T] and where a loss is taken.

    learned [B, T] bool: tokens to predict; learn [B, T] bool: positions before those;
    starts [B, A]: positions from which drafts are learned.
    """

    def __init__(self, rows: list[Row], pad: int) -> None:
        longest = max(len(row.ids) for row in rows)
        answer = max(len(row.ids) - row.begin for row in rows)
        self.ids = torch.full((len(rows), longest), pad)
        self.learned = torch.zeros(len(rows), longest, dtype=torch.bool)
        self.starts = torch.zeros(len(rows), answer, dtype=torch.long)
        for number, row in enumerate(rows):
            self.ids[number, : len(row.ids)] = torch.tensor(row.ids)
            self.learned[number, : len(row.ids)] = torch.tensor(row.learned)
            start = torch.arange(row.begin - 1, row.begin - 1 + answer)
            self.starts[number] = start.clamp(max=longest - 1)
        self.learn = F.pad(self.learned[:, 1:], (0, 1))

    def targets(self, depth: int) -> tuple[Tensor, Tensor]:
        """Tokens that draft step ``depth`` should give at ``starts``, and which are learned."""
        position = self.starts + depth + 1
        inside = position < self.ids.shape[1]
        position = position.clamp(max=self.ids.shape[1] - 1)
        return self.ids.gather(1, position), self.learned.gather(1, position) & inside


def encode(tokenizer: Tokenizer, example: Example, rng: Random) -> Row:
    """Tokens of an example; some prose gets a loop that has to be left."""
    prompt = tokenizer.encode(render(example)).ids
    answer = tokenizer.encode(example.answer + TURN_END).ids
    row = Row(
        prompt + answer,
        len(prompt),
        [False] + [example.learn_prompt] * (len(prompt) - 1) + [True] * len(answer),
    )
    return with_loop(row, rng) if example.learn_prompt and rng.random() < LOOP_SHARE else row


def with_loop(row: Row, rng: Random) -> Row:
    """Repeat a piece of the answer a few times; only what follows the repetition is learned.

    A small model that has learned to copy falls into loops; this shows it the way out.
    """
    size = rng.randint(2, 16)
    end = rng.randint(min(row.begin + size, len(row.ids) - 1), len(row.ids) - 1)
    piece = row.ids[max(row.begin, end - size) : end]
    copies = piece * rng.randint(1, max(1, LOOP_TOKENS // max(1, len(piece)) - 1))
    ids = row.ids[:end] + copies + row.ids[end:]
    return Row(ids, row.begin, row.learned[:end] + [False] * len(copies) + row.learned[end:])


def batches(
    tokenizer: Tokenizer, words: Sources, shares: dict[str, float], seed: int, tokens: int
) -> Iterator[Batch]:
    """Endless batches of about ``tokens`` tokens, padding included."""
    pad = SPECIAL.index(END_OF_TEXT)
    stream = examples(words, shares, seed)
    rng = Random(seed)
    while True:
        rows = [encode(tokenizer, example, rng) for example in islice(stream, 1024)]
        rows.sort(key=lambda row: len(row.ids) + rng.uniform(0, 8))
        cut: list[Batch] = []
        begin = 0
        while begin < len(rows):
            end = begin + 1
            while end < len(rows) and (end + 1 - begin) * len(rows[end].ids) <= tokens:
                end += 1
            cut.append(Batch(rows[begin:end], pad))
            begin = end
        rng.shuffle(cut)
        yield from cut
