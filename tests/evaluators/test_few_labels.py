"""Few labels: paired draws, figures and the interval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from multissl.contract.abilities import HasTargets
from multissl.contract.data import Samples
from multissl.contract.estimate import Estimate
from multissl.contract.learning import Progress
from multissl.evaluators.few_labels import FewLabels, area, linear, score, trees
from tests.evaluators.clusters import START, Clusters, Constant, frozen
from tests.helpers.stubs import Listed


class Quantity(Clusters, HasTargets):
    """The same points; the number to predict is the first coordinate."""

    def targets(self, split: str) -> torch.Tensor:
        samples = self.dataset(split)
        return torch.tensor([samples[i].data[0] for i in range(len(samples))])


def test_the_area_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, scores = rng.random(50) < 0.3, rng.integers(5, size=50).astype(float)  # with ties
    assert area(scores, truth) == pytest.approx(metrics.roc_auc_score(truth, scores))
    values, guess = rng.normal(size=50), rng.normal(size=50)
    assert score(guess, values) == pytest.approx(100 * metrics.r2_score(values, guess))
    classes, soft = rng.integers(3, size=60), rng.dirichlet(np.ones(3), size=60)
    assert score(soft, classes) == pytest.approx(
        100 * metrics.roc_auc_score(classes, soft, multi_class="ovr")
    )


def test_good_features_beat_poor_ones_and_draws_are_paired() -> None:
    pytest.importorskip("sklearn")
    modality = Clusters(Clusters.Config(noise=0.3))
    evaluator = FewLabels(FewLabels.Config(labels=8, draws=3, classical=False))
    good = evaluator.run(frozen(), modality, START)
    assert good == evaluator.run(frozen(), modality, START)
    assert good["score"] > 90
    assert evaluator.run(frozen(Constant()), modality, START)["score"] < 75
    y = np.arange(120) % 4
    first, second = evaluator._draws(y), evaluator._draws(y)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert all(len(set(d)) == 8 and set(y[d]) == {0, 1, 2, 3} for d in first)


def test_every_classical_model_scores_the_queries_by_what_it_learned_of_the_rows() -> None:
    """Of one row a class nothing can be left out, so that each model takes its middle settings and is quick."""
    pytest.importorskip("sklearn")
    x, y = np.array([[-1.0], [0.0], [1.0], [1.1]]), np.array([0, 1, 2, 2])
    queries = np.array([[1.0], [1.05], [-1.0], [0.0], [1.1], [-1.1]])
    for name, fit in {"linear": linear(y), **trees(y)}.items():
        scores = fit(x, y, queries)
        assert scores.shape == (6, 3), name
        if name == "forest":  # leaves of three rows tell nothing of four
            continue
        assert scores[0, 2] > scores[2, 2] or name == "boosting", name


@pytest.mark.slow
def test_classical_models_see_the_same_rows() -> None:
    pytest.importorskip("sklearn")
    modality = Clusters(Clusters.Config(noise=0.3, classes=2))
    evaluator = FewLabels(FewLabels.Config(labels=10, draws=2))
    baselines = evaluator.baselines(modality)
    assert set(baselines) == {"linear", "forest", "boosting"}
    found = evaluator.run(
        frozen(), modality, START
    )  # the encoder is the identity: it equals the linear model
    assert found["score"] == pytest.approx(baselines["linear"])
    assert found["gain"] == pytest.approx(baselines["linear"] - max(baselines.values()))
    gain = found["gain"]
    assert isinstance(gain, Estimate)
    assert gain.n == 2
    assert gain.low <= gain <= gain.high


def test_a_quantity_is_measured_by_r2_and_unlabeled_data_by_nothing() -> None:
    pytest.importorskip("sklearn")
    evaluator = FewLabels(FewLabels.Config(labels=20, draws=2, classical=False))
    assert evaluator.run(frozen(), Quantity(Quantity.Config()), START)["score"] > 99
    assert evaluator.run(frozen(), Clusters(Clusters.Config(labels=False)), START) == {}


def test_fine_tuning_moves_a_copy_only() -> None:
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
    made = frozen(inner)
    before = [p.clone() for p in inner.parameters()]
    modality = Clusters(Clusters.Config(noise=0.1))
    evaluator = FewLabels(
        FewLabels.Config(labels=16, draws=2, classical=False, fine_tune=150, fine_tune_lr=0.03)
    )
    found = evaluator.run(made, modality, START)
    assert found["fine_tuned"] > 95
    assert all(torch.equal(a, b) for a, b in zip(before, inner.parameters(), strict=True))


@pytest.mark.slow
def test_the_gain_over_the_untrained_encoder_is_paired() -> None:
    pytest.importorskip("sklearn")
    modality = Clusters(Clusters.Config(noise=0.3))
    evaluator = FewLabels(FewLabels.Config(labels=20, draws=5, classical=False, metric="accuracy"))
    later = Progress(step=5, total=10)
    assert "over_untrained" not in evaluator.run(frozen(), modality, later)  # nothing to compare with
    start = evaluator.run(frozen(Constant()), modality, START)
    found = evaluator.run(frozen(), modality, later)
    assert found["over_untrained"] == pytest.approx(found["score"] - start["score"])
    assert 10 < found["over_untrained_low"] < found["over_untrained"] < found["over_untrained_high"]
    evaluator.run(frozen(), modality, START)
    same = evaluator.run(frozen(), modality, later)
    assert same["over_untrained_low"] == same["over_untrained_high"] == 0


def test_accuracy_is_the_share_of_right_guesses() -> None:
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    assert score(scores, np.array([0, 1, 0, 0]), "accuracy") == 75.0


def test_limits_are_named() -> None:
    with pytest.raises(ValueError, match="draws=1: want 2 or more"):
        FewLabels.Config(draws=1)


def test_a_class_that_the_scores_lack_is_never_found() -> None:
    """By hand: class 0 is above all others, class 1 above 2 of the 4 others, class 2 is in no column."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.1], [0.1, 0.9], [0.8, 0.9]])
    truth = np.array([0, 1, 2, 2, 0])
    assert score(scores, truth) == pytest.approx(100 * (1 + 0.5 + 0.5) / 3)
    assert score(scores, truth, "accuracy") == pytest.approx(100 * 2 / 5)
    assert score(scores[:, :1], np.array([0, 1, 0, 1, 0])) == 50.0  # of two classes, the second is not there


