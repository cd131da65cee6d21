"""Logistic regression on frozen features with DINOv2's grid of strengths, by scikit-learn.

Oquab et al., TMLR 2024, arXiv 2304.07193, and their code: C of 10 ** linspace(-6, 5, 45), an L2 penalty, L-BFGS with
up to 1000 iterations and a tolerance of 1e-12, float64, features as they are. A tenth of training chooses C, and the
classifier is fitted to all of training with it. C multiplies the sum of the losses, so that the same C is another
strength for another number of samples: both are among the figures. `linear_probe` is the quicker relative.
Shapes: S training samples, Q queries, F features, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from multissl import registry
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.classified import Task, task_of, validation_mask
from multissl.evaluators.linear_probe import COMPONENTS, FEWEST, WIDEST, narrowed
from multissl.evaluators.verdicts import MAJORITY, learned
from multissl.inference import Featurize, Pooled, measured_baselines
from multissl.statistics import LEVEL

PUBLISHED = tuple(float(c) for c in 10.0 ** np.linspace(-6, 5, 45))


class LogisticRegression(Evaluator):
    """Accuracy of scikit-learn's logistic regression on pooled features, in percent."""

    reads = "pooled"
    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "logistic regression accuracy, %",
        "c": "logistic regression, chosen C",
        "samples": "logistic regression, training samples that C is for",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the logistic regression."""

        c: tuple[float, ...] = PUBLISHED
        """Inverse strengths to choose from, as scikit-learn counts them: each multiplies the sum of the losses."""
        split: str = "val"
        """Where the accuracy is measured; the classifier sees the train split alone."""
        train: int = 20_000
        """Training samples, drawn with a fixed seed; 0: all."""
        queries: int = 5_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        max_iter: int = 1000
        """Iterations of L-BFGS for a fit."""
        tolerance: float = 1e-12
        """Largest gradient at which a fit counts as done, 0 or more."""
        classical: bool = False
        """Fit the modality's classical features too, which are wide and take far longer than the encoder's."""
        margin: float = 2.0
        """Points above the untrained encoder and the raw input that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.c or not min(self.c) > 0:
                raise ValueError(f"c={self.c}: want one or more inverse strengths, each more than 0")
            self.check_counts("train", "queries")
            if self.max_iter < 1 or not self.tolerance >= 0:
                raise ValueError(
                    f"max_iter={self.max_iter}, tolerance={self.tolerance}: want 1 or more, and 0 or more"
                )

    cfg: Config

    @property
    def selected_on(self) -> str:
        """A tenth of training, where there is something to choose."""
        return "none" if len(self.cfg.c) == 1 else "a tenth of training"

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1` of the pooled features, in percent, with the chosen `c` and its `samples`."""
        if not self.labeled(modality, self.cfg.split, "train"):
            return {}
        measured = self._measured(Pooled(encoders), modality, encoders.device)
        if measured is None:
            return {}
        return {"top1": measured.top1, "c": measured.c, "samples": float(measured.samples)}

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The same figure for the modality's classical features, if asked, and that of the most frequent class."""
        if not self.cfg.classical or not self.labeled(modality, self.cfg.split, "train"):
            return {}
        figures: dict[str, float] = {}
        for name, measured in measured_baselines(modality, self._measured):
            figures |= {name: measured.top1, MAJORITY: measured.majority}
        return figures

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last top1 is above the untrained encoder and, if fitted, the raw input."""
        return learned("logistic regression", "top1", history, self.cfg.margin, level)

    def _measured(self, featurize: Featurize, modality: Modality, device: Any) -> Fitted | None:
        """Return what is measured of any features of the modality's samples; None where there is nothing."""
        cfg = self.cfg
        task = task_of(
            self, featurize, modality, split=cfg.split, train=cfg.train, queries=cfg.queries, device=device
        )
        if task is None:
            return None
        if len(task.y) < FEWEST and len(cfg.c) > 1:
            self.warn_nothing_to_measure(
                f"{len(task.y)} labeled training samples cannot choose among {len(cfg.c)} strengths (want {FEWEST} "
                "or more, or a single c)"
            )
            return None
        return fitted(task, cfg.c, cfg.max_iter, cfg.tolerance)


class Fitted(NamedTuple):
    """What is measured of some features, in percent."""

    top1: float
    c: float
    """That was chosen."""
    samples: int
    """Training samples that the classifier was fitted to with it."""
    majority: float
    """Of the most frequent class, whatever the query."""


def fitted(task: Task, strengths: Sequence[float], max_iter: int = 1000, tolerance: float = 1e-12) -> Fitted:
    """Return the accuracy of the classifier of the chosen strength; NaN where features are not finite."""
    if not bool(task.x.isfinite().all() & task.queries.isfinite().all()):
        return Fitted(math.nan, math.nan, len(task.y), task.majority)
    x, queries = (t.double().numpy() for t in narrowed(task.x, task.queries, WIDEST, COMPONENTS))
    c = chosen(x, task.y, strengths, max_iter, tolerance)
    (model,) = models(x, task.y.numpy(), [c], max_iter, tolerance)
    hits = model.predict(queries) == task.truth.numpy()
    return Fitted(estimate(100.0 * hits, task.groups), c, len(task.y), task.majority)


def chosen(x: np.ndarray, y: Tensor, strengths: Sequence[float], max_iter: int, tolerance: float) -> float:
    """Return the C that does best on a tenth of the samples [S, F], fitted to the others; of equals the smallest."""
    if len(strengths) == 1:
        return strengths[0]
    held, labels = validation_mask(len(x)).numpy(), y.numpy()
    order = sorted(strengths)
    rest, known = x[~held], labels[~held]
    if len(np.unique(known)) < 2:  # of the other class every sample was held out
        return order[len(order) // 2]
    scores = [
        (m.predict(x[held]) == labels[held]).mean() for m in models(rest, known, order, max_iter, tolerance)
    ]
    return order[int(np.argmax(scores))]


def models(
    x: np.ndarray, y: np.ndarray, strengths: Sequence[float], max_iter: int, tolerance: float
) -> list[Any]:
    """Return classifiers fitted to x [S, F] and y [S], one for each C; each starts where the one before ended."""
    cls: Any = registry.require("sklearn.linear_model").LogisticRegression
    unfinished: Any = registry.require("sklearn.exceptions").ConvergenceWarning
    fits: list[Any] = []
    for c in strengths:
        model = cls(C=c, max_iter=max_iter, tol=tolerance, warm_start=True)
        if fits:
            model.coef_, model.intercept_ = fits[-1].coef_.copy(), fits[-1].intercept_.copy()
            model.classes_ = fits[-1].classes_
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", unfinished)  # of so small a tolerance it says nothing
            fits.append(model.fit(x, y))
    return fits
