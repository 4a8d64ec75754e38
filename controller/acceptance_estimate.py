"""What counts say of acceptance at each draft position, and how sure that is.

Each level (task, cell, tenant, conversation) is shrunk to the one above. How unsure the
conditionals c_j are is followed through the levels and the positions as their means are: a level
that differs from the one above by a spread of its own, a position that is like the one before it
but for the spread of r, both known better the more own trials there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from trt_mtp.controller.log_odds import odds, shifted
from trt_mtp.controller.position_counts import MEMORY_STEPS, PositionCounts

# SD of the error of log c_2 / c_1 = log r, and of log c_j / c_(j-1) beyond: 55 published series
# have r with an SD of 0.13, part of which is rounding, and are fitted by one r each
RATIO_SPREAD, LATER_SPREAD = 0.12, 0.03
# of the variance of counts, what all positions share: an easy request is easy at each of them. With
# REQUEST_CORRELATION and some 80 steps an answer, 1.6 of 2.6
COMMON = 0.6
PRIOR_TRIALS = 60.0  # that a task's published acceptance is worth

Precisions = tuple[float, ...]  # [MAX_POSITIONS], in trials


@dataclass(frozen=True)
class Estimate:
    """Acceptance as far as some levels know it, and the number of effective steps behind it.

    AL(K) and its standard deviation are worked out when they are asked for.
    """

    conditionals: tuple[float, ...]  # [MAX_POSITIONS]
    weight: float = 0.0
    # of each level from the top, its trials and how many of them outweigh the level above
    levels: tuple[tuple[tuple[float, ...], float], ...] = ()

    @cached_property
    def lengths(self) -> tuple[float, ...]:
        """AL(K) by K."""
        return acceptance_lengths(self.conditionals)

    @cached_property
    def deviations(self) -> tuple[float, ...]:
        """The standard deviations of AL(K) by K."""
        precisions: Precisions = (0.0,) * len(self.conditionals)
        for trials, weight in self.levels:
            precisions = sharpened(precisions, trials, weight)
        return deviations(self.conditionals, precisions)

    def refined(self, counts: PositionCounts, weight: float) -> "Estimate":
        """With a level below: what it counted, shrunk to this by `weight` trials.

        The level's answers are among those of the levels above.
        """
        trials = counts.trials
        return Estimate(
            pooled(counts, self.conditionals, weight),
            trials[0] if trials[0] > self.weight else self.weight,
            (*self.levels, (tuple(trials), weight)),
        )

    def shifted(self, by: float) -> "Estimate":
        """The same with all chances shifted by so many logits."""
        return replace(self, conditionals=shifted(self.conditionals, by)) if by else self


def acceptance_lengths(conditionals: Sequence[float]) -> tuple[float, ...]:
    """AL(0) … AL(MAX_POSITIONS).

    >>> [round(al, 3) for al in acceptance_lengths((0.5, 0.5))]
    [1.0, 1.5, 1.75]
    """
    lengths, survival = [1.0], 1.0
    for conditional in conditionals:
        survival *= conditional
        lengths.append(lengths[-1] + survival)
    return tuple(lengths)


def pooled_first(counts: PositionCounts, parent: float, weight: float) -> float:
    """The first of `pooled`'s conditionals."""
    tried = counts.trials[0]
    return (counts.successes[0] + weight * parent) / (tried + weight) if tried > 0.0 else parent


def pooled(counts: PositionCounts, parent: Sequence[float], weight: float) -> tuple[float, ...]:
    """The conditionals of `counts`, shrunk to `parent`'s.

    A shift that one position shows is expected at the next: that is how answers served at K = 1
    say something of K = 3, until K = 3 has its own counts.
    """
    means, factor = [], 1.0  # of the odds
    for mean, tried, held in zip(parent, counts.trials, counts.successes, strict=True):
        prior = mean if factor == 1.0 else factor * mean / (1 - mean + factor * mean)
        if tried > 0.0:
            prior = (held + weight * prior) / (tried + weight)
            factor = odds(prior) / odds(mean)
        means.append(prior)
    return tuple(means)


def sharpened(precisions: Precisions, trials: Sequence[float], weight: float) -> Precisions:
    """What a level knows that differs from the one above by what `weight` trials would tell.

    That is as much as both tell together, with its own trials.
    """
    above = [1 / (1 / known + 1 / weight) if known else 0.0 for known in precisions]
    return tuple([known + _told(own) for known, own in zip(above, trials, strict=True)])


def _told(trials: float) -> float:
    """How many equal trials tell as much as these, of which the older ones count less.

    (sum of weights)^2 / sum of their squares (Kish, "Survey Sampling", 1965), for exponential ones.
    """
    return trials / (1 - min(trials / MEMORY_STEPS, 1.0) / 2)


def deviations(conditionals: Sequence[float], precisions: Precisions) -> tuple[float, ...]:
    """The standard deviations of AL(0) … AL(MAX_POSITIONS).

    e_j, the error of log c_j, is a share of e_(j-1) and of what c_j has beyond c_(j-1), the smaller
    the more trials position j has, and an error of those trials, of which all positions share a
    part. The variance of AL(K) follows step by step from the covariances of e_j, their sum (the
    error of log S_j) and that of AL(j); the shared part, z, is apart.
    """
    found, survival = [0.0], 1.0
    ee = es = ss = ea = sa = aa = ze = zs = za = 0.0
    for j, (c, known) in enumerate(zip(conditionals, precisions, strict=False)):
        unit = (1 - c) / max(c, 1e-3)  # variance of log c that one trial tells
        spread = RATIO_SPREAD if j == 1 else LATER_SPREAD
        change = spread**2 if j else unit / PRIOR_TRIALS  # of c_j beyond what is before it
        kept = unit / (unit + known * (ee + ze**2 + change)) if known else 1.0
        shown = (1 - kept) ** 2 * unit / known if known else 0.0
        ze = kept * ze + math.sqrt(COMMON * shown)
        ee = kept**2 * (ee + change) + (1 - COMMON) * shown
        es, ss = kept * es + ee, ss + 2 * kept * es + ee
        survival *= c
        ea, sa = kept * ea, sa + kept * ea
        aa += 2 * survival * sa + survival**2 * ss
        ea, sa = ea + survival * es, sa + survival * ss
        zs += ze
        za += survival * zs
        found.append(math.sqrt(max(aa, 0.0) + za**2))
    return tuple(found)
