"""Does the encoder still tell samples apart? RankMe, spread and similarity of its features; needs no labels.

RankMe: Garrido et al., ICML 2023, arXiv 2210.02885, equation 1, on raw features, eps added after the
division. alpha-ReQ: Agrawal et al., NeurIPS 2022, the decay of the covariance's eigenvalues. Spread: std of
the l2-normalized features times sqrt(D), 1 where they fill the sphere and 0 where all are one. Intervals are those of
the jackknife over tenths of the samples (Efron and Tibshirani 1993, chapter 11).
Shapes: S samples, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.estimate import Estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.verdicts import number
from multissl.inference import Pooled, featurize_split
from multissl.statistics import LEVEL, t_quantile


class Collapse(Evaluator):
    """Rank, spread and mean cosine of pooled features, and the alarm that they have become one."""

    reads = "pooled"
    titles: ClassVar[dict[str, str]] = {
        "rankme": "RankMe",
        "std": "feature std (1: spread out, 0: one point)",
        "cosine": "mean cosine between samples",
        "alpha": "alpha-ReQ: decay of the eigenvalues",
        "width": "width of the features",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the collapse check."""

        split: str = "val"
        """Split whose features are checked."""
        samples: int = 2_000
        """Samples of the split, drawn with a fixed seed; 0: all. RankMe wants several times the width."""
        min_std: float = 0.1
        """Alarm below this spread and below half of the untrained encoder's."""
        min_rank: float = 1.5
        """Alarm below this RankMe plus 1 % of the width, and below half of the untrained encoder's."""
        floor_std: float = 0.003
        """Alarm below this spread, whatever the untrained encoder's: the samples themselves may be one (black
        pictures)."""
        floor_rank: float = 2.0
        """Alarm below this RankMe, whatever the untrained encoder's; of narrow features, below a tenth of what they may
        have more than 1."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.samples < 0 or self.samples == 1:
                raise ValueError(f"samples={self.samples}: want 0 (all) or 2 and more")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`rankme`, `std`, `cosine`, `alpha` with their intervals, and the `width` D they are to be read against."""
        featurize = Pooled(encoders)
        x, _ = featurize_split(
            featurize, modality, self.cfg.split, self.cfg.samples, device=encoders.device,
            stream=self.cfg.stream,
        )  # fmt: skip
        if len(x) < 2:  # one sample has no spread
            return {}
        x = x.double()  # [S, D]
        return {**jackknifed(described, x), "width": x.shape[1]}

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Collapsed where the last figures raise the alarm, with the step it began; what was learned it cannot tell."""
        measured = [{k: number(v) for k, v in entry.items()} for entry in history if "std" in entry]
        since: dict[str, float] | None = None
        for entry in measured:
            alarmed = self._alarmed(entry, measured[0])
            since = (since or entry) if alarmed else None
        if not measured:
            return None
        last = measured[-1]
        if since is None:
            rank = (
                f"RankMe {last['rankme']:.1f} of {last['width']:.0f}, {measured[0]['rankme']:.1f} untrained"
            )
            text = f"cannot be told: not collapsed ({rank}), but what was learned needs labels to be measured"
            return Verdict(outcome="cannot be told", text=text)
        text = (
            f"collapsed at step {since['step']:.0f}: feature std {last['std']:.3f} (1 is spread out, "
            f"{measured[0]['std']:.3f} untrained), RankMe {last['rankme']:.1f} of {measured[0]['width']:.0f} "
            f"({measured[0]['rankme']:.1f} untrained)"
        )
        return Verdict(outcome="collapsed", text=text)

    def _alarmed(self, now: dict[str, float], first: dict[str, float]) -> bool:
        limits = {"std": self.cfg.min_std, "rankme": self.cfg.min_rank + 0.01 * now["width"]}
        floors = {
            "std": self.cfg.floor_std,
            "rankme": min(self.cfg.floor_rank, 1 + 0.1 * (now["width"] - 1)),
        }
        return any(
            math.isnan(now[name]) or now[name] < max(floors[name], min(limit, first[name] / 2))
            for name, limit in limits.items()
        )


def described(x: Tensor) -> dict[str, float]:
    """Return the figures of features x [S, D] by name."""
    rank = min(x.shape)
    return {
        "rankme": rankme(x),
        "std": feature_std(x),
        "cosine": mean_cosine(x),
        "alpha": alpha_req(x, max(1, rank // 20), max(2, rank // 2)),
    }


PARTS = 10
"""Parts of the samples that are left out in turn for an interval."""


def jackknifed(measure: Callable[[Tensor], dict[str, float]], x: Tensor) -> dict[str, float]:
    """Return figures of x [S, D] with S and their 95 % intervals; without intervals where S is less than 20."""
    figures = measure(x)
    if len(x) < 2 * PARTS:
        return {n: Estimate(v, len(x), (math.nan, math.nan)) for n, v in figures.items()}
    part = torch.arange(len(x)) % PARTS
    tries = [measure(x[part != i]) for i in range(PARTS)]
    found: dict[str, float] = {}
    for name, value in figures.items():
        values = np.array([figures[name] for figures in tries])
        error = math.sqrt((PARTS - 1) / PARTS * float(((values - values.mean()) ** 2).sum()))
        half = t_quantile(1 - LEVEL / 2, PARTS - 1) * error
        found[name] = Estimate(value, len(x), (value - half, value + half)) if error >= 0 else math.nan
    return found


def rankme(x: Tensor, eps: float = 1e-7) -> float:
    """exp of the entropy of the singular values of x [S, D]: 1 for one direction, D for all alike; NaN of NaN."""
    if not bool(x.isfinite().all()):
        return math.nan
    sigma = torch.linalg.svdvals(x.double())  # [min(S, D)]
    p = sigma / sigma.sum().clamp(min=torch.finfo(sigma.dtype).tiny) + eps
    return (-(p * p.log()).sum()).exp().item()


def feature_std(x: Tensor) -> float:
    """Std of every dimension of the l2-normalized x [S, D], its mean over dimensions, times sqrt(D)."""
    return F.normalize(x, dim=1).std(0).mean().item() * math.sqrt(x.shape[1])


def mean_cosine(x: Tensor) -> float:
    """Mean cosine of all pairs of different rows of x [S, D]."""
    return mean_cosines(x).item()


def mean_cosines(x: Tensor) -> Tensor:
    """Mean cosine of all pairs of different rows of each of x [..., S, D]: [...]."""
    s = x.shape[-2]
    z = F.normalize(x, dim=-1)
    return (z.sum(-2).square().sum(-1) - z.square().sum((-2, -1))) / (s * (s - 1))


def alpha_req(x: Tensor, first: int, last: int) -> float:
    """Decay of the eigenvalues of the covariance of x [S, D]: minus the slope of log value on log place.

    The line is fitted over places `first` to `last`, counted from 1, both included. NaN of values that are not finite.
    """
    if not bool(x.isfinite().all()):
        return math.nan
    eigenvalues = torch.linalg.svdvals((x - x.mean(0)).double()).square() / len(x)  # in decreasing order
    y = eigenvalues.clamp(min=1e-12)[first - 1 : last].log()
    place = torch.arange(first, first + len(y), dtype=y.dtype, device=y.device).log()
    place = place - place.mean()
    return -(place @ y / place.square().sum().clamp(min=1e-12)).item()
