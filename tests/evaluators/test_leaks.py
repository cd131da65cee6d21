"""The scored split decides the score alone: nothing that an evaluator fits, chooses or draws depends on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl import registry
from multissl.contract.data import Sample
from multissl.contract.evaluator import Evaluator
from multissl.evaluators import (
    corruptions,
    few_labels,
    few_shot,
    knn,
    layer_probe,
    linear_grid,
    linear_probe,
    state_probe,
)
from multissl.evaluators.dense import patch_knn
from multissl.evaluators.probes import trained
from tests.evaluators.clusters import START
from tests.evaluators.every import CASES, Change, Subject

NAMES = sorted(registry.GROUPS["evaluators"])
FITTED = tuple(name for name in NAMES if registry.resolve(name, "evaluators").fits)
"""Those that fit or store something of the train split; the others describe the split alone, and leave no record."""


def labels_permuted(samples: list[Sample]) -> list[Sample]:
    return [replace(s, label=t.label) for s, t in zip(samples, samples[7:] + samples[:7], strict=True)]


def rescaled(samples: list[Sample]) -> list[Sample]:
    return [replace(s, data=3 * s.data + 5) for s in samples]


def permuted(samples: list[Sample]) -> list[Sample]:
    return samples[::-1]


POISONS: dict[str, Change] = {"labels": labels_permuted, "features": rescaled, "order": permuted}


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the functions that fit are given and come to, in order, whoever calls them."""
    seen: list[Any] = []

    def spy(owner: Any, name: str, kept: Callable[..., list[Any]]) -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            seen.append((name, [np.asarray(v) for v in kept(result, *args)]))
            return result

        monkeypatch.setattr(owner, name, call)

    for name in ("solve", "lstsq", "eigh"):
        spy(torch.linalg, name, lambda result, *matrices: list(matrices))
    for solver in (torch.optim.LBFGS, torch.optim.AdamW, torch.optim.SGD):
        spy(
            solver,
            "step",
            lambda result, self, *_: [p.detach().clone() for p in self.param_groups[0]["params"]],
        )
    for fitting in (linear_probe, corruptions):
        spy(fitting, "fit_logistic", lambda result, x, y, l2, *_: [x, y, l2])
    spy(linear_grid, "train_heads", lambda result, x, y, *_: [x, y, *result])
    for owner in (few_shot, knn, patch_knn):
        spy(owner, "nearest", lambda result, bank, queries, k: [bank, k])
    spy(trained, "choose", lambda result, trials, read, rows, labels: [rows, labels, result.trial.lr])
    spy(layer_probe, "choose_block", lambda result, *given: [result])
    if importlib.util.find_spec("sklearn"):
        models = pytest.importorskip("sklearn.linear_model")
        for cls in (models.LogisticRegression, models.RidgeCV):
            spy(cls, "fit", lambda result, self, x, y, *_: [x, y, result.coef_])
        scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler
        spy(scaler, "fit", lambda result, self, x, *_: [x])
    return seen


def assert_fits_without_the_split(evaluator: Callable[[], Evaluator], name: str, record: list[Any]) -> None:
    """Whatever becomes of the split, the record of what is fitted is the same."""
    case, records = CASES[name], []
    for change in (None, *POISONS.values()):
        modality = case.modality()
        if change is not None and isinstance(modality, Subject):
            modality.change = change
        if change is labels_permuted and isinstance(modality, Subject):
            modality.change_states = lambda states: states.roll(7, 0)
        record.clear()
        evaluator().run(case.encoders(), modality, START)
        records.append(list(record))
    assert bool(records[0]) is (name in FITTED)
    for other in records[1:]:
        assert len(other) == len(records[0])
        for (kind, values), (same_kind, same) in zip(other, records[0], strict=True):
            assert kind == same_kind
            assert all(np.array_equal(a, b) for a, b in zip(values, same, strict=True)), kind


def score_of(figures: dict[str, float]) -> float:
    """Return the mean over samples; of groups of one size, the mean over them."""
    groups = [value for name, value in figures.items() if name.startswith("group/")]
    if groups:
        return float(np.mean(groups))
    names = ("top1", "score", "n5", "pixel_accuracy", "rmse", "knn")
    return next(figures[name] for name in names if name in figures)


