from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Samples
from multissl.contract.estimate import estimate
from multissl.evaluators.linear_probe import (
    LinearProbe,
    choose_l2,
    fit_logistic,
    narrowed,
    probe_accuracy,
    scaled,
    standardized,
)
from tests.evaluators.clusters import START, Clusters, frozen
from tests.helpers.stubs import Listed


def problem(samples: int = 120, width: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    y = torch.arange(samples) % classes
    return centers[y] + torch.randn(samples, width, generator=generator, dtype=torch.float64), y


def test_the_fit_is_a_minimum() -> None:
    x, y = problem()
    weight, bias = (t.requires_grad_() for t in fit_logistic(x, y, 0.01, 3))
    loss = F.cross_entropy(x @ weight.T + bias, y) + 0.005 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, [weight, bias]):
        assert gradient.abs().max() < 1e-5


@pytest.mark.reference
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_fit_is_that_of_scikit_learn(l2: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = problem()
    theirs = linear.LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
    weight, bias = fit_logistic(x, y, l2, 3)
    torch.testing.assert_close(weight, torch.from_numpy(theirs.coef_), rtol=1e-3, atol=1e-4)
    bias = bias - bias.mean()  # the intercepts are free up to a common number
    expected = torch.from_numpy(theirs.intercept_ - theirs.intercept_.mean())
    torch.testing.assert_close(bias, expected, rtol=1e-3, atol=1e-4)


def test_a_warm_start_ends_at_the_same_point() -> None:
    x, y = problem()
    cold = fit_logistic(x, y, 0.01, 3)
    warm = fit_logistic(x, y, 0.01, 3, start=fit_logistic(x, y, 1.0, 3))
    torch.testing.assert_close(warm[0], cold[0], rtol=1e-3, atol=1e-4)


def test_standardizing_uses_the_training_statistics_and_drops_constants() -> None:
    x, other = torch.randn(50, 3) * 4 + 2, torch.randn(9, 3)
    x[:, 1] = 1e3
    a, b = standardized(x, other)
    torch.testing.assert_close(a[:, 0].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(a[:, 0].std(correction=0), torch.tensor(1.0))
    assert not a[:, 1].any()
    assert not b[:, 1].any()
    torch.testing.assert_close(b[:, 2], (other[:, 2] - x[:, 2].mean()) / x[:, 2].std(correction=0))


def test_the_strength_is_the_best_and_of_equals_the_strongest() -> None:
    y = (torch.arange(200) % 3 == 0).long()  # two thirds of one class, which is all that l2 = 100 leaves
    x = torch.randn(200, 4) + 20.0 * y[:, None]
    assert choose_l2(x, y, (1e-3, 100.0), 2) == 1e-3
    assert choose_l2(x, y, (1e-3, 1e-2), 2) == 1e-2


class Sparse(Clusters):
    """Points of which the first few of training alone are labeled."""

    kept = 6

    def dataset(self, split: str) -> Samples:
        data = super().dataset(split)
        samples = [data[i] for i in range(len(data))]
        few = [s if s.index < self.kept else replace(s, label=-1) for s in samples]
        return Listed(few if split == "train" else samples)


def test_too_few_samples_to_choose_a_strength_take_the_middle_one(said: list[str]) -> None:
    x, y = problem(samples=6)
    assert choose_l2(x, y, (1.0, 0.1, 10.0), 3) == 1.0
    assert probe_accuracy(x, y, x, y, (1e-3,)) == 100.0  # one strength needs no choice
    modality = Sparse(Sparse.Config())
    figures = LinearProbe(LinearProbe.Config()).run(frozen(), modality, START)
    assert figures == LinearProbe(LinearProbe.Config(l2=(1e-2,))).run(frozen(), modality, START)
    assert figures["top1"] > 90
    assert said == [
        "linear_probe: 6 labeled training samples cannot choose among 5 strengths (want 10 or more): the middle one, "
        "0.01, is taken; --l2 gives one"
    ]


def test_training_labels_of_one_class_measure_nothing(said: list[str]) -> None:
    modality = Sparse(Sparse.Config())
    modality.kept = 1
    assert LinearProbe(LinearProbe.Config()).run(frozen(), modality, START) == {}
    assert said == [
        "linear_probe: 1 labeled training samples of 1 classes and 60 of the split, nothing to measure"
    ]


def test_a_class_that_training_lacks_is_not_found_and_changes_no_fit(said: list[str]) -> None:
    """By hand: two clear classes in training, of four samples one of a third class."""
    x = torch.tensor([[-1.0], [-1.1], [1.0], [1.1]] * 4)
    y, truth = torch.tensor([0, 0, 1, 1] * 4), torch.tensor([0, 1, 2, 1])
    queries = torch.tensor([[-1.0], [1.0], [0.9], [1.2]])
    assert probe_accuracy(x, y, queries, truth, (1e-3, 1.0)) == 75.0
    modality = Sparse(Sparse.Config())
    modality.kept = 3
    assert LinearProbe(LinearProbe.Config(l2=(1e-2,))).run(frozen(), modality, START)["top1"] <= 75
    assert said == [
        "linear_probe: 15 of 60 labeled samples of the val split are of classes that training lacks (3): they count as "
        "not found"
    ]


def test_clear_clusters_are_told_apart_the_same_way_twice() -> None:
    evaluator, modality = LinearProbe(LinearProbe.Config()), Clusters(Clusters.Config(noise=0.5))
    first = evaluator.run(frozen(), modality, START)
    assert first == evaluator.run(frozen(), modality, START)
    assert 60 < first["top1"] < 100
    blind = nn.Linear(2, 3)
    nn.init.zeros_(blind.weight)
    assert evaluator.run(frozen(blind), modality, START)["top1"] == 25.0  # four classes of equal size


def test_baselines_are_fitted_on_request_by_the_same_function() -> None:
    modality = Clusters(Clusters.Config(noise=0.5))
    assert LinearProbe(LinearProbe.Config(classical=False)).baselines(modality) == {}
    asked = LinearProbe(LinearProbe.Config())
    baselines = asked.baselines(modality)
    assert baselines["raw"] == pytest.approx(asked.run(frozen(), modality, START)["top1"], abs=5)
    assert baselines["majority"] == 25.0


def test_classical_features_keep_their_proportions_and_wide_ones_become_components() -> None:
    x = torch.randn(50, 3) * torch.tensor([9.0, 1.0, 0.1]) + 4
    a, b = scaled(x, x[:5])
    assert a.square().mean() == pytest.approx(1)
    torch.testing.assert_close(a.std(0) / a.std(0)[1], x.std(0) / x.std(0)[1])
    torch.testing.assert_close(a[:5], b)
    wide = torch.randn(40, 6) @ torch.randn(6, 200)
    left, right = narrowed(wide, wide[:9], 100, 20)
    assert left.shape == (40, 20)
    torch.testing.assert_close(left[:9], right, rtol=1e-4, atol=1e-4)
    centered = wide - wide.mean(0)
    torch.testing.assert_close(left @ left.T, centered @ centered.T, rtol=1e-3, atol=1e-2)


def test_features_up_to_the_widest_stay_as_they_are() -> None:
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    for widest, width in ((13, 12), (12, 12), (11, 4)):
        left, right = narrowed(x, x[:5], widest, 4)
        assert left.shape == (30, width)
        assert torch.equal(left, x) == torch.equal(right, x[:5]) == (width == 12)


@pytest.mark.parametrize(("classes", "measured"), [(1, False), (2, True), (3, True)])
def test_two_classes_are_enough_to_measure(classes: int, measured: bool, said: list[str]) -> None:
    modality = Clusters(Clusters.Config(classes=classes))
    figures = LinearProbe(LinearProbe.Config()).run(frozen(), modality, START)
    assert (figures.keys() == {"top1"}) == measured
    assert said == [
        "linear_probe: 120 labeled training samples of 1 classes and 60 of the split, nothing to measure"
    ] * (not measured)


def test_data_without_labels_gives_no_figure() -> None:
    evaluator = LinearProbe(LinearProbe.Config(classical=True))
    modality = Clusters(Clusters.Config(labels=False))
    assert evaluator.run(frozen(), modality, START) == {}
    assert evaluator.baselines(modality) == {}


def test_the_verdict_compares_with_the_untrained_encoder() -> None:
    untrained, trained = estimate(100.0 * (np.arange(100) < 40)), estimate(100.0 * (np.arange(100) < 60))
    verdict = LinearProbe(LinearProbe.Config()).verdict([{"top1": untrained}, {"top1": trained}])
    assert verdict is not None
    assert verdict.outcome == "learned"
    assert verdict.text == (
        "learned: linear probe 60.0 % (n=100, 50.2 to 69.1) beats the untrained encoder's 40.0 %"
    )


@pytest.mark.parametrize("options", [{"l2": ()}, {"l2": (-1.0,)}, {"train": -1}, {"max_steps": 0}])
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        LinearProbe.Config(**options)


def test_groups_left_out_in_turn_choose_the_strength() -> None:
    """Features that tell each group apart fit the labels of known groups without a penalty, and mislead on new ones."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(40).repeat_interleave(10)
    y = (torch.randint(0, 3, (40,), generator=generator) == 0).long()[groups]  # a third, alike within a group
    x = torch.randn(40, 60, generator=generator, dtype=torch.float64)[groups]
    assert choose_l2(x, y, (1e-4, 100.0), 2) == 1e-4
    assert choose_l2(x, y, (1e-4, 100.0), 2, groups=groups) == 100.0


def test_ten_samples_choose_a_strength_and_nine_take_the_middle_one() -> None:
    strengths = (1e-4, 1e-2, 1.0)
    y = torch.arange(10) % 2
    x = torch.stack([y * 2.0 - 1, torch.ones(10)], 1).double()
    assert choose_l2(x[:9], y[:9], strengths, 2) == 1e-2
    assert choose_l2(x, y, strengths, 2) == 1.0  # all are right: the strongest of equals


def test_by_group_needs_groups() -> None:
    evaluator = LinearProbe(LinearProbe.Config(by_group=True))
    with pytest.raises(ValueError, match="by_group=True: the training samples are of fewer than 2 groups"):
        evaluator.run(frozen(), Clusters(Clusters.Config()), START)
