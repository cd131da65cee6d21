"""Samples of several classes: average precision beside scikit-learn, and the probes on noise and on what tells."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.contract.data import LabelSets, Samples
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.evaluators.fine_tune import FineTune
from multissl.evaluators.k_means import KMeans
from multissl.evaluators.knn import KNN
from multissl.evaluators.linear_probe import LinearProbe, fit_logistic
from multissl.evaluators.probes.mlp_probe import MLPProbe
from multissl.evaluators.several_classes import average_precisions, have_several, mean_precision
from tests.evaluators.clusters import START, Clusters, Pointwise, frozen
from tests.helpers.stubs import Listed

DRAW = torch.Generator().manual_seed(0)


class Sets(Listed):
    def __init__(self, samples: Any, sets: LabelSets) -> None:
        super().__init__(samples)
        self.sets = sets

    def label_sets(self) -> LabelSets:
        return self.sets


class Quadrants(Clusters):
    """Points with a class for each coordinate above the middle, a class that nobody has, and samples without a word."""

    names = ("right", "up", "nobody")

    def dataset(self, split: str) -> Samples:
        base = super().dataset(split)
        samples = [replace(base[i], label=-1) for i in range(len(base))]
        points = torch.stack([s.data for s in samples])
        has = torch.cat([points > points.median(0).values, torch.zeros(len(points), 1, dtype=torch.bool)], 1)
        return Sets(samples, LabelSets(has, torch.arange(len(samples)) % 7 > 0, self.names))


@pytest.mark.parametrize("levels", [0, 4])
def test_average_precision_is_that_of_scikit_learn_with_and_without_ties(levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores = torch.randn(60, 5, generator=DRAW)
    if levels:
        scores = (scores * levels).round() / levels
    truth = torch.rand(60, 5, generator=DRAW) < torch.tensor([0.5, 0.1, 0.9, 0.02, 0.0])
    truth[7, 3] = True
    found = average_precisions(scores, truth)
    for c in range(4):
        theirs = metrics.average_precision_score(truth[:, c].numpy(), scores[:, c].numpy())
        assert float(found[c]) == pytest.approx(theirs, abs=1e-12)
    assert math.isnan(found[4])
    macro = metrics.average_precision_score(truth[:, :4].numpy(), scores[:, :4].numpy(), average="macro")
    assert mean_precision(scores, truth) == pytest.approx(macro, abs=1e-12)


def test_scores_that_are_not_finite_have_no_precision() -> None:
    scores, truth = torch.zeros(4, 2), torch.ones(4, 2, dtype=torch.bool)
    scores[1, 0] = math.nan
    assert average_precisions(scores, truth).isnan().all()


def test_the_classifier_is_a_logistic_regression_for_each_class() -> None:
    models = pytest.importorskip("sklearn.linear_model")
    x = torch.randn(50, 3, generator=DRAW, dtype=torch.float64)
    y = torch.stack([x[:, 0] + 0.5 * x[:, 1] > 0.2, x[:, 2] > -0.5], 1)
    weight, bias = fit_logistic(x, y, 0.05, 2, max_steps=500)
    for c in range(2):
        theirs = models.LogisticRegression(C=1 / (0.05 * 50), tol=1e-10, max_iter=5000).fit(
            x.numpy(), y[:, c].numpy()
        )
        np.testing.assert_allclose(weight[c].numpy(), theirs.coef_[0], atol=1e-3)
        assert float(bias[c]) == pytest.approx(theirs.intercept_[0], abs=1e-3)


PROBES: list[Evaluator.Config] = [
    LinearProbe.Config(),
    MLPProbe.Config(lr=(0.03,), hidden=16, layers=(1,), steps=100),
]


@pytest.mark.parametrize("cfg", PROBES, ids=["linear", "mlp"])
def test_probes_give_mean_average_precision_beside_how_frequent_classes_are(cfg: Evaluator.Config) -> None:
    modality = Quadrants.Config().build()
    figures: Any = cfg.build().run(frozen(), modality, START)
    assert "top1" not in figures
    assert figures["map"] > 97
    assert figures["map"].n == 2
    assert figures["left_out"] == 1
    baselines = cfg.build().baselines(modality)
    sets = modality.dataset("val").label_sets()
    assert sets is not None
    assert baselines["prevalence"] == pytest.approx(100 * float(sets.has[sets.known][:, :2].double().mean()))
    blind = cfg.build().run(frozen(Blind()), modality, START)
    assert blind["map"] == pytest.approx(baselines["prevalence"], abs=12)
    history = [{"step": 0, **blind, **baselines}, {"step": 9, **figures}]
    verdict = cfg.build().verdict(history)
    assert verdict is not None
    assert "average" in verdict.text or "probe" in verdict.text


class Blind(torch.nn.Module):
    """Features that are noise, the same for the same point."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e4 * x)


def test_fine_tuning_gives_mean_average_precision_over_classes_and_seeds() -> None:
    torch.manual_seed(0)
    encoders = Encoders({"points": Pointwise(torch.nn.Linear(2, 8))})
    modality = Quadrants.Config().build()
    options: dict[str, Any] = {
        "lr": (0.05,),
        "epochs": 4,
        "warmup": 0,
        "batch": 32,
        "seeds": 2,
        "layer_decay": 1.0,
    }
    figures: Any = FineTune.Config(**options).build().run(FrozenEncoders.of(encoders), modality, START)
    assert figures["map"] > 85
    assert (figures["map"].n, figures["over_seeds"].n) == (2, 2)
    assert float(figures["over_seeds"]) == pytest.approx(float(figures["map"]))
    assert figures["left_out"] == 1
    assert [*FineTune.Config().build().baselines(modality)] == ["prevalence"]


def test_protocols_of_one_class_say_who_reads_several(said: list[str]) -> None:
    modality = Quadrants.Config().build()
    for cfg in (KNN.Config(), KMeans.Config()):
        assert cfg.build().run(frozen(), modality, START) == {}
    assert len(said) == 2
    assert all("have several classes each, which linear_probe, mlp_probe" in line for line in said)


def test_splits_of_unlike_classes_are_refused() -> None:
    class Unlike(Quadrants):
        def dataset(self, split: str) -> Samples:
            made = super().dataset(split)
            assert isinstance(made, Sets)
            if split == "val":
                made.sets = made.sets._replace(names=("right", "down", "nobody"))
            return made

    with pytest.raises(ValueError, match="train, val do not list the same classes"):
        have_several(Unlike.Config().build(), "train", "val")
    with pytest.raises(ValueError, match="by_group=True"):
        LinearProbe.Config(by_group=True).build().run(frozen(), Quadrants.Config().build(), START)
