from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.evaluators.collapse import Collapse, alpha_req, mean_cosine, rankme, spread
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
    assert spread(torch.randn(4000, 16)) == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(10, 4)) == pytest.approx(0, abs=1e-6)


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
    assert not found[0]
    assert found[1].startswith("collapsed at step 10: feature std 0.000")
    assert "RankMe 1.0 of 8" in found[1]


def fine(verdict: tuple[bool, str] | None) -> bool:
    return verdict is not None and verdict[0] and verdict[1].startswith("not collapsed (RankMe")


def test_a_collapse_that_passed_is_forgiven() -> None:
    healthy, constant = figures(Scattered()), figures(Constant())
    history = [{"step": 0.0, **healthy}, {"step": 5.0, **constant}, {"step": 9.0, **healthy}]
    assert fine(Collapse(Collapse.Config()).verdict(history))


def test_an_encoder_that_starts_narrow_is_no_collapse() -> None:
    narrow = {"step": 0.0, "std": 0.05, "rankme": 1.4, "cosine": 0.99, "width": 64.0}
    evaluator = Collapse(Collapse.Config())
    assert fine(evaluator.verdict([narrow]))
    collapsed = evaluator.verdict([narrow, {**narrow, "step": 7.0, "std": 0.02}])
    assert collapsed
    assert not collapsed[0]


def test_features_that_are_no_numbers_are_a_collapse() -> None:
    found = figures(Broken())
    assert math.isnan(found["std"])
    nulls: dict[str, Any] = {k: None if math.isnan(v) else v for k, v in found.items()}  # as in metrics.jsonl
    history = [{"step": 0.0, **figures(Scattered())}, {"step": 3.0, **nulls}]
    verdict = Collapse(Collapse.Config()).verdict(history)
    assert verdict is not None
    assert verdict[1].startswith("collapsed at step 3")


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
