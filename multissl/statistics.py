"""Intervals and paired tests of figures that are means over samples: pure functions on arrays, without scipy.

Samples of one group (a video's clips, an episode's frames) count together: a mean's error is that of the sums over
groups. Proportions have Wilson's interval (Wilson 1927), over as many samples as the groups are worth. Two figures on
the same samples are compared by their differences: McNemar's exact test (1947) where each sample is right or wrong and
there are no groups, Student's t over groups otherwise.
Shapes: n samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
"""The chance of a wrong "learned" that a verdict allows, and what an interval leaves out."""
Z = 1.959963984540054
"""Of the normal distribution, for two-sided intervals of 95 %."""


class Gain(NamedTuple):
    """The mean difference of two figures on the same samples."""

    mean: float
    low: float
    """Ends of the 95 % interval."""
    high: float
    p: float
    """Of a difference at least as large where there is none; one-sided."""


def beta_tail(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction converges slowly
        return 1 - beta_tail(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / ((1 + term * d) or tiny), (1 + term / c) or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return math.exp(front) * fraction / a


def t_tail(t: float, df: float) -> float:
    """Return the chance that Student's t with df degrees of freedom is t or more."""
    half = beta_tail(df / (df + t * t), df / 2, 0.5) / 2
    return half if t >= 0 else 1 - half


def t_quantile(share: float, df: float) -> float:
    """Return the t below which Student's t lies with this chance, from one half on."""
    return _solved(lambda t: 1 - t_tail(t, df), share)


def _solved(rising: Callable[[float], float], value: float) -> float:
    low, high = 0.0, 1.0
    while rising(high) < value:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2


def sign_tail(wins: int, losses: int) -> float:
    """Return the chance of so many wins or more, where wins and losses are equally likely: the exact sign test."""
    return beta_tail(0.5, wins, losses + 1) if wins else 1.0


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of n samples; both ends lie in 0..1."""
    z2 = Z * Z / n
    center = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(max(share * (1 - share), 0.0) / n + z2 / (4 * n))
    return max(0.0, center - half), min(1.0, center + half)


def group_sums(scores: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the sum of deviations from the mean of scores [n] in each group; each sample is one without groups.

    A sample of group -1 is a group by itself.
    """
    deviations = scores - scores.mean()
    if groups is None:
        return deviations
    own = np.where(groups < 0, groups.max(initial=0) + 1 + np.arange(len(groups)), groups)
    _, places = np.unique(own, return_inverse=True)
    return np.bincount(places, weights=deviations)


def standard_error(scores: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, int]:
    """Return the standard error of the mean of scores [n], and the number of groups; infinite for one group."""
    sums = group_sums(scores, groups)
    count = len(sums)
    if count < 2:
        return math.inf, count
    return math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(scores), count


def share_interval(scores: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """Return the 95 % interval of the mean of scores [n] in 0..1, which are right or wrong or in between."""
    n, mean = len(scores), float(scores.mean())
    if groups is None:
        return wilson(mean, n)
    (error, count), (alone, _) = standard_error(scores, groups), standard_error(scores)
    worth = n * min(1.0, (alone / error) ** 2) if 0 < error < math.inf else count
    return wilson(mean, max(worth, 1.0))


def mean_interval(scores: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """Return the 95 % interval of the mean of scores [n] of any size, by Student's t over groups."""
    error, count = standard_error(scores, groups)
    half = t_quantile(1 - LEVEL / 2, count - 1) * error if count > 1 else math.inf
    mean = float(scores.mean())
    return mean - half, mean + half


def paired_gain(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray | None = None) -> Gain:
    """Return by how much scores [n] are above others of the same samples on average, and whether that may be chance.

    Scores that are right or wrong have two values; their interval counts one more win and one more loss, half each way
    (Agresti and Min 2005), so that it has a width where no sample differs.
    """
    differences = ours - theirs
    mean, n = float(differences.mean()), len(differences)
    values = np.union1d(ours, theirs)
    if groups is None and len(values) <= 2:
        unit = float(np.ptp(values)) or 100.0  # where all are alike, they are percent
        wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
        shifted = (wins - losses) / (n + 2)
        error = math.sqrt((wins + losses + 1) - (wins - losses) ** 2 / (n + 2)) / (n + 2)
        low, high = (unit * (shifted + side * Z * error) for side in (-1, 1))
        return Gain(mean, low, high, sign_tail(wins, losses))
    error, count = standard_error(differences, groups)
    low, high = mean_interval(differences, groups)
    if not 0 < error < math.inf:
        return Gain(mean, low, high, 0.0 if count > 1 and mean > 0 else 1.0)
    return Gain(mean, low, high, t_tail(mean / error, count - 1))


def r2(guess: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the variance of values [Q] that guesses [Q] explain; NaN where there is none."""
    variance = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((guess - truth) ** 2).sum() / variance) if variance > 0 else math.nan
