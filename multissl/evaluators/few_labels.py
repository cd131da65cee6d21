"""What pretraining is worth with few labels, beside models that never saw the unlabeled rows.

A number of training samples is drawn, as many draws as asked, classes in proportion (at least one each); on every
draw the same samples go to a linear model on frozen features (logistic, or ridge where the label is a quantity), to
the encoder fine-tuned if asked, and to logistic regression or ridge, a random forest and gradient boosting on the
raw features. All are tuned on the draw by cross-validation over small grids, classifiers by their log loss: accuracy on
a few rows is too coarse to choose by. Figures are percent: area under the curve for two classes (one against the rest,
averaged, for more) or accuracy, R2 for a quantity. The draws, which are the n of all figures, are paired: `gain` is the
mean difference to the classical model that is best on average, `over_untrained` that to the encoder as it was at step
0, each with its 95 % interval by Student's t over draws.
Shapes: S samples of a split, Q queries, F features, n labels, K draws.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from multissl import registry
from multissl.contract.abilities import HasTargets
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.finite import NotFinite
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.unseen import unseen_classes
from multissl.inference import (
    Pooled,
    clean_views,
    drawn,
    featurize_places,
    pooled,
    stream_of,
)
from multissl.statistics import r2

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From labeled features [n, F], labels [n] and queries [Q, F] to scores [Q, C] or values [Q]."""


