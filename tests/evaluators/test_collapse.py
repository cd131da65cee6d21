from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.estimate import Estimate
from multissl.contract.verdict import Verdict
from multissl.evaluators.collapse import (
    Collapse,
    alpha_req,
    described,
    feature_std,
    jackknifed,
    mean_cosine,
    rankme,
)
from tests.evaluators.clusters import START, Clusters, Constant, frozen


class Scattered(nn.Module):
    """Features that fill 8 dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), 8, generator=torch.Generator().manual_seed(0))


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * math.nan


def figures(inner: nn.Module) -> dict[str, float]:
    return Collapse(Collapse.Config()).run(frozen(inner), Clusters(Clusters.Config()), START)


def test_rankme_counts_directions() -> None:
    assert rankme(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    assert rankme(torch.ones(9, 5)) == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(9, 5)) == pytest.approx(1, rel=1e-4)


def test_spread_is_one_on_the_sphere_and_zero_at_a_point() -> None:
    assert feature_std(torch.randn(4000, 16)) == pytest.approx(1, abs=0.02)
    assert feature_std(torch.ones(10, 4)) == pytest.approx(0, abs=1e-6)


def test_mean_cosine_is_that_of_all_pairs() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    z = F.normalize(x, dim=1)
    pairs = [float(z[i] @ z[j]) for i in range(6) for j in range(6) if i != j]
    assert mean_cosine(x) == pytest.approx(sum(pairs) / 30)


def test_alpha_recovers_a_power_law() -> None:
    q, _ = torch.linalg.qr(torch.cat([torch.ones(400, 1), torch.randn(400, 20)], 1).double())
    x = q[:, 1:] * torch.arange(1, 21).double().pow(-0.75)  # eigenvalues fall as place^-1.5; no mean
    assert alpha_req(x, 1, 20) == pytest.approx(1.5, rel=1e-6)


def test_healthy_features_raise_no_alarm_and_constant_ones_do() -> None:
    healthy, constant = figures(Scattered()), figures(Constant())
    assert healthy["width"] == constant["width"] == 8
    assert healthy["std"] > 0.9
    assert constant["std"] < 0.01
    assert constant["rankme"] < 1.1
    assert constant["cosine"] > 0.99
    evaluator = Collapse(Collapse.Config())
    first = {"step": 0.0, **healthy}
    assert fine(evaluator.verdict([first, {"step": 10.0, **healthy}]))
    found = evaluator.verdict(
        [first, {"step": 5.0, **healthy}, {"step": 10.0, **constant}, {"step": 15.0, **constant}]
    )
    assert found is not None
    assert found.outcome == "collapsed"
    assert found.text.startswith("collapsed at step 10: feature std 0.000")
    assert "RankMe 1.0 of 8" in found.text


def fine(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.text.startswith("cannot be told: not collapsed (RankMe")


@pytest.mark.parametrize("name", ["std", "rankme"])
def test_an_alarm_is_raised_below_its_limit_and_not_at_it(name: str) -> None:
    evaluator = Collapse(Collapse.Config(min_std=0.25, min_rank=2.0))
    healthy = {"step": 0.0, "std": 0.9, "rankme": 90.0, "cosine": 0.1, "width": 100.0}
    limit = {"std": 0.25, "rankme": 3.0}[name]
    assert fine(evaluator.verdict([healthy, {**healthy, name: limit}]))
    assert not fine(evaluator.verdict([healthy, {**healthy, name: math.nextafter(limit, 0)}]))


def test_samples_that_are_all_one_are_collapsed_from_the_start() -> None:
    """Black pictures: the untrained encoder cannot tell them apart either, so nothing relative raises the alarm."""
    black = figures(nn.Sequential(nn.Linear(2, 2, bias=False), Black()))
    found = Collapse(Collapse.Config()).verdict([{"step": 0.0, **black}, {"step": 9.0, **black}])
    assert found is not None
    assert found.outcome == "collapsed"


class Black(nn.Module):
    """Whatever comes, the same."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 64), 0.3)


