"""How likely an answer's tokens were: log probabilities from the logits they were drawn from.

They are those at temperature 1, after penalties, of the tokens that may come at a place: one that
a grammar, or min_tokens, rules out has none. Logits are the same at every draft length, and so are
these.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]  # as in kernels.py, which needs numba: a gateway imports this


class TokenLogprob(NamedTuple):
    """A token's own bytes, which may be a part of a character, and its log probability."""

    text: bytes
    logprob: float

    def to_json(self) -> dict[str, Any]:
        """As OpenAI has it."""
        shown = self.text.decode(errors="replace")
        return {"token": shown, "logprob": self.logprob, "bytes": list(self.text)}


class PlaceLogprobs(NamedTuple):
    """The token at one place of an answer, and the most likely ones there, the first one first."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...]

    def to_json(self) -> dict[str, Any]:
        """As OpenAI has it."""
        return {**self.token.to_json(), "top_logprobs": [each.to_json() for each in self.top]}


def place_logprobs(
    logits: Array, token: int, num_top: int, token_bytes: Callable[[int], bytes]
) -> PlaceLogprobs:
    """What the logits [V] of a place say of the token that was drawn, and of the `num_top` best.

    Fewer than `num_top` where fewer may come; equal ones are told by ascending id.
    """
    row = logits.astype(np.float64)
    top = row.max()
    total = top + np.log(np.exp(row - top).sum())

    def one(index: int) -> TokenLogprob:
        return TokenLogprob(token_bytes(index), float(row[index] - total))

    return PlaceLogprobs(one(token), tuple(one(index) for index in _best(row, num_top)))


def _best(row: Any, count: int) -> Sequence[int]:
    """The indices of the largest finite values, descending."""
    count = min(count, row.shape[0])
    if not count:
        return ()
    limit = np.partition(row, -count)[-count]
    found = np.nonzero(row >= limit)[0]
    order: list[int] = found[np.argsort(-row[found], kind="stable")][:count].tolist()
    return [index for index in order if np.isfinite(row[index])]
