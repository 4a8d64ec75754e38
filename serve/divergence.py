"""Where two answers that should be equal part."""

from collections.abc import Sequence

NUM_SHOWN = 8  # tokens of each continuation that a divergence shows


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two sequences differ; the shorter's length if one goes on.

    >>> first_difference([7, 8, 9], [7, 8]), first_difference(b"abc", b"axc")
    (2, 1)
    """
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
