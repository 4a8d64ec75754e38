"""Confidence sequences, valid however often one looks, and other statistics of a calibration."""

import math
from collections.abc import Sequence

from trt_mtp.controller.calibration import Interval, Percentiles

ALPHA = 0.05
WIDEST = math.log(10.0)  # what an interval of a logarithm is cut to while it is not finite
SIGNIFICANT_DIGITS = 5
FEWEST_BATCHES = 6  # beyond one for each group: fewer say nothing of how batches differ


def radius(values: Sequence[float], effect: float = 1.0, alpha: float = ALPHA) -> float:
    """Half the width of the confidence sequence for the mean of normal `values`; may be infinite.

    `effect` is how many times larger the mean's variance is than that of independent values.

    The probability that it ever misses the mean, looked at after each value, is at most `alpha`.
    It inverts the t-test's e-process with a standard normal prior on the effect size (Wang and
    Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
    variance", Sequential Analysis 44, 2025; the e-value itself is the Bayes factor of Gönen,
    Johnson, Lu and Westfall, The American Statistician 59, 2005):
    (1 + n)^(-1/2) · ((1 + y) / (1 + y / (1 + n)))^(n/2) = 1/alpha, with y = t² / (n - 1).
    """
    n = len(values)
    if n < 2:
        return math.inf
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    bound = ((n + 1) / alpha**2) ** (1 / n)
    room = 1 - bound / (n + 1)
    if room <= 0:
        return math.inf
    return math.sqrt(effect * variance * (n - 1) * (bound - 1) / room / n)


def ratio_interval(logs: Sequence[float], effect: float = 1.0) -> Interval:
    """The geometric mean behind `logs` with its confidence sequence; finite, so 10-fold at most."""
    mean = math.fsum(logs) / len(logs)
    half = min(radius(logs, effect), WIDEST)
    return interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def design_effect(groups: Sequence[Sequence[Sequence[float]]]) -> float:
    """The factor by which a mean's variance grows because values of a batch vary together.

    `groups` holds the same quantity's values batch by batch. 1 + (m - 1) · rho with m the mean size
    of a batch (Kish, "Survey Sampling", 1965, section 5.4) and rho the intraclass correlation from
    the analysis of variance within all groups; 1 with too few batches to tell.
    """
    between = within = 0.0
    free_between = free_within = num_batches = num_values = 0
    for batches in groups:
        values = [value for batch in batches for value in batch]
        mean = math.fsum(values) / len(values)
        for batch in batches:
            own = math.fsum(batch) / len(batch)
            between += len(batch) * (own - mean) ** 2
            within += math.fsum((value - own) ** 2 for value in batch)
        num_batches, num_values = num_batches + len(batches), num_values + len(values)
        free_between += len(batches) - 1
        free_within += len(values) - len(batches)
    if free_between < FEWEST_BATCHES or free_within < FEWEST_BATCHES or within <= 0:
        return 1.0
    size = num_values / num_batches
    ratio = (between / free_between) / (within / free_within)
    correlation = max(0.0, (ratio - 1) / (ratio + size - 1))
    return 1 + (size - 1) * correlation


def interval(value: float, low: float, high: float) -> Interval:
    """The three, rounded to what can be known."""
    return Interval(rounded(value), rounded(low), rounded(high))


def percentiles_ms(seconds: Sequence[float]) -> Percentiles:
    """p50, p95 and p99 in milliseconds, between neighbors; zeros if there is nothing."""
    if not seconds:
        return Percentiles(0.0, 0.0, 0.0)
    ordered = sorted(seconds)
    return Percentiles(*(rounded(1e3 * quantile(ordered, q)) for q in (0.5, 0.95, 0.99)))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of ascending values, linear between neighbors.

    >>> quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def rounded(value: float) -> float:
    """Five significant digits: files stay small and show no meaningless digits.

    >>> rounded(0.0123456789)
    0.012346
    """
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
