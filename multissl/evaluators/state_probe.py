"""Ridge regression of the known state of the world from frozen features, as R2 in percent.

The state (an emulator's memory, the values of a simulator) comes from the modality's `states`. Features and states are
standardized by the training samples, the strength is chosen on a tenth of the training groups (episodes), and R2 is
that of a split whose groups were not trained on. Baselines at equal width: the untrained encoder (the first run) and
the principal components, as many as the encoder is wide, of the modality's raw features, which are reported too.
Shapes: S training samples, Q of the split, F features, n values of a state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from multissl.contract.abilities import HasStates
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.verdicts import UNTRAINED, first_and_last, judged
from multissl.inference import Featurize, Pooled, drawn, featurized
from multissl.statistics import LEVEL


class StateProbe(Evaluator):
    """R2 of the state from pooled features, the mean over its values and each value's own, in percent."""

    fits = True
    titles: ClassVar[dict[str, str]] = {"r2": "state probe R2, %"}

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the state probe."""

        values: tuple[str, ...] = ()
        """Names of the values that r2 is the mean of; empty: those that the data aims at (the ball of a game with one),
        or all. The others are reported too."""
        l2: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
        """Strengths to choose from, as shares of the number of training samples."""
        split: str = "val"
        """Where R2 is measured; the regression sees the train split alone."""
        train: int = 10_000
        """Training samples, drawn with a fixed seed; 0: all."""
        queries: int = 5_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        margin: float = 5.0
        """Points above the untrained encoder and the principal components that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.l2 or min(self.l2) <= 0:
                raise ValueError(f"l2={self.l2}: want one or more strengths, each more than 0")
            self.check_counts("train", "queries")

    cfg: Config

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._width = 0  # of the encoder last measured, for components of equal width

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`r2` and `r2/NAME` of the pooled features, in percent; nothing on data without states."""
        if (stated := self.stated(modality)) is None:
            return {}
        featurize = Pooled(encoders)
        x, y, groups, queries, truth, asked = self.parts(featurize, stated, encoders.device)
        self._width = x.shape[1]
        constant = self._constant(stated, y, truth)
        scores = r2_scores(x, y, groups, queries, truth, self.cfg.l2)
        return self._named(stated, scores, "r2", asked, constant)

    def baselines(self, modality: Modality) -> dict[str, float]:
        """`pca`: as many principal components of the raw features as the encoder is wide; `wide`: all of them.

        `mean`: what the mean of the training states explains, whatever the sample.
        """
        if (stated := self.stated(modality)) is None:
            return {}
        x, y, groups, queries, truth, asked = self.parts(modality.baselines()["raw"], stated, "cpu")
        found = {
            "wide": r2_scores(x, y, groups, queries, truth, self.cfg.l2),
            "mean": _scores(y.mean(0), truth),
        }
        if self._width:
            reduced = principal(x, queries, self._width)
            found["pca"] = r2_scores(reduced[0], y, groups, reduced[1], truth, self.cfg.l2)
        constant = self._constant(stated, y, truth)
        figures = {name: self._named(stated, each, name, asked, constant) for name, each in found.items()}
        return {name: values[name] for name, values in figures.items() if values}

    def baseline_names(self, modality: Modality) -> list[str]:
        """Those of `baselines`."""
        return ["wide", "mean", "pca"]

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last r2 is above the untrained encoder and the principal components."""
        if (measured := first_and_last("r2", history)) is None:
            return None
        first, last = measured
        gates = {"pca": "the principal components'", "mean": "the mean state's"}
        return judged(
            "state probe R2",
            last["r2"],
            {UNTRAINED: first["r2"]} | {said: first[k] for k, said in gates.items() if k in first},
            {"all raw features": first["wide"]} if "wide" in first else {},
            margin=self.cfg.margin,
            level=level,
        )

    def parts(
        self, featurize: Featurize, modality: HasStates, device: torch.device | str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Training features and states and groups, and those of the split; complete states only."""
        found: list[Tensor] = []
        for split, limit in (("train", self.cfg.train), (self.cfg.split, self.cfg.queries)):
            states, _ = modality.states(split)
            places = _complete(states, limit)
            some = featurized(featurize, modality, split, places, device=device, stream=self.cfg.stream)
            found += [some.features.double(), states[some.places].double(), some.groups]
        x, y, groups, queries, truth, asked = found
        if len(self.cfg.l2) > 1 and len(groups.unique()) == 1:
            self.warn(
                "the training samples are of one group, or of none: the last tenth, in order, chooses the strength"
            )
        return x, y, groups, queries, truth, asked

    def stated(self, modality: Modality) -> HasStates | None:
        """Return the modality where both splits tell complete states; where one does not, warn once."""
        if not isinstance(modality, HasStates):
            self.warn_nothing_to_measure("the data tells no state behind its samples")
            return None
        for split, limit in ((self.cfg.split, self.cfg.queries), ("train", self.cfg.train)):
            if not modality.states(split)[1]:
                self.warn_nothing_to_measure("the data tells no state behind its samples")
                return None
            if not _complete(modality.states(split)[0], limit):
                self.warn_nothing_to_measure(f"no sample of the {split} split has a complete state")
                return None
        return modality

    def _constant(self, modality: HasStates, y: Tensor, truth: Tensor) -> frozenset[str]:
        """Return the names of values that are constant in training or in the split, and warn: they have no R2."""
        names, left_out = modality.states(self.cfg.split)[1], []
        for split, states in (("train", y), (self.cfg.split, truth)):
            same = [
                n for n, c in zip(names, constant(states).tolist(), strict=True) if c and n not in left_out
            ]
            if same:
                self.warn(f"constant in the {split} split and left out: {', '.join(same)}")
            left_out += same
        return frozenset(left_out)

    def _named(
        self,
        modality: HasStates,
        scores: Tensor,
        name: str,
        groups: Tensor,
        left_out: frozenset[str] = frozenset(),
    ) -> dict[str, float]:
        """The mean over the values asked for as `name`, and each value as `name/VALUE`, in percent.

        From scores [Q, n] of samples in groups [Q]; without those left out; nothing where none of those asked for
        remains.
        """
        names = modality.states(self.cfg.split)[1]
        unknown = [v for v in self.cfg.values if v not in names]
        if unknown:
            raise ValueError(f"values={self.cfg.values}: the states are {', '.join(names)}")
        by_name = {
            n: 100 * score
            for n, score in zip(names, scores.cpu().numpy().T, strict=True)
            if n not in left_out
        }
        wanted = [by_name[n] for n in self.cfg.values or modality.aims() or names if n in by_name]
        if not wanted:
            self.warn_nothing_to_measure("every value of the state is constant")
            return {}
        all_of = {name: np.mean(wanted, axis=0), **{f"{name}/{n}": score for n, score in by_name.items()}}
        return {n: estimate(score, groups.numpy(), percent=False) for n, score in all_of.items()}


def _complete(states: Tensor, limit: int) -> list[int]:
    """Return the positions of complete states [S, n] among `limit` drawn ones (0: all)."""
    known = torch.isfinite(states).all(1).tolist()
    return [i for i in drawn(len(states), limit) if known[i]]


def r2_of(
    x: Tensor, y: Tensor, groups: Tensor, queries: Tensor, truth: Tensor, strengths: Sequence[float]
) -> Tensor:
    """R2 [n], the mean over queries of `r2_scores`."""
    return r2_scores(x, y, groups, queries, truth, strengths).mean(0)


def r2_scores(
    x: Tensor, y: Tensor, groups: Tensor, queries: Tensor, truth: Tensor, strengths: Sequence[float]
) -> Tensor:
    """What each query adds to the R2 of the ridge regression of y [S, n] on x [S, F]: [Q, n], whose mean R2 is.

    It is scored on queries [Q, F], truth [Q, n], and its strength is chosen in training. Groups [S] are whole in the
    part that chooses: of neighbors in time one would otherwise tell the other. Of one group alone the last tenth of the
    samples, in order, chooses. NaN for values that are constant in y or truth, and for all
    where features or states are not finite.
    """
    if not all(bool(t.isfinite().all()) for t in (x, y, queries, truth)):
        return torch.full(truth.shape, math.nan, dtype=y.dtype)
    kinds = groups.unique()
    held = torch.isin(groups, kinds[::10])
    if len(kinds) == 1:
        held = torch.arange(len(x)) >= len(x) - max(1, len(x) // 10)
    chosen, telling = max(strengths), ~(constant(y) | constant(y[held]))
    if len(strengths) > 1 and not bool(held.all()) and bool(telling.any()):
        tried = sorted(strengths, reverse=True)
        found = [float(r[:, telling].mean()) for r in _r2(x[~held], y[~held], x[held], y[held], tried)]
        chosen = tried[found.index(max(found))]
    return _r2(x, y, queries, truth, [chosen])[0].masked_fill(constant(y) | constant(truth), math.nan)


def constant(states: Tensor) -> Tensor:
    """Which of the values of states [S, n] are the same in all samples, up to rounding: bool [n]."""
    return states.amax(0) - states.amin(0) <= 1e-9 * states.abs().amax(0)


def _scores(guess: Tensor, truth: Tensor) -> Tensor:
    """What each sample adds to R2 [Q, n] of a guess [Q, n] or [n] at truth [Q, n]: R2 is the mean."""
    variance = (truth - truth.mean(0)).square().mean(0).clamp(min=1e-12)
    return 1 - (guess - truth).square() / variance


def _r2(x: Tensor, y: Tensor, queries: Tensor, truth: Tensor, strengths: Sequence[float]) -> list[Tensor]:
    """The scores [Q, n] for each strength."""
    mean, center = x.mean(0), y.mean(0)
    std = x.std(0, correction=0)
    scale = torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std.clamp(min=1e-12), torch.zeros_like(std))
    x, queries = (x - mean) * scale, (queries - mean) * scale
    dual = x.shape[1] > len(x)  # more features than samples: solved between samples, with the same result
    gram = (x @ x.T if dual else x.T @ x) / len(x)
    both = (y - center if dual else x.T @ (y - center)) / len(x)
    read = queries @ x.T if dual else queries
    found = []
    for l2 in strengths:
        weight = torch.linalg.solve(gram + l2 * torch.eye(len(gram), dtype=x.dtype), both)  # [F or S, n]
        found.append(_scores(read @ weight + center, truth))
    return found


def principal(x: Tensor, queries: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """x [S, F] and queries [Q, F] as their first `width` principal components, fitted to x."""
    mean = x.mean(0)
    x, queries = x - mean, queries - mean
    if x.shape[1] > len(x):
        axes = torch.linalg.svd(x, full_matrices=False)[2].T
    else:
        axes = torch.linalg.eigh(x.T @ x)[1].flip(1)  # descending
    axes = axes[:, :width]
    return x @ axes, queries @ axes