def test_classes_of_the_split_that_training_lacks_are_named(said: list[str]) -> None:
    pytest.importorskip("sklearn")
    evaluator = FewLabels(FewLabels.Config(labels=8, draws=2, classical=False))
    whole, lacking = Clusters(Clusters.Config()), Lacking(Lacking.Config())
    figures = evaluator.run(frozen(), lacking, START)
    assert figures["score"] < evaluator.run(frozen(), whole, START)["score"] - 10
    assert said == [
        "few_labels: 15 of 60 labeled samples of the val split are of classes that training lacks (3): they count as "
        "not found"
    ]
    lacking.left = 1
    assert FewLabels(FewLabels.Config()).run(frozen(), lacking, START) == {}
    assert said[-1] == "few_labels: 30 labeled samples of the train split have 1 labels, nothing to measure"


class Lacking(Clusters):
    """Points whose training samples are labeled in the first classes alone."""

    left = 3

    def dataset(self, split: str) -> Samples:
        data = super().dataset(split)
        samples = [data[i] for i in range(len(data))]
        known = [s if s.label < self.left else replace(s, label=-1) for s in samples]
        return Listed(known if split == "train" else samples)


def test_ridge_chooses_among_strengths_from_a_hundredth_to_ten_thousand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = pytest.importorskip("sklearn.linear_model")
    seen: list[np.ndarray] = []
    ridge = models.RidgeCV

    def keep(alphas: np.ndarray) -> object:
        seen.append(alphas)
        return ridge(alphas=alphas)

    monkeypatch.setattr(models, "RidgeCV", keep)
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20.0)
    assert linear(y)(x, y, x).shape == (20,)
    (alphas,) = seen
    np.testing.assert_allclose(np.log10(alphas), np.arange(-2, 4.1, 0.5))
