"""Quick linear probe: multinomial logistic regression on frozen features.

Features are standardized with the training statistics; a tenth of the training samples chooses the L2
strength, then the classifier is fitted to all of them. Full-batch L-BFGS from zero: no learning rate. Where queries
come from other groups (speakers, scenes) than the training samples, `by_group` chooses on groups left out in turn.
Shapes: S training samples, Q queries, F features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.unseen import unseen_classes
from multissl.evaluators.verdicts import learned
from multissl.inference import (
    Featurize,
    Pooled,
    drawn,
    featurize_places,
    labeled_split,
)


class LinearProbe(Evaluator):
    """Accuracy of a linear classifier on pooled features, in percent."""

    titles: ClassVar[dict[str, str]] = {"top1": "linear probe accuracy, %"}

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
        classical: bool = False
        """Fit the modality's classical features too; raw input is wide, so this takes its time."""
        by_group: bool = False
        """Choose the strength on training groups, such as speakers, left out one after the other."""
        margin: float = 2.0
        """Points above the untrained encoder (and the raw input, if fitted) that count as learned."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.l2 or min(self.l2) < 0:
                raise ValueError(f"l2={self.l2}: want one or more strengths, each 0 or more")
            if self.train < 0 or self.queries < 0:
                raise ValueError(
                    f"train={self.train}, queries={self.queries}: want 0 (all) or a number of samples"
                )
            if self.max_steps < 1:
                raise ValueError(f"max_steps={self.max_steps}: want 1 or more")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1` of the pooled features, in percent; nothing on data without labels."""
        if not self.labeled(modality, self.cfg.split, "train"):
            return {}
        device = encoders.device
        featurize = Pooled(encoders)
        top1 = self.accuracy(featurize, modality, device)
        return {} if top1 is None else {"top1": top1}

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The same figure for the modality's classical features, where `classical` asks for it."""
        if not self.cfg.classical or not self.labeled(modality, self.cfg.split, "train"):
            return {}
        measured = {n: self.accuracy(each, modality, "cpu") for n, each in modality.baselines().items()}
        return {name: top1 for name, top1 in measured.items() if top1 is not None}

    def verdict(self, history: list[dict[str, float]]) -> tuple[bool, str] | None:
        """Learned where the last top1 is above the untrained encoder (and the raw input) by the margin."""
        return learned("linear probe", "top1", history, self.cfg.margin)

    def accuracy(self, featurize: Featurize, modality: Modality, device: torch.device | str) -> float | None:
        """`top1` of any features of the modality's samples; None where there is nothing to measure, which is said."""
        cfg = self.cfg
        x, y, groups = self._train(featurize, modality, device)
        queries, truth = labeled_split(
            featurize, modality, cfg.split, cfg.queries, device=device, stream=cfg.stream
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
        x, y, queries, truth = (t.to(device) for t in (x, y, queries, truth))
        return probe_accuracy(x, y, queries, truth, cfg.l2, cfg.max_steps, groups)

    def _train(
        self, featurize: Featurize, modality: Modality, device: torch.device | str
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features [S, F], labels [S] and, where the choice goes by them, groups [S] of labeled training samples."""
        data = modality.dataset("train")
        places = drawn(len(data), self.cfg.train)  # type: ignore[arg-type]
        x, y, kept = featurize_places(
            featurize, modality, "train", places, device=device, stream=self.cfg.stream
        )
        groups = torch.tensor([data[i].group for i in kept]) if self.cfg.by_group else None
        if groups is not None and len(groups[y >= 0].unique()) < 2:
            raise ValueError("by_group=True: the training samples are of fewer than 2 groups; leave it off")
        return x[y >= 0], y[y >= 0], None if groups is None else groups[y >= 0]


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
) -> float:
    """Accuracy in percent on queries [Q, F] of the probe fitted to x [S, F]; labels int64 [S] and [Q].

    NaN where features are not finite.
    """
    if not bool(x.isfinite().all() & queries.isfinite().all()):
        return math.nan
    classes = 1 + int(y.max())  # a class that training lacks is never guessed
    l2 = choose_l2(x, y, strengths, classes, max_steps, groups) if len(strengths) > 1 else strengths[0]
    x, queries = standardized(x, queries)
    weight, bias = fit_logistic(x, y, l2, classes, max_steps)
    return _percent(queries @ weight.T + bias, truth)


def choose_l2(
    x: Tensor,
    y: Tensor,
    strengths: Sequence[float],
    classes: int,
    max_steps: int = 200,
    groups: Tensor | None = None,
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
        rest, queries = standardized(x[~held], x[held])
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
    """Weight [C, F] and bias [C] of least mean cross entropy + l2 / 2 * |weight|^2 on x [S, F], y [S]."""
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
            value = F.cross_entropy(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()
            value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def standardized(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """x [S, F] and others with the mean and std of x taken out; a constant feature becomes 0."""
    mean, std = x.mean(0), x.std(0, correction=0)
    scale = torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std.clamp(min=1e-12), torch.zeros_like(std))
    return tuple((t - mean) * scale for t in (x, *others))


def _percent(logits: Tensor, truth: Tensor) -> float:
    return 100 * (logits.argmax(1) == truth).double().mean().item()