def test_one_direction_of_many_is_collapsed_and_two_features_may_have_two() -> None:
    evaluator = Collapse(Collapse.Config())
    line = {"step": 0.0, "std": 0.4, "rankme": 1.9, "cosine": 0.5, "width": 64.0}
    found = evaluator.verdict([line])
    assert found is not None
    assert found.outcome == "collapsed"
    assert fine(evaluator.verdict([{**line, "width": 2.0}]))


def test_every_figure_has_an_interval_that_holds_it_and_narrows_with_more_samples() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=draw, dtype=torch.float64) * torch.arange(1.0, 9.0)
    few, many = jackknifed(described, x[:100]), jackknifed(described, x)
    for name, value in few.items():
        more = many[name]
        assert isinstance(value, Estimate)
        assert isinstance(more, Estimate)
        assert (value.n, more.n) == (100, 4000)
        assert value.low < value < value.high
        assert more.high - more.low < 0.5 * (value.high - value.low), name


@pytest.mark.parametrize(("samples", "told"), [(5, False), (19, False), (20, True)])
def test_an_interval_wants_two_samples_for_each_of_its_ten_parts(samples: int, told: bool) -> None:
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for value in jackknifed(described, x).values():
        assert isinstance(value, Estimate)
        assert value.n == samples
        assert math.isfinite(value.low) == math.isfinite(value.high) == told


def test_the_jackknife_of_a_mean_is_the_standard_error_of_the_means_of_its_parts() -> None:
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = jackknifed(lambda x: {"mean": float(x.mean())}, x)["mean"]
    assert isinstance(mean, Estimate)
    half = 2.262157 * float(x.view(200, 10).mean(0).std()) / 10**0.5  # Student's t of 9 degrees of freedom
    assert half == pytest.approx(2 / 2000**0.5, rel=0.5)
    assert (mean.low, mean.high) == pytest.approx((float(x.mean()) - half, float(x.mean()) + half), rel=1e-5)


def test_a_collapse_that_passed_is_forgiven() -> None:
    healthy, constant = figures(Scattered()), figures(Constant())
    history = [{"step": 0.0, **healthy}, {"step": 5.0, **constant}, {"step": 9.0, **healthy}]
    assert fine(Collapse(Collapse.Config()).verdict(history))


def test_an_encoder_that_starts_narrow_is_no_collapse() -> None:
    narrow = {"step": 0.0, "std": 0.05, "rankme": 2.1, "cosine": 0.99, "width": 64.0}
    evaluator = Collapse(Collapse.Config())
    assert fine(evaluator.verdict([narrow]))
    collapsed = evaluator.verdict([narrow, {**narrow, "step": 7.0, "std": 0.02}])
    assert collapsed is not None
    assert collapsed.outcome == "collapsed"


def test_features_that_are_no_numbers_are_a_collapse() -> None:
    found = figures(Broken())
    assert math.isnan(found["std"])
    nulls: dict[str, Any] = {k: None if math.isnan(v) else v for k, v in found.items()}  # as in metrics.jsonl
    history = [{"step": 0.0, **figures(Scattered())}, {"step": 3.0, **nulls}]
    verdict = Collapse(Collapse.Config()).verdict(history)
    assert verdict is not None
    assert verdict.text.startswith("collapsed at step 3")


def test_no_labels_are_needed() -> None:
    modality = Clusters(Clusters.Config(labels=False))
    assert Collapse(Collapse.Config(samples=10)).run(frozen(), modality, START)["width"] == 2


def test_nothing_measured_is_no_verdict() -> None:
    assert Collapse(Collapse.Config()).verdict([]) is None
    assert Collapse(Collapse.Config()).verdict([{"step": 0.0, "top1": 3.0}]) is None


@pytest.mark.parametrize("samples", [-1, 1])
def test_a_sample_count_out_of_range_is_named(samples: int) -> None:
    with pytest.raises(ValueError, match=f"samples={samples}"):
        Collapse.Config(samples=samples)
