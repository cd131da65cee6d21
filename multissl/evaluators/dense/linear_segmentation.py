"""Linear segmentation: a batch norm and one linear map of every patch token, enlarged to the pixels.

DINOv2 (Oquab et al. 2024, arXiv 2304.07193, section 7.4) and DINOv3 (Siméoni et al. 2025, arXiv 2508.10104), whose
`eval/segmentation/configs/config-ade20k-linear-training.yaml` gives optimizer, rate, decay, dropout and first weights.
Features are those of clean views, made once: the published code resizes, crops and flips anew at every step, trains
40,000 steps, and scores windows that slide over the picture.
Shapes: S pictures, B of a batch, D width, h x w tokens, H, W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.abilities import IGNORED
from multissl.evaluators.dense.grids import applied, check_grid, chosen_head, selected_on
from multissl.evaluators.dense.heads import LinearSegmentationHead
from multissl.evaluators.dense.reading import Dense
from multissl.evaluators.dense.segmentation import (
    Predicted,
    Segmentation,
    mean_iou,
)
from multissl.evaluators.probes.training import Logits, Trial, train_trials, trials_of


class LinearSegmentation(Segmentation):
    """MIoU of a linear head on patch tokens, in percent; areas are summed over pictures."""

    what = "linear segmentation"
    titles: ClassVar[dict[str, str]] = {
        "miou": "linear segmentation, mIoU, %",
        "pixel_accuracy": "linear segmentation, accuracy of pixels, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Segmentation.Config):
        """Options of linear segmentation."""

        lr: tuple[float, ...] = (1e-3,)
        """Learning rates to choose from, whatever the batch."""
        weight_decay: tuple[float, ...] = (1e-3,)
        """Weight decays to choose from, 0 or more; vectors have none."""
        steps: int = 400
        """Steps of training; DINOv3 trains 40,000."""
        batch: int = 16
        """Pictures of a step."""
        warmup: float = 0.0375
        """Share of the steps in which the learning rate rises."""
        dropout: float = 0.1
        """Share of the channels that are dropped while it trains."""
        seed: int = 0
        """Of the heads' first weights and of the batches."""

        def __post_init__(self) -> None:
            Segmentation.Config.__post_init__(self)
            check_grid(self)
            if self.steps < 1 or self.batch < 2:
                raise ValueError(
                    f"steps={self.steps}, batch={self.batch}: want 1 or more steps, 2 or more pictures"
                )
            if not 0 <= self.dropout < 1 or not 0 <= self.warmup < 1:
                raise ValueError(
                    f"dropout={self.dropout}, warmup={self.warmup}: want 0 or more and less than 1"
                )

    cfg: Config

    @property
    def selected_on(self) -> str:
        """A tenth of training, where there is something to choose."""
        return selected_on(self.cfg)

    def predict(self, train: Dense, scored: Dense, classes: int, device: torch.device) -> Predicted:
        """Return the classes that the chosen head, trained on all of training, gives."""

        def trained(pictures: Dense, rates: Sequence[float], decays: Sequence[float]) -> list[Trial]:
            return self._trained(pictures, classes, rates, decays, device)

        def worth(head: nn.Module, tenth: Dense) -> float:
            return mean_iou(predicted_by(head, tenth, device), tenth.labels, classes)

        head, chosen = chosen_head(train, self.cfg, trained, worth)
        return Predicted(predicted_by(head, scored, device), chosen)

    def _trained(
        self,
        train: Dense,
        classes: int,
        rates: Sequence[float],
        decays: Sequence[float],
        device: torch.device,
    ) -> list[Trial]:
        cfg = self.cfg
        build = partial(LinearSegmentationHead, train.tokens.shape[1], classes, cfg.dropout)
        trials = trials_of(build, rates, decays, cfg.seed)
        for trial in trials:
            trial.head.to(device)
        train_trials(
            trials, enlarged(train, device), torch.arange(len(train.labels)), train.labels, steps=cfg.steps,
            batch=cfg.batch, warmup=cfg.warmup, betas=(0.9, 0.999), seed=cfg.seed, loss_of=pixel_loss,
            reference_batch=0,
        )  # fmt: skip
        return trials


def enlarged(pictures: Dense, device: torch.device) -> Logits:
    """Return the function that gives a head the tokens of some pictures, and enlarges its scores to the pixels."""
    size = pictures.labels.shape[1:]

    def logits(head: nn.Module, rows: Tensor) -> Tensor:
        scores = head(pictures.tokens[rows].to(device))
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)

    return logits


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the pixels that have a class; 0 where none has."""
    labels = labels.to(scores.device).long()
    total = F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def predicted_by(head: nn.Module, pictures: Dense, device: torch.device) -> Tensor:
    """Return the classes uint8 [S, H, W] that a head gives pictures."""
    logits = enlarged(pictures, device)
    return applied(head, logits, len(pictures.labels), lambda scores: scores.argmax(1).to(torch.uint8))
