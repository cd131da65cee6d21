from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from multissl.contract.estimate import Estimate, described, estimate, restored


def known(value: float) -> Estimate:
    assert isinstance(value, Estimate)
    return value


def test_an_estimate_is_a_number_with_an_interval() -> None:
    figure = known(estimate(np.array([100.0, 0, 100, 100])))
    assert figure == 75
    assert json.dumps({"top1": figure}) == '{"top1": 75.0}'
    assert figure.n == 4
    assert 0 < figure.low < 75 < figure.high < 100
    assert described(figure) == "75 (30.1 to 95.4, n=4)"
    assert described(75.0) == "75"


def test_scores_that_are_not_finite_are_no_figure() -> None:
    assert math.isnan(estimate(np.array([1.0, math.nan])))
    assert math.isnan(estimate(np.array([])))


@pytest.mark.parametrize(
    "scores", [100.0 * (np.arange(19) % 3 == 0), np.linspace(-3, 40, 19), np.full(19, 25.0), np.zeros(19)]
)
@pytest.mark.parametrize("groups", [None, np.arange(19) // 4])
def test_the_record_gives_back_what_it_took(scores: np.ndarray, groups: np.ndarray | None) -> None:
    figure = known(estimate(scores, groups, percent=False))
    back = restored(float(figure), json.loads(json.dumps(figure.to_json(with_scores=True))))
    assert back == figure
    assert (back.n, back.low, back.high) == (figure.n, figure.low, figure.high)
    assert back.scores is not None
    assert figure.scores is not None
    assert np.array_equal(back.scores, figure.scores)
    if groups is None:
        assert back.groups is None
    else:
        assert back.groups is not None
        assert np.array_equal(back.groups, groups)
    bare = restored(float(figure), figure.to_json(with_scores=False))
    assert bare.scores is None
    assert bare.n == 19


def test_right_and_wrong_take_a_bit_each() -> None:
    figure = known(estimate(100.0 * (np.arange(4000) % 2)))
    assert len(figure.to_json(with_scores=True)["scores"]) < 700


def test_an_interval_without_ends_is_written_and_read() -> None:
    one = known(estimate(np.array([3.0]), percent=False))
    assert (one.low, one.high) == (-math.inf, math.inf)
    back = restored(3.0, json.loads(json.dumps(one.to_json(with_scores=True))))
    assert math.isnan(back.low)
    assert described(back) == "3 (n=1)"


def test_it_survives_a_pickle() -> None:
    figure = known(estimate(np.array([100.0, 0]), np.array([0, 1])))
    back = pickle.loads(pickle.dumps(figure))
    assert (back, back.n, back.low, back.high) == (figure, figure.n, figure.low, figure.high)
    assert back.scores is not None
    assert back.scores.tolist() == [100, 0]
