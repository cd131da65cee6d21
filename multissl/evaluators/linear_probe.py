"""Quick linear probe: multinomial logistic regression on frozen features.

Features are standardized with the training statistics; a tenth of the training samples chooses the L2
strength, then the classifier is fitted to all of them. Full-batch L-BFGS from zero: no learning rate. Where queries
come from other groups (speakers, scenes) than the training samples, `by_group` chooses on groups left out in turn.
Shapes: S training samples, Q queries, F features, C classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.several_classes import (
    PREVALENCE,
    average_precisions,
    binary_loss,
    figures_of,
    have_several,
    labels_of,
    mean_precision,
    prevalence,
    scored_by,
)
from multissl.evaluators.unseen import unseen_classes
from multissl.evaluators.verdicts import MAJORITY, learned, majority_accuracy
from multissl.inference import (
    Featurize,
    Pooled,
    drawn,
    featurized,
    measured_baselines,
    scored_split,
)
from multissl.statistics import LEVEL

Scale = Callable[..., tuple[Tensor, ...]]
"""From training features [S, F] and others to the same on the scale of the training features."""


class LinearProbe(Evaluator):
    """Accuracy of a linear classifier on pooled features, or mAP of samples of several classes, in percent."""

    reads = "pooled"
    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "linear probe accuracy, %",
        "map": "linear probe, mean average precision over classes, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the linear probe."""

        l2: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        """Strengths to choose from; the loss is mean cross entropy + l2 / 2 * |weight|^2."""
        split: str = "val"
        """Where the accuracy is measured; the classifier sees the train split alone."""
        train: int = 20_000
        """Training samples, drawn with a fixed seed; 0: all."""
        queries: int = 5_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        max_steps: int = 200
        """L-BFGS steps for a fit."""
        classical: bool = True
        """Fit the modality's classical features too, as gates and to be named where they are above the encoder."""
        by_group: bool = False
        """Choose the strength on training groups, such as speakers, left out one after the other."""
        margin: float = 2.0
        """Points above the untrained encoder and the raw input that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.l2 or min(self.l2) < 0:
                raise ValueError(f"l2={self.l2}: want one or more strengths, each 0 or more")
            self.check_counts("train", "queries")
            if self.max_steps < 1:
                raise ValueError(f"max_steps={self.max_steps}: want 1 or more")

    cfg: Config

    @property
    def selected_on(self) -> str:
        """A tenth of training or its groups, where there is something to choose."""
        if len(self.cfg.l2) == 1:
            return "none"
        return "groups of training, each left out" if self.cfg.by_group else "a tenth of training"

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1` of the pooled features, or `map`, in percent; nothing on data without labels."""
        if have_several(modality, self.cfg.split, "train"):
            found = self.precisions(Pooled(encoders), modality, encoders.device) or {}
            return {name: value for name, value in found.items() if name != PREVALENCE}
        if not self.labeled(modality, self.cfg.split, "train"):
            return {}
        measured = self.measured(Pooled(encoders), modality, encoders.device)
        return {} if measured is None else {"top1": measured.top1}

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The same figure for the modality's classical features, and that of the most frequent class.

        Of samples of several classes each, how frequent these are.
        """
        if self.cfg.classical and have_several(modality, self.cfg.split, "train"):
            found: dict[str, float] = {}
            measure = functools.partial(self.precisions, scale=scaled)
            for name, made in measured_baselines(modality, measure):
                found |= {name: made["map"], PREVALENCE: made[PREVALENCE]}
            return found
        if not self.cfg.classical or not self.labeled(modality, self.cfg.split, "train"):
            return {}
        figures: dict[str, float] = {}
        for name, measured in measured_baselines(modality, functools.partial(self.measured, scale=scaled)):
            figures |= {name: measured.top1, MAJORITY: measured.majority}
        return figures

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last top1, or mAP, is above the untrained encoder and, if fitted, the raw input."""
        return learned("linear probe", scored_by(history), history, self.cfg.margin, level)

    def measured(
        self, featurize: Featurize, modality: Modality, device: torch.device | str, scale: Scale | None = None
    ) -> Probed | None:
        """Return the accuracy of any features of the modality's samples; None where there is nothing to measure."""
        cfg = self.cfg
        x, y, groups = self._train(featurize, modality, device)
        queries, truth, query_groups = scored_split(
            featurize, modality, cfg.split, cfg.queries, device, cfg.stream
        )
        if len(y.unique()) < 2 or not len(truth):
            self.warn_nothing_to_measure(
                f"{len(y)} labeled training samples of {len(y.unique())} classes and {len(truth)} of the split"
            )
            return None
        if len(y) < FEWEST and len(cfg.l2) > 1:
            self.warn(
                f"{len(y)} labeled training samples cannot choose among {len(cfg.l2)} strengths (want {FEWEST} or "
                f"more): the middle one, {middle(cfg.l2):g}, is taken; --l2 gives one"
            )
        if said := unseen_classes(y, truth, cfg.split):
            self.warn(said)
        majority = majority_accuracy(y, truth, query_groups)
        if scale is not None:
            x, queries = narrowed(x, queries, WIDEST, COMPONENTS)
        x, y, queries, truth = (t.to(device) for t in (x, y, queries, truth))
        top1 = probe_accuracy(x, y, queries, truth, cfg.l2, cfg.max_steps, groups, query_groups, scale)
        return Probed(top1, majority)

    def precisions(
        self, featurize: Featurize, modality: Modality, device: torch.device | str, scale: Scale | None = None
    ) -> dict[str, float] | None:
        """Return `map`, `left_out` and the prevalence of several classes each; None: nothing to measure."""
        cfg, sides = self.cfg, []
        if cfg.by_group:
            raise ValueError(
                "by_group=True: groups choose among samples of one class each; leave it off where they have several"
            )
        for split, limit in (("train", cfg.train), (cfg.split, cfg.queries)):
            places = drawn(len(modality.dataset(split)), limit)
            made = featurized(featurize, modality, split, places, device=device, stream=cfg.stream)
            known, labels = labels_of(modality, split, made)
            sides += [made.features[known], labels]
        x, y, queries, truth = sides
        if len(y) < FEWEST or not y.any() or not truth.any():
            self.warn_nothing_to_measure(
                f"{len(y)} labeled training samples (want {FEWEST} or more) of {int(y.any(0).sum())} classes and "
                f"{len(truth)} of the split"
            )
            return None
        if scale is not None:
            x, queries = narrowed(x, queries, WIDEST, COMPONENTS)
        x, y, queries, truth = (t.to(device) for t in (x, y, queries, truth))
        scores = probe_scores(x, y, queries, cfg.l2, cfg.max_steps, scale=scale)
        figures = figures_of(average_precisions(scores, truth), truth)
        return {**figures, PREVALENCE: prevalence(truth)}

    def _train(
        self, featurize: Featurize, modality: Modality, device: torch.device | str
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features [S, F], labels [S] and, where the choice goes by them, groups [S] of labeled training samples."""
        places = drawn(len(modality.dataset("train")), self.cfg.train)
        x, y, _, every_group = featurized(
            featurize, modality, "train", places, device=device, stream=self.cfg.stream
        )
        groups = every_group if self.cfg.by_group else None
        if groups is not None and len(groups[y >= 0].unique()) < 2:
            raise ValueError("by_group=True: the training samples are of fewer than 2 groups; leave it off")
        return x[y >= 0], y[y >= 0], None if groups is None else groups[y >= 0]


class Probed(NamedTuple):
    """What the probe measures of some features, in percent."""

    top1: float
    majority: float
    """Of the most frequent class, whatever the query."""


WIDEST, COMPONENTS = 4096, 1024
"""Classical features that are wider than this are fitted by so many principal components."""
FEWEST = 10
"""Training samples that can choose a strength: a tenth of them is left out."""


def middle(strengths: Sequence[float]) -> float:
    """Return the middle one of strengths in order, the stronger of two."""
    return sorted(strengths)[len(strengths) // 2]


def probe_accuracy(
    x: Tensor,
    y: Tensor,
    queries: Tensor,
    truth: Tensor,
    strengths: Sequence[float],
    max_steps: int = 200,
    groups: Tensor | None = None,
    query_groups: np.ndarray | None = None,
    scale: Scale | None = None,
) -> float:
    """Accuracy in percent on queries [Q, F] of the probe fitted to x [S, F]; labels int64 [S] and [Q].

    Queries of one group [Q] count together in the figure's interval. Features are standardized, unless there is another
    scale. NaN where features are not finite.
    """
    if not bool(x.isfinite().all() & queries.isfinite().all()):
        return math.nan
    hits = probe_scores(x, y, queries, strengths, max_steps, groups, scale).argmax(1) == truth
    return estimate(100.0 * hits.cpu().numpy(), query_groups)


def probe_scores(
    x: Tensor,
    y: Tensor,
    queries: Tensor,
    strengths: Sequence[float],
    max_steps: int = 200,
    groups: Tensor | None = None,
    scale: Scale | None = None,
) -> Tensor:
    """Scores [Q, C] of queries [Q, F] by the probe fitted to x [S, F]; labels int64 [S], or bool [S, C] of several.

    One more than the largest label is C: a class that training lacks is never guessed.
    """
    classes = 1 + int(y.max()) if y.ndim == 1 else y.shape[1]
    scale = scale or standardized
    l2 = strengths[0]
    if len(strengths) > 1:
        l2 = choose_l2(x, y, strengths, classes, max_steps, groups, scale)
    x, queries = scale(x, queries)
    weight, bias = fit_logistic(x, y, l2, classes, max_steps)
    return queries @ weight.T + bias


def choose_l2(
    x: Tensor,
    y: Tensor,
    strengths: Sequence[float],
    classes: int,
    max_steps: int = 200,
    groups: Tensor | None = None,
    scale: Scale | None = None,
) -> float:
    """The strength that does best on samples left out, fitted to the others; of equals the strongest.

    Left out is a tenth of the samples, or each of the groups [S] in turn, of which the mean counts. Strengths are tried
    from strong to weak, each fit starting from the one before. Fewer than 10 samples cannot choose: the middle one.
    """
    if len(x) < FEWEST:
        return middle(strengths)
    tenth = torch.zeros(len(x), dtype=torch.bool)
    tenth[drawn(len(x), max(1, len(x) // 10))] = True
    folds = [tenth] if groups is None else [groups == g for g in groups.unique()]
    order = sorted(strengths, reverse=True)
    totals = dict.fromkeys(order, 0.0)
    for held in (fold.to(x.device) for fold in folds):
        rest, queries = (scale or standardized)(x[~held], x[held])
        start = None
        for l2 in order:
            start = fit_logistic(rest, y[~held], l2, classes, max_steps, start)
            totals[l2] += _percent(queries @ start[0].T + start[1], y[held])
    return max(order, key=lambda l2: totals[l2])  # the first, and strongest, of equals


def fit_logistic(
    x: Tensor,
    y: Tensor,
    l2: float,
    classes: int,
    max_steps: int = 200,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight [C, F] and bias [C] of least mean cross entropy + l2 / 2 * |weight|^2 on x [S, F], y [S].

    Of several classes (y bool [S, C]) the cross entropies of having each or not are added up.
    """
    weight, bias = start or (x.new_zeros(classes, x.shape[1]), x.new_zeros(classes))
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_steps,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            cost = F.cross_entropy if y.ndim == 1 else binary_loss
            value = cost(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()
            value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def standardized(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """x [S, F] and others with the mean and std of x taken out; a constant feature becomes 0."""
    mean, std = x.mean(0), x.std(0, correction=0)
    scale = torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std.clamp(min=1e-12), torch.zeros_like(std))
    return tuple((t - mean) * scale for t in (x, *others))


def scaled(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """x [S, F] and others without the mean of x, divided by one number: the mean spread of x's features.

    Classical features keep their own proportions: a word that is in one document tells less than a frequent one, and
    the last principal component less than the first.
    """
    mean = x.mean(0)
    scale = 1 / (x - mean).square().mean().sqrt().clamp(min=1e-12)
    return tuple((t - mean) * scale for t in (x, *others))


def narrowed(x: Tensor, queries: Tensor, widest: int, components: int) -> tuple[Tensor, Tensor]:
    """x [S, F] and queries [Q, F] as their first principal components where F is more than widest, fitted to x.

    Halko et al. 2011, algorithm 4.4 with one power step and a fixed seed.
    """
    if x.shape[1] <= widest:
        return x, queries
    mean = x.mean(0)
    x, queries = x - mean, queries - mean
    draw = torch.randn(x.shape[1], components, generator=torch.Generator().manual_seed(0)).to(x)
    basis = torch.linalg.qr(x.T @ (x @ draw)).Q  # [F, components]
    return x @ basis, queries @ basis


def _percent(logits: Tensor, truth: Tensor) -> float:
    if truth.ndim == 2:
        found = mean_precision(logits, truth)
        return 0.0 if math.isnan(found) else 100 * found
    return 100 * (logits.argmax(1) == truth).double().mean().item()
