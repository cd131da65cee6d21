"""Errors under corruptions beside a reference's."""

from __future__ import annotations

import pytest

from multissl.evaluators.robustness import STANDARD, mean_corruption_error


def test_errors_are_summed_over_severities_before_they_are_divided() -> None:
    accuracy = {"fog": [0.9, 0.7], "snow": [0.5, 0.5, 0.5]}
    reference = {"fog": [0.4, 0.4, 0.9], "snow": [0.5, 0.25, 0.25], "frost": [1.0, 1.0, 1.0]}
    assert mean_corruption_error(accuracy, reference) == pytest.approx((0.4 / 0.8 + 1.5 / 1.0) / 2)


def test_the_published_figure_has_fifteen_corruptions() -> None:
    assert len({*STANDARD}) == 15
