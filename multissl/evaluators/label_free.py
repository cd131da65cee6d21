"""Scores of an encoder without any label: LiDAR, alpha-ReQ by its authors' fit, CLID. RankMe is `collapse`'s.

Formulas and sources are in `spectra`. They rank encoders of one kind by what a probe would say, in the papers' claims
and not always; none is a verdict. LiDAR looks at global views of each sample, which the modality makes as for training.
CLID's parts are not added up: the paper divides the dimension by the largest among the encoders it compares. The order
in which samples are learned one by one, and the clusters, are our own.
Shapes: S samples, V views of each, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl import registry
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.plans import ViewPlan
from multissl.devices import copied
from multissl.evaluators.spectra import (
    fit_power_law,
    intrinsic_dimension,
    learnability,
    lidar,
    variance_shares,
)
from multissl.inference import Pooled, collated, drawn, featurize_split, stream_of
from multissl.random import RowRandom

LAST_PLACE = 100
"""Of the eigenvalues that alpha-ReQ is fitted to, from the 11th on; of narrower features all that there are."""


class LabelFree(Evaluator):
    """LiDAR, alpha-ReQ and CLID of pooled features."""

    titles: ClassVar[dict[str, str]] = {
        "lidar": "LiDAR",
        "alpha": "alpha-ReQ (weighted fit)",
        "learnability": "CLID: cluster learnability, %",
        "dimension": "CLID: intrinsic dimension (TwoNN)",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the scores without labels."""

        split: str = "val"
        """Split whose samples are looked at."""
        samples: int = 1_000
        """Samples of the split, drawn with a fixed seed; 0: all. LiDAR and alpha-ReQ want more than the width."""
        views: int = 8
        """Augmented views of each sample for LiDAR, whose paper makes 50; 0 leaves LiDAR out."""
        delta: float = 1e-4
        """Added to the covariance within samples for LiDAR."""
        first: int = 11
        """Place of the first eigenvalue that alpha-ReQ is fitted to."""
        clusters: int = 0
        """Clusters whose learnability is measured; 0: the root of the number of samples."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.samples < 0 or 0 < self.samples < 4:
                raise ValueError(f"samples={self.samples}: want 0 (all) or 4 and more")
            if self.views < 0 or self.views == 1:
                raise ValueError(f"views={self.views}: want 0 (no LiDAR) or 2 and more")
            if not self.delta > 0:
                raise ValueError(f"delta={self.delta}: want more than 0, 1e-4 is usual")
            if self.first < 1 or self.clusters < 0 or self.clusters == 1:
                raise ValueError(
                    f"first={self.first}, clusters={self.clusters}: want 1 or more, and 0 (the root) or 2 and more"
                )

    cfg: Config

    def metric_names(self) -> list[str]:
        """Without LiDAR where that is left out."""
        return [name for name in self.titles if name != "lidar" or self.cfg.views]

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`alpha`, `learnability`, `dimension` and, where the modality makes views, `lidar`."""
        cfg = self.cfg
        x, _ = featurize_split(
            Pooled(encoders), modality, cfg.split, cfg.samples, device=encoders.device, stream=cfg.stream
        )
        if len(x) < 4:
            self.warn_nothing_to_measure(
                f"{len(x)} samples of the {cfg.split} split can be read, want 4 or more"
            )
            return {}
        figures = {**self._spectrum(x), **self._clusters(x)}
        if cfg.views:
            figures["lidar"] = lidar(self._views(encoders, modality), cfg.delta)
        return figures

    def _spectrum(self, x: Tensor) -> dict[str, float]:
        """Return alpha of features [S, D], where there are eigenvalues enough for a line."""
        shares = variance_shares(x)
        first, last = self.cfg.first, min(LAST_PLACE, len(shares), len(x) - 1)
        if last - first < 2:
            first = 1
        return {"alpha": fit_power_law(shares, first, last).alpha}

    def _clusters(self, x: Tensor) -> dict[str, float]:
        """Return learnability and dimension of features [S, D]."""
        unit = F.normalize(x.double(), dim=1)
        count = min(self.cfg.clusters or round(len(x) ** 0.5), len(unit.unique(dim=0)))
        k_means = registry.require("sklearn.cluster").KMeans
        clusters = torch.from_numpy(k_means(count, n_init=1, random_state=0).fit_predict(unit.numpy()))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        right = learnability(unit[order], clusters[order])
        return {"learnability": estimate(100.0 * right.numpy()), "dimension": intrinsic_dimension(x)}

    @torch.no_grad()
    def _views(self, encoders: FrozenEncoders, modality: Modality) -> Tensor:
        """Return pooled features [S, V, D] of augmented views of samples."""
        cfg, stream = self.cfg, stream_of(modality, self.cfg.stream)
        data, plan = modality.dataset(cfg.split), ViewPlan(num_global=cfg.views)
        places = drawn(len(data), cfg.samples)
        parts = []
        for start in range(0, len(places), 64):
            samples = [data[i] for i in places[start : start + 64]]
            readable = collated(modality, samples, [stream])[1]
            if not readable:
                continue
            rng = RowRandom((0, start), 0, len(readable), len(readable))
            raw = modality.collate(readable, {stream: plan}, rng)
            batch = modality.views(copied(raw, encoders.device), {stream: plan}, rng.to(encoders.device))
            (views,) = (v for v in batch if v.role == "global" and v.stream == stream)
            pooled = encoders.encode([views])[0].pooled.float().cpu()
            parts.append(pooled.unflatten(0, (cfg.views, -1)).transpose(0, 1))
        return torch.cat(parts)
