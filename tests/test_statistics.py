"""Intervals and paired tests: against scipy where it has a function for it, against many draws where it has none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from multissl.statistics import (
    beta_tail,
    group_sums,
    mean_interval,
    paired_gain,
    share_interval,
    sign_tail,
    standard_error,
    t_quantile,
    t_tail,
    wilson,
)

Z = 1.959963984540054


def test_distributions_are_those_of_scipy() -> None:
    special, stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for x, a, b in zip(
        draw.random(300), draw.random(300) * 400 + 0.1, draw.random(300) * 400 + 0.1, strict=True
    ):
        assert beta_tail(x, a, b) == pytest.approx(special.betainc(a, b, x), abs=1e-11)
    for df in (1, 2, 9, 120, 5000):
        for t in (-3.0, -0.2, 0.0, 0.7, 2.0, 9.0):
            assert t_tail(t, df) == pytest.approx(stats.t.sf(t, df), abs=1e-11)
        assert t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)
    for wins, losses in ((0, 0), (0, 5), (5, 0), (30, 12), (400, 350)):
        p = stats.binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
        assert sign_tail(wins, losses) == pytest.approx(p, rel=1e-9)
    for right, n in ((0, 20), (15, 50), (50, 50)):
        theirs = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_sign_test_by_hand() -> None:
    """Of 5 discordant pairs, 4 or 5 wins: 6 of 32 ways."""
    assert sign_tail(4, 1) == pytest.approx(6 / 32)
    ours, theirs = np.array([100.0] * 6 + [0]), np.array([0.0] * 4 + [100, 100, 100])
    gain = paired_gain(ours, theirs)
    assert gain.p == pytest.approx(6 / 32)
    assert gain.mean == pytest.approx(300 / 7)


def test_the_interval_of_a_difference_is_that_of_agresti_and_min() -> None:
    """Half a count is added to each of the four cells of the table of both figures."""
    wins, losses, n = 12, 5, 40
    ours = np.array([100.0] * wins + [0.0] * losses + [100.0] * (n - wins - losses))
    theirs = np.array([0.0] * wins + [100.0] * losses + [100.0] * (n - wins - losses))
    p12, p21, total = (wins + 0.5) / (n + 2), (losses + 0.5) / (n + 2), n + 2
    half = Z * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / total)
    gain = paired_gain(ours, theirs)
    assert gain.low == pytest.approx(100 * (p12 - p21 - half))
    assert gain.high == pytest.approx(100 * (p12 - p21 + half))


def test_figures_that_agree_on_every_sample_are_not_told_apart_but_have_a_width() -> None:
    scores = 100.0 * (np.arange(10) < 4)
    gain = paired_gain(scores, scores)
    assert (gain.mean, gain.p) == (0, 1)
    assert gain.low < -10 < 10 < gain.high


def test_the_paired_t_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(1)
    ours, theirs = draw.normal(size=30) + 0.3, draw.normal(size=30)
    gain = paired_gain(ours, theirs)
    both = stats.ttest_rel(ours, theirs, alternative="greater")
    assert gain.p == pytest.approx(both.pvalue)
    ends = stats.ttest_rel(ours, theirs).confidence_interval()
    assert (gain.low, gain.high) == pytest.approx((ends.low, ends.high))


def test_equal_groups_are_worth_their_means() -> None:
    draw = np.random.default_rng(2)
    scores, groups = draw.normal(size=(12, 5)) + draw.normal(size=(12, 1)), np.repeat(np.arange(12), 5)
    error, count = standard_error(scores.ravel(), groups)
    assert count == 12
    assert error == pytest.approx(scores.mean(1).std(ddof=1) / math.sqrt(12))
    assert mean_interval(scores.ravel(), groups) == pytest.approx(mean_interval(scores.mean(1)))


def test_samples_without_a_group_are_one_each() -> None:
    scores = np.array([1.0, 2.0, 4.0, 5.0])
    assert len(group_sums(scores, np.array([-1, -1, 0, 0]))) == 3
    assert standard_error(scores, np.full(4, -1)) == pytest.approx(standard_error(scores))
    assert mean_interval(scores, np.zeros(4, int)) == (-math.inf, math.inf)


def test_copies_of_a_sample_do_not_narrow_an_interval() -> None:
    right = np.random.default_rng(3).random(40) < 0.6
    once = share_interval(right.astype(float))
    copies = np.repeat(right, 10).astype(float)
    copied, alone = share_interval(copies, np.repeat(np.arange(40), 10)), share_interval(copies)
    assert copied == pytest.approx(once, abs=0.02)
    assert copied[1] - copied[0] > 2.5 * (alone[1] - alone[0])


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_hold_the_truth_about_as_often_as_they_say(grouped: bool) -> None:
    draw, held = np.random.default_rng(4), 0
    for _ in range(400):
        rate = np.repeat(draw.beta(3, 2, 40), 5) if grouped else np.full(200, 0.6)
        right = (draw.random(200) < rate).astype(float)
        low, high = share_interval(right, np.repeat(np.arange(40), 5) if grouped else None)
        held += low <= 0.6 <= high
    assert 0.92 <= held / 400 <= 0.985