def assert_scores_each_sample_alone(evaluator: Callable[[], Evaluator], name: str) -> None:
    """The score of a split is that of its two halves together, even where one half is far off."""

    def errors(keep: Callable[[Sample], bool]) -> Tensor:
        modality = CASES[name].modality()
        assert isinstance(modality, Subject)
        modality.change = lambda samples: [
            replace(s, data=40 * s.data + 50) if s.index % 2 else s for s in samples if keep(s)
        ]
        figures = evaluator().run(CASES[name].encoders(), modality, START)
        count = len(modality.dataset("val"))
        if name != "state_probe":
            return torch.tensor([count * score_of(figures) / 100])
        states, names = modality.states("val")
        r2 = torch.tensor([figures[f"r2/{n}"] / 100 for n in names])
        return (1 - r2) * (states - states.mean(0)).square().sum(0)

    whole = errors(lambda s: True)
    halves = errors(lambda s: s.index % 2 == 0) + errors(lambda s: s.index % 2 == 1)
    torch.testing.assert_close(whole, halves, rtol=1e-3, atol=1e-3)


def built(name: str) -> Callable[[], Evaluator]:
    options = {"metric": "accuracy"} if name == "few_labels" else {}
    return lambda: replace(CASES[name], options={**CASES[name].options, **options}).build(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_fitted_knows_nothing_of_the_scored_split(name: str, record: list[Any]) -> None:
    pytest.importorskip(CASES[name].needs)
    assert_fits_without_the_split(built(name), name, record)


@pytest.mark.parametrize("name", FITTED)
def test_no_sample_of_the_split_changes_the_score_of_another(name: str) -> None:
    pytest.importorskip(CASES[name].needs)
    assert_scores_each_sample_alone(built(name), name)


# ------------------------------------------------------------------- planted leaks


def standardized_by_all(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    every = torch.cat([x, *others])
    return tuple((t - every.mean(0)) / every.std(0) for t in (x, *others))


def chosen_on_the_split(
    x: Tensor, y: Tensor, queries: Tensor, truth: Tensor, strengths: tuple[float, ...], *_: Any
) -> float:
    x, queries = linear_probe.standardized(x, queries)
    scores = {}
    for l2 in strengths:
        weight, bias = linear_probe.fit_logistic(x, y, l2, 4)
        scores[l2] = float(((queries @ weight.T + bias).argmax(1) == truth).double().mean())
    best = max(strengths, key=lambda l2: scores[l2])
    linear_probe.fit_logistic(x, y, best, 4)
    return 100 * scores[best]


def state_chosen_on_the_split(
    x: Tensor, y: Tensor, groups: Tensor, queries: Tensor, truth: Tensor, strengths: tuple[float, ...]
) -> Tensor:
    tried = [float(r.mean()) for r in state_probe._r2(x, y, queries, truth, strengths)]
    return state_probe._r2(x, y, queries, truth, [strengths[tried.index(max(tried))]])[0]


def centered_apart(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    normalize = torch.nn.functional.normalize
    return normalize(bank - bank.mean(0), dim=1), normalize(queries - queries.mean(0), dim=1)


def scaled_by_all(y: np.ndarray) -> few_labels.Fit:
    fit = LINEAR(y)

    def leaky(x: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
        every = np.concatenate([x, queries])
        return fit((x - every.mean(0)) / every.std(0), labels, (queries - every.mean(0)) / every.std(0))

    return leaky


LINEAR = few_labels.linear


@pytest.mark.parametrize(
    ("name", "owner", "function", "leak"),
    [
        ("linear_probe", linear_probe, "standardized", standardized_by_all),
        ("linear_probe", linear_probe, "probe_accuracy", chosen_on_the_split),
        ("state_probe", state_probe, "r2_scores", state_chosen_on_the_split),
        ("few_labels", few_labels, "linear", scaled_by_all),
    ],
)
def test_a_planted_leak_turns_the_record_red(
    name: str, owner: Any, function: str, leak: Any, record: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, function, leak)
    with pytest.raises(AssertionError):
        assert_fits_without_the_split(built(name), name, record)


class TrainedOnTheSplit(few_labels.FewLabels):
    def _features(self, featurize: Any, modality: Any, split: str, limit: int, device: Any) -> Any:
        return super()._features(featurize, modality, "val", limit, device)


def test_few_labels_of_the_scored_split_turn_the_record_red(record: list[Any]) -> None:
    options = {**CASES["few_labels"].options, "metric": "accuracy"}
    with pytest.raises(AssertionError):
        assert_fits_without_the_split(
            lambda: TrainedOnTheSplit(TrainedOnTheSplit.Config(**options)), "few_labels", record
        )


def test_queries_centered_by_themselves_turn_the_sum_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "centered", centered_apart)
    with pytest.raises(AssertionError):
        assert_scores_each_sample_alone(built("knn"), "knn")