class FewLabels(Evaluator):
    """Linear and fine-tuned figures at few labels, beside classical models on the same rows."""

    reads = "pooled"
    fits = True
    titles: ClassVar[dict[str, str]] = {
        "score": "frozen, few labels, %",
        "gain": "gain over the best classical",
        "over_untrained": "few labels, gain over the untrained encoder",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the evaluation with few labels."""

        labels: int = 100
        """Labeled training samples of a draw."""
        draws: int = 5
        """Times they are drawn; 20 for a narrow interval."""
        split: str = "val"
        """Where the figures are measured."""
        pool: int = 20_000
        """Training samples that draws come from, themselves drawn with a fixed seed; 0: all."""
        queries: int = 5_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        metric: Literal["area", "accuracy"] = "area"
        """How classes are scored; a quantity has R2."""
        classical: bool = True
        """Fit the classical models, which takes most of the time."""
        with_raw: bool = False
        """Put the raw features beside the frozen ones in the linear model."""
        fine_tune: int = 0
        """Steps of fine-tuning the encoder on each draw; 0: none."""
        fine_tune_lr: float = 3e-4
        """Learning rate of fine-tuning, more than 0."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            least = {"labels": 4, "draws": 2, "pool": 0, "queries": 0, "fine_tune": 0}
            for name, low in least.items():
                if getattr(self, name) < low:
                    raise ValueError(f"{name}={getattr(self, name)}: want {low} or more")
            if not self.fine_tune_lr > 0:
                raise ValueError(f"fine_tune_lr={self.fine_tune_lr}: want more than 0")

    cfg: Config

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._floors: dict[str, list[float]] | None = None
        self._untrained: np.ndarray | None = None

    @property
    def selected_on(self) -> str:
        """The labeled samples of each draw."""
        return "cross-validation on the draw"

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`score` and, where asked, `fine_tuned`; beside classical models `gain`. Percent.

        After a call at step 0, `over_untrained` too: what was measured there is kept, by this object alone.
        """
        if not self.labeled(modality, self.cfg.split, "train"):
            return {}
        device = encoders.device
        featurize = Pooled(encoders)
        x, y, places = self._features(featurize, modality, "train", self.cfg.pool, device)
        q, truth, _ = self._features(featurize, modality, self.cfg.split, self.cfg.queries, device)
        if not self._measurable(y, truth):
            return {}
        draws = self._draws(y)
        if self.cfg.with_raw:
            raw = modality.baselines()["raw"]
            x = np.concatenate([x, self._features(raw, modality, "train", self.cfg.pool, "cpu")[0]], 1)
            q = np.concatenate(
                [q, self._features(raw, modality, self.cfg.split, self.cfg.queries, "cpu")[0]], 1
            )
        ours = np.array([self._score(linear(y)(x[rows], y[rows], q), truth) for rows in draws])
        found: dict[str, float] = {"score": estimate(ours, percent=False)}
        if progress.step == 0:
            self._untrained = ours
        elif self._untrained is not None:
            found["over_untrained"] = estimate(ours - self._untrained, percent=False)
        if self.cfg.fine_tune:
            tuned = [
                self._tuned(encoders, modality, [places[r] for r in rows], y[rows], truth) for rows in draws
            ]
            found["fine_tuned"] = estimate(np.array(tuned), percent=False)
        if self.cfg.classical:
            theirs = self._classical(modality)
            best = max(theirs, key=lambda name: np.mean(theirs[name]))
            found["gain"] = estimate(ours - np.array(theirs[best]), percent=False)
        return found

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The classical models' figures."""
        if not self.cfg.classical or not self.labeled(modality, self.cfg.split, "train"):
            return {}
        return {
            name: estimate(np.array(scores), percent=False)
            for name, scores in self._classical(modality).items()
        }

    def _classical(self, modality: Modality) -> dict[str, list[float]]:
        if self._floors is None:
            raw = modality.baselines()["raw"]
            x, y, _ = self._features(raw, modality, "train", self.cfg.pool, "cpu")
            q, truth, _ = self._features(raw, modality, self.cfg.split, self.cfg.queries, "cpu")
            if not self._measurable(y, truth):
                return {}
            draws = self._draws(y)
            self._floors = {
                name: [self._score(fit(x[rows], y[rows], q), truth) for rows in draws]
                for name, fit in {"linear": linear(y), **trees(y)}.items()
            }
        return self._floors

    def _features(
        self, featurize: Any, modality: Modality, split: str, limit: int, device: Any
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Features [S, F], classes int64 [S] or values float64 [S], and positions, of the labeled samples."""
        places = drawn(len(modality.dataset(split)), limit)  # type: ignore[arg-type]
        x, y, kept = featurize_places(
            featurize, modality, split, places, device=device, stream=self.cfg.stream
        )
        quantity = modality.targets(split) if isinstance(modality, HasTargets) else None
        labels = y if quantity is None else quantity[kept].double()
        known = (y >= 0) if quantity is None else labels.isfinite()
        at = [place for place, ok in zip(kept, known.tolist(), strict=True) if ok]
        return x[known].double().numpy(), labels[known].numpy(), at

    def _measurable(self, y: np.ndarray, truth: np.ndarray) -> bool:
        """Return whether there is something to learn in y and to score in truth; warn where there is not."""
        for split, labels, least in (("train", y, 2), (self.cfg.split, truth, 1)):
            if len(np.unique(labels)) < (2 if y.dtype.kind == "f" else least):
                self.warn_nothing_to_measure(
                    f"{len(labels)} labeled samples of the {split} split have {len(np.unique(labels))} labels"
                )
                return False
        said = ""
        if y.dtype.kind != "f":
            said = unseen_classes(torch.from_numpy(y), torch.from_numpy(truth), self.cfg.split)
        if said:
            self.warn(said)
        return True

    def _draws(self, y: np.ndarray) -> list[np.ndarray]:
        """The rows of each draw, the same for all models."""
        found = []
        for number in range(self.cfg.draws):
            rng = np.random.default_rng((20_26, number))
            order = rng.permutation(len(y))
            if y.dtype.kind == "f":
                found.append(order[: self.cfg.labels])
                continue
            classes = np.unique(y)
            first = [order[y[order] == c][0] for c in classes]  # one of each, the others as they come
            rest = order[~np.isin(order, first)][: max(self.cfg.labels - len(first), 0)]
            found.append(np.concatenate([first, rest]))
        return found

    def _tuned(
        self,
        encoders: FrozenEncoders,
        modality: Modality,
        places: list[int],
        y: np.ndarray,
        truth: np.ndarray,
    ) -> float:
        """The score of a copy of the encoder, trained with a linear head on clean views of some samples."""
        if encoders.modules is None:
            raise ValueError(
                "fine_tune needs the encoders themselves, this run hands out only their features"
            )
        model, device = copy.deepcopy(encoders.modules), encoders.device
        stream, data = stream_of(modality, self.cfg.stream), modality.dataset("train")
        views = clean_views(modality, [data[i] for i in places], stream, device)
        quantity = y.dtype.kind == "f"
        mean, std = (float(y.mean()), float(y.std()) or 1.0) if quantity else (0.0, 1.0)
        want = torch.from_numpy((y - mean) / std).float() if quantity else torch.from_numpy(y)
        want, classes = want.to(device), 1 if quantity else 1 + int(y.max())
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        with torch.no_grad():
            width = pooled(model, views).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = nn.Linear(width, classes).to(device)
            solver = torch.optim.AdamW([*model.parameters(), *head.parameters()], self.cfg.fine_tune_lr)
            for _ in range(self.cfg.fine_tune):
                out = head(pooled(model, views))
                loss = F.mse_loss(out[:, 0], want) if quantity else F.cross_entropy(out, want)
                solver.zero_grad()
                loss.backward()
                solver.step()
        tuned = Pooled(FrozenEncoders.of(model))
        try:
            q, _, _ = self._features(tuned, modality, self.cfg.split, self.cfg.queries, device)
        except NotFinite as bad:  # fine-tuning diverged: its own figure alone is no number
            self.warn_not_finite(bad)
            return math.nan
        with torch.no_grad():
            out = head.cpu()(torch.from_numpy(q).float()).double()
        return self._score((out[:, 0] * std + mean if quantity else out.softmax(1)).numpy(), truth)

    def _score(self, guess: np.ndarray, truth: np.ndarray) -> float:
        return score(guess, truth, self.cfg.metric)


def linear(y: np.ndarray) -> Fit:
    """Standardized, then ridge or logistic regression with the strength chosen by cross-validation on the draw."""
    models = registry.require("sklearn.linear_model")
    scaler = registry.require("sklearn.preprocessing").StandardScaler

    def fit(x: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
        scale = scaler().fit(x)
        x, queries = scale.transform(x), scale.transform(queries)
        if y.dtype.kind == "f":
            return models.RidgeCV(alphas=np.logspace(-2, 4, 13)).fit(x, labels).predict(queries)
        grid = {"C": list(np.logspace(-4, 0, 7))}
        return searched(models.LogisticRegression(max_iter=500), grid, x, labels, queries, y)

    return fit


def trees(y: np.ndarray) -> dict[str, Fit]:
    """A random forest and gradient boosting, with the settings that matter on few rows chosen on the draw."""
    found, kind = {}, "Regressor" if y.dtype.kind == "f" else "Classifier"
    grids: dict[str, tuple[str, dict[str, Any], dict[str, list[Any]]]] = {
        "forest": (f"RandomForest{kind}", {"n_estimators": 100, "random_state": 0},
                   {"min_samples_leaf": [1, 3, 8]}),
        "boosting": (f"GradientBoosting{kind}", {"subsample": 0.7, "random_state": 0, "learning_rate": 0.05},
                     {"n_estimators": [40, 120], "max_depth": [1, 3]}),
    }  # fmt: skip
    for name, (cls, options, grid) in grids.items():
        model = getattr(registry.require("sklearn.ensemble"), cls)(**options)
        found[name] = lambda x, labels, q, model=model, grid=grid: searched(model, grid, x, labels, q, y)
    return found


def searched(
    model: Any,
    grid: dict[str, list[Any]],
    x: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    y: np.ndarray,
) -> np.ndarray:
    """Return what a model makes of queries, fitted to labels [n] with the grid's values that cross-validation chooses.

    Scores [Q, C] where labels are classes, of which y holds all, or values [Q].
    """
    selection = registry.require("sklearn.model_selection")
    quantity = labels.dtype.kind == "f"
    fewest = len(labels) if quantity else int(np.unique(labels, return_counts=True)[1].min())
    if min(5, fewest) >= 2:
        scoring = "r2" if quantity else "neg_log_loss"
        search = selection.GridSearchCV(model, grid, scoring=scoring, cv=min(5, fewest), n_jobs=1)
        model = search.fit(x, labels).best_estimator_
    else:  # a class of one sample cannot be held out: the middle of each grid
        middle = {name: values[len(values) // 2] for name, values in grid.items()}
        model = model.set_params(**middle).fit(x, labels)
    if quantity:
        return model.predict(queries)
    scores = np.zeros((len(queries), 1 + int(y.max())))
    scores[:, model.classes_] = model.predict_proba(queries)
    return scores


def score(guess: np.ndarray, truth: np.ndarray, metric: str = "area") -> float:
    """Percent: R2 of values [Q]; accuracy or area under the curve (one against the rest, averaged) of scores [Q, C].

    A class of truth that the scores lack is never found: an area of one half, or no right guess. NaN where a quantity
    does not vary, or where scores are not finite.
    """
    if not np.isfinite(guess).all():
        return math.nan
    if truth.dtype.kind == "f":
        if truth.max() == truth.min():
            return math.nan
        return 100 * r2(guess, truth)
    if metric == "accuracy":
        return 100 * float((guess.argmax(1) == truth).mean())
    classes = np.unique(truth)
    areas = [
        area(guess[:, c], truth == c) if c < guess.shape[1] else 0.5 for c in classes[len(classes) == 2 :]
    ]
    return 100 * float(np.mean(areas))


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the curve: the chance that a positive scores above a negative, ties counting half."""
    if not np.isfinite(scores).all():
        return math.nan
    values, at, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[at]  # mid-ranks from 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return 0.5
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)) if len(values) else 0.5
