"""Depth by one linear map of every patch token: scores of bins, of which the expectation is the depth.

DINOv2 (Oquab et al. 2024, arXiv 2304.07193, section 7.4, `dinov2/eval/depth`): the pooled feature stands beside every
patch, scores of 256 even bins are enlarged four times before they are normalized. Its linear map comes behind the
enlargement, which is the same, as both are linear and the weights of a bilinear mean add up to 1. Optimizer, batch norm
and the loss without gradients are DINOv3's (`eval/depth/configs/config-nyu.yaml`), which trains 38,400 steps on crops.
Features are those of clean views, made once.
Shapes: S pictures, B of a batch, D width, h x w tokens, K bins, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import HasPixelLabels
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.dense.depth import expected_depth, gradient_loss, pixel_scores, scale_invariant_loss
from multissl.evaluators.dense.grids import applied, check_grid, chosen_head, selected_on
from multissl.evaluators.dense.reading import (
    Dense,
    WithPooled,
    pixel_modality,
    raw_patches,
    read_dense,
    space_of,
)
from multissl.evaluators.probes.training import Logits, Trial, train_trials, trials_of
from multissl.evaluators.verdicts import GATES, UNTRAINED, first_and_last, judged
from multissl.inference import Featurize, Tokens
from multissl.statistics import LEVEL

ENLARGED = 4
"""Times that scores are enlarged before they are normalized."""
SCORES = ("rmse", "abs_rel", "a1", "a2", "a3", "log_10", "rmse_log", "silog", "sq_rel", "mae")


class LinearDepth(Evaluator):
    """Errors of depths that a linear head finds, means over pictures; lower is better, but for a1 to a3."""

    fits = True
    titles: ClassVar[dict[str, str]] = {"rmse": "linear depth, root mean square error"}

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of linear depth."""

        size: int | tuple[int, int] = 0
        """Side of the views in pixels, or their height and width; 0: the modality's own size."""
        low: float = 1e-3
        """Depth of the first bin, in the unit of the maps."""
        high: float = 0.0
        """Depth of the last bin; 0: the largest of the training maps. NYU: 10, KITTI: 80."""
        bins: int = 256
        """Bins between the two."""
        pooled: bool = True
        """Put the pooled feature beside every patch, as DINOv2 does."""
        gradients: float = 0.0
        """Weight of the loss of gradients."""
        lr: tuple[float, ...] = (1e-3, 1e-2)
        """Learning rates to choose from, whatever the batch; DINOv3: 3e-4."""
        weight_decay: tuple[float, ...] = (1e-4,)
        """Weight decays to choose from, 0 or more; vectors have none."""
        steps: int = 400
        """Steps of training."""
        batch: int = 16
        """Pictures of a step."""
        warmup: float = 1 / 3
        """Share of the steps in which the learning rate rises."""
        seed: int = 0
        """Of the heads' first weights and of the batches."""
        train: int = 500
        """Training pictures, drawn with a fixed seed; 0: all."""
        queries: int = 500
        """Pictures of the split, drawn with a fixed seed; 0: all."""
        split: str = "val"
        """Which pictures are scored; the head sees the train split alone."""
        margin: float = 0.02
        """Share of the untrained encoder's error that would matter."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("train", "queries")
            space_of(self.size)
            if not self.low > 0 or (self.high and self.high <= self.low) or self.bins < 2:
                raise ValueError(
                    f"low={self.low}, high={self.high}, bins={self.bins}: want 0 < low < high (or high=0, measured) "
                    "and 2 or more bins"
                )
            check_grid(self)
            if self.steps < 1 or self.batch < 2 or not 0 <= self.warmup < 1:
                raise ValueError(
                    f"steps={self.steps}, batch={self.batch}, warmup={self.warmup}: want 1 or more steps, 2 or more "
                    "pictures, a share below 1"
                )

    cfg: Config

    @property
    def selected_on(self) -> str:
        """A tenth of training, where there is something to choose."""
        return selected_on(self.cfg)

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`rmse` and the other usual scores of depth, means over pictures; `lr` where it was chosen."""
        if (pictures := pixel_modality(self, modality, "depth", "train", self.cfg.split)) is None:
            return {}
        featurize = WithPooled(encoders) if self.cfg.pooled else Tokens(encoders)
        device = encoders.device
        train, scored = self._read(featurize, pictures, device)
        if not self._measurable(train, scored):
            return {}
        made, chosen = self._fitted(train, scored, device)
        return scores_of(made, scored) | chosen

    def metric_names(self) -> list[str]:
        """Those of the scores."""
        return [*SCORES]

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The error of the pixels of patches, of the mean depth, and of the mean depth at every place."""
        if (pictures := pixel_modality(self, modality, "depth", "train", self.cfg.split)) is None:
            return {}
        raw = raw_patches(modality, self.cfg.stream)
        if raw is None:
            return {}
        train, scored = self._read(raw, pictures, torch.device("cpu"))
        if not self._measurable(train, scored):
            return {}
        known = train.labels > 0
        mean = train.labels[known].mean()
        at_place = train.labels.sum(0) / known.sum(0).clamp(min=1)
        at_place = torch.where(known.any(0), at_place, mean).expand_as(scored.labels)
        made, _ = self._fitted(train, scored, torch.device("cpu"))
        return {
            "raw": scores_of(made, scored)["rmse"],
            "constant": scores_of(mean.expand_as(scored.labels), scored)["rmse"],
            "position": scores_of(at_place, scored)["rmse"],
        }

    def baseline_names(self, modality: Modality) -> list[str]:
        """Those of what has to be beaten."""
        return ["raw", "constant", "position"]

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last error is below those of the untrained encoder, the raw input and the mean depth."""
        if (measured := first_and_last("rmse", history)) is None:
            return None
        first, last = measured
        gates = {UNTRAINED: first["rmse"]}
        gates |= {
            said: first[name]
            for name, said in ((*GATES.items(), ("constant", "the mean depth's")))
            if name in first
        }
        return judged(
            "error of linear depth", last["rmse"], gates, {}, margin=self.cfg.margin * abs(first["rmse"]), level=level,
            unit="", rising=False, digits=3,
        )  # fmt: skip

    def _read(
        self, featurize: Featurize, modality: HasPixelLabels, device: torch.device
    ) -> tuple[Dense, Dense]:
        """Return the training and the scored pictures."""
        cfg = self.cfg
        train, scored = (
            read_dense(
                self, featurize, modality, split, "depth", limit=limit, size=space_of(cfg.size), device=device
            )
            for split, limit in (("train", cfg.train), (cfg.split, cfg.queries))
        )
        return train, scored

    def _measurable(self, train: Dense, scored: Dense) -> bool:
        known = train.labels[train.labels > 0]
        if len(train.labels) < 2 or not len(known) or float(known.min()) == float(known.max()):
            self.warn_nothing_to_measure(f"{len(train.labels)} training pictures whose depths do not differ")
            return False
        if not bool((scored.labels > 0).any()):
            self.warn_nothing_to_measure(f"no pixel of the {self.cfg.split} split has a depth")
            return False
        return True

    def _fitted(self, train: Dense, scored: Dense, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        """Return the depths [S, H, W] that the chosen head finds, and what was chosen."""
        low, high = self.cfg.low, self.cfg.high or float(train.labels.max())

        def trained(pictures: Dense, rates: Sequence[float], decays: Sequence[float]) -> list[Trial]:
            return self._trained(pictures, high, rates, decays, device)

        def worth(head: nn.Module, tenth: Dense) -> float:
            return -float(scores_of(depths_by(head, tenth, low, high, device), tenth)["rmse"])

        head, chosen = chosen_head(train, self.cfg, trained, worth)
        return depths_by(head, scored, low, high, device), chosen

    def _trained(
        self,
        train: Dense,
        high: float,
        rates: Sequence[float],
        decays: Sequence[float],
        device: torch.device,
    ) -> list[Trial]:
        cfg = self.cfg
        trials = trials_of(partial(DepthHead, train.tokens.shape[1], cfg.bins), rates, decays, cfg.seed)
        for trial in trials:
            trial.head.to(device)

        def loss(depths: Tensor, truth: Tensor) -> Tensor:
            return depth_loss(depths, truth.to(depths.device)[:, None], cfg.gradients)

        train_trials(
            trials, finder(train, cfg.low, high, device), torch.arange(len(train.labels)), train.labels,
            steps=cfg.steps, batch=cfg.batch, warmup=cfg.warmup, betas=(0.9, 0.99), seed=cfg.seed, loss_of=loss,
            reference_batch=0,
        )  # fmt: skip
        return trials


class DepthHead(nn.Module):
    """Batch norm and a linear map of every patch to the scores of bins."""

    def __init__(self, dim: int, bins: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(dim), nn.Conv2d(dim, bins, 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Patches [B, D, h, w] to scores [B, K, h, w]."""
        return self.linear(self.norm(x))


def finder(pictures: Dense, low: float, high: float, device: torch.device) -> Logits:
    """Return the function that gives the depths [B, 1, H, W] that a head finds in some pictures."""
    size = pictures.labels.shape[1:]

    def depths(head: nn.Module, rows: Tensor) -> Tensor:
        scores = head(pictures.tokens[rows].to(device))
        large = F.interpolate(scores, scale_factor=ENLARGED, mode="bilinear", align_corners=False)
        return F.interpolate(expected_depth(large, low, high), size, mode="bilinear", align_corners=False)

    return depths


def depth_loss(depths: Tensor, truth: Tensor, gradients: float) -> Tensor:
    """Return the scale-invariant loss with that of gradients, by weight; 0 where fewer than two pixels have a depth."""
    if int((truth > 0).sum()) < 2:
        return depths.sum() * 0
    loss = scale_invariant_loss(depths, truth)
    return loss + gradients * gradient_loss(depths, truth) if gradients else loss


def depths_by(head: nn.Module, pictures: Dense, low: float, high: float, device: torch.device) -> Tensor:
    """Return the depths float32 [S, H, W] that a head finds in pictures."""
    find = finder(pictures, low, high, device)
    return applied(head, find, len(pictures.labels), lambda depths: depths[:, 0])


def scores_of(depths: Tensor, pictures: Dense) -> dict[str, float]:
    """Return the usual scores, means over the pictures that have pixels with a depth; a1 to a3 as shares."""
    some = (pictures.labels > 0).flatten(1).any(1)
    each = [
        pixel_scores(made[truth > 0], truth[truth > 0])
        for made, truth in zip(depths[some], pictures.labels[some], strict=True)
    ]
    groups = pictures.groups[some.numpy()]
    return {
        name: estimate(np.array([float(scores[name]) for scores in each]), groups, percent=False)
        for name in SCORES
    }
