from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from multissl.evaluators.classified import Task, validation_mask
from multissl.evaluators.linear_probe import fit_logistic
from multissl.evaluators.logistic_regression import PUBLISHED, LogisticRegression, chosen, fitted, models
from tests.evaluators.clusters import START, Clusters, frozen

pytest.importorskip("sklearn")


def regression(**options: Any) -> LogisticRegression:
    quick = {"c": (1e-3, 1e-1, 10.0), "max_iter": 200, "tolerance": 1e-8}
    return LogisticRegression(LogisticRegression.Config(**quick | options))


def task(noise: float = 2.0) -> Task:
    generator = torch.Generator().manual_seed(0)
    y, truth = torch.arange(90) % 3, torch.arange(60) % 3
    centers = torch.randn(3, 5, generator=generator)
    x, queries = (
        centers[labels] + noise * torch.randn(len(labels), 5, generator=generator) for labels in (y, truth)
    )
    return Task(x, y, queries, truth, np.full(60, -1))


def test_the_grid_is_dinov2s() -> None:
    cfg = LogisticRegression.Config()
    assert len(cfg.c) == 45
    np.testing.assert_allclose(cfg.c, 10 ** np.linspace(-6, 5, 45))
    assert cfg.c == PUBLISHED
    assert (cfg.max_iter, cfg.tolerance) == (1000, 1e-12)


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_a_fit_is_that_of_our_own_solver_whose_strength_is_of_the_mean_loss(c: float) -> None:
    x, y, queries, *_ = task()
    (model,) = models(x.double().numpy(), y.numpy(), [c], 1000, 1e-10)
    weight, bias = fit_logistic(x.double(), y, 1 / (c * len(x)), 3, 1000)
    ours = (queries.double() @ weight.T + bias).softmax(1)
    np.testing.assert_allclose(model.predict_proba(queries.double().numpy()), ours, atol=1e-4)


def test_a_fit_that_starts_at_another_ends_where_it_would_alone() -> None:
    x, y = task().x.double().numpy(), task().y.numpy()
    warm = models(x, y, [1e-4, 0.1], 1000, 1e-10)[1]
    (cold,) = models(x, y, [0.1], 1000, 1e-10)
    np.testing.assert_allclose(warm.coef_, cold.coef_, atol=1e-5)


def test_a_tenth_of_training_chooses_and_all_of_it_is_fitted() -> None:
    """By a plain loop, each fit of its own."""
    problem, strengths = task(), (1e-4, 1e-3, 1e-2, 1.0, 100.0)
    x, y, held = problem.x.double().numpy(), problem.y.numpy(), validation_mask(90).numpy()
    scores = {}
    for c in strengths:
        (model,) = models(x[~held], y[~held], [c], 1000, 1e-10)
        scores[c] = float((model.predict(x[held]) == y[held]).mean())
    best = min(c for c in strengths if scores[c] == max(scores.values()))
    assert chosen(x, problem.y, strengths, 1000, 1e-10) == best
    assert min(scores.values()) < max(scores.values())
    result = fitted(problem, strengths, 1000, 1e-10)
    (model,) = models(x, y, [best], 1000, 1e-10)
    hits = model.predict(problem.queries.double().numpy()) == problem.truth.numpy()
    assert (result.c, result.samples) == (best, 90)
    assert result.top1 == pytest.approx(100 * hits.mean())


def test_features_are_as_they_are() -> None:
    """Neither centered nor scaled: another scale is another strength."""
    problem = task()
    large = problem._replace(x=100 * problem.x, queries=100 * problem.queries)
    weak, strong = fitted(problem, (1e-6,)).top1, fitted(large, (1e-6,)).top1
    assert weak != strong


def test_features_that_are_not_finite_give_no_figure() -> None:
    problem = task()
    problem.x[0, 0] = math.nan
    assert math.isnan(fitted(problem, (1.0,)).top1)


def test_clusters_are_told_apart_and_what_was_chosen_is_among_the_figures() -> None:
    modality = Clusters(Clusters.Config())
    evaluator = regression()
    figures = evaluator.run(frozen(), modality, START)
    assert figures["top1"] == 100.0
    assert figures["samples"] == 120
    assert figures["c"] in (1e-3, 1e-1, 10.0)
    assert regression(classical=True).baselines(modality) == {"raw": 100.0, "majority": 25.0}
    assert evaluator.baselines(modality) == {}
    assert evaluator.selected_on == "a tenth of training"
    assert regression(c=(1.0,)).selected_on == "none"
    verdict = evaluator.verdict([{"step": 0, "top1": figures["top1"], "raw": 1.0}, {"step": 1, **figures}])
    assert verdict is not None


def test_too_few_samples_choose_nothing_and_a_single_strength_needs_no_choice(said: list[str]) -> None:
    modality = Clusters(Clusters.Config())
    assert regression(train=9).run(frozen(), modality, START) == {}
    assert "cannot choose among 3 strengths" in said[0]
    assert regression(train=9, c=(1.0,)).run(frozen(), modality, START)["samples"] == 9


@pytest.mark.parametrize(
    ("options", "name"),
    [({"c": ()}, "c"), ({"c": (0.0,)}, "c"), ({"max_iter": 0}, "max_iter"), ({"tolerance": -1.0}, "tolerance"),
     ({"queries": -1}, "queries")],
)  # fmt: skip
def test_options_out_of_range_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        regression(**options)
