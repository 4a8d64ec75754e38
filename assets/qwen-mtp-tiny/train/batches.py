"""Batches: one example a row, padded on the right, rows of similar length together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random

import torch
from example import Example
from sources import Sources
from tasks import examples
from tokenizer import END_OF_TEXT, SPECIAL, TURN_END, render
from tokenizers import Tokenizer
from torch import Tensor


class Batch:
    """Token ids [B, T] and where a loss is taken.

    learn [B, T] bool: positions whose next token is learned;
    starts [B, A]: positions from which drafts are learned; last [B]: each row's last token.
    """

    def __init__(self, rows: list[tuple[list[int], int, bool]], pad: int) -> None:
        longest = max(len(ids) for ids, _, _ in rows)
        answer = max(len(ids) - begin for ids, begin, _ in rows)
        self.ids = torch.full((len(rows), longest), pad)
        self.learn = torch.zeros(len(rows), longest, dtype=torch.bool)
        self.starts = torch.zeros(len(rows), answer, dtype=torch.long)
        self.last = torch.tensor([len(ids) - 1 for ids, _, _ in rows])
        for row, (ids, begin, all_of_it) in enumerate(rows):
            self.ids[row, : len(ids)] = torch.tensor(ids)
            self.learn[row, 0 if all_of_it else begin - 1 : len(ids) - 1] = True
            self.starts[row] = torch.arange(begin - 1, begin - 1 + answer).clamp(max=longest - 1)

    def targets(self, depth: int) -> tuple[Tensor, Tensor]:
        """Tokens that draft step ``depth`` should give at ``starts``, and which of them exist."""
        position = self.starts + depth + 1
        exists = position <= self.last[:, None]
        return self.ids.gather(1, position.clamp(max=self.ids.shape[1] - 1)), exists


def encode(tokenizer: Tokenizer, example: Example) -> tuple[list[int], int, bool]:
    """Token ids of prompt and answer, where the answer begins, whether the prompt is learned."""
    prompt = tokenizer.encode(render(example)).ids
    answer = tokenizer.encode(example.answer + TURN_END).ids
    return prompt + answer, len(prompt), example.learn_prompt


def batches(
    tokenizer: Tokenizer, words: Sources, shares: dict[str, float], seed: int, tokens: int
) -> Iterator[Batch]:
    """Endless batches of about ``tokens`` tokens, padding included."""
    pad = SPECIAL.index(END_OF_TEXT)
    stream = examples(words, shares, seed)
    rng = Random(seed)
    while True:
        rows = [encode(tokenizer, example) for example in islice(stream, 1024)]
        rows.sort(key=lambda row: len(row[0]) + rng.uniform(0, 8))
        cut: list[Batch] = []
        begin = 0
        while begin < len(rows):
            end = begin + 1
            while end < len(rows) and (end + 1 - begin) * len(rows[end][0]) <= tokens:
                end += 1
            cut.append(Batch(rows[begin:end], pad))
            begin = end
        rng.shuffle(cut)
        yield from cut
