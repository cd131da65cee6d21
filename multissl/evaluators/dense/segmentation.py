"""What protocols of segmentation share: options, the classes, what a figure has to beat, areas summed over pictures.

Shapes: S pictures, H, W pixels, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from multissl.contract.abilities import IGNORED, HasPixelLabels
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.dense.areas import Areas, mean_iou_of
from multissl.evaluators.dense.reading import (
    Dense,
    check_classes,
    count_classes,
    pixel_modality,
    raw_patches,
    read_dense,
    space_of,
)
from multissl.evaluators.verdicts import MAJORITY, learned
from multissl.inference import Featurize, Tokens
from multissl.statistics import LEVEL

FEWEST = 2
"""Training pictures: one to learn from, one to choose on."""


class Predicted(NamedTuple):
    """What was made of the scored pictures."""

    classes: Tensor
    """uint8 [S, H, W]"""
    chosen: dict[str, float]
    """Hyperparameters, and what else is worth a figure."""


class Segmentation(Evaluator):
    """Base of protocols that find the class of every pixel."""

    fits = True
    what: ClassVar[str]
    """What sentences call it."""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of segmentation."""

        size: int | tuple[int, int] = 0
        """Side of the views in pixels, or their height and width; 0: the modality's own size."""
        classes: int = 0
        """Number of classes, 0 to classes - 1; 0: one more than the largest of the training masks."""
        train: int = 500
        """Training pictures, drawn with a fixed seed; 0: all."""
        queries: int = 500
        """Pictures of the split, drawn with a fixed seed; 0: all."""
        split: str = "val"
        """Which pictures are scored; what learns sees the train split alone."""
        margin: float = 1.0
        """Points of mIoU above the untrained encoder that would matter."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("train", "queries")
            if not 0 <= self.classes <= IGNORED:
                raise ValueError(f"classes={self.classes}: want 0 (counted) to {IGNORED}")
            space_of(self.size)

    cfg: Any

    @abstractmethod
    def predict(self, train: Dense, scored: Dense, classes: int, device: torch.device) -> Predicted:
        """Return the classes of the scored pictures, whose labels it must not read."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`miou` and `pixel_accuracy` in percent, with what was chosen."""
        if (pictures := pixel_modality(self, modality, "classes", "train", self.cfg.split)) is None:
            return {}
        return self._measured(Tokens(encoders), pictures, encoders.device)

    def metric_names(self) -> list[str]:
        """Those of the scores."""
        return ["miou", "pixel_accuracy"]

    def baselines(self, modality: Modality) -> dict[str, float]:
        """MIoU of the pixels of patches, of the most frequent class, and of the most frequent one at every place."""
        if (pictures := pixel_modality(self, modality, "classes", "train", self.cfg.split)) is None:
            return {}
        raw = raw_patches(modality, self.cfg.stream)
        if raw is None:
            return {}
        device = torch.device("cpu")
        train, scored = (self._read(raw, pictures, split, device) for split in ("train", self.cfg.split))
        classes = self._classes(train, scored)
        if not classes:
            return {}
        counts = torch.stack([(train.labels == c).sum(0) for c in range(classes)])  # [C, H, W]
        at_place = counts.argmax(0).to(torch.uint8).expand_as(scored.labels)
        common = torch.full_like(scored.labels, int(counts.sum((1, 2)).argmax()))
        return {
            "raw": self._scores(self.predict(train, scored, classes, device).classes, scored, classes)[
                "miou"
            ],
            MAJORITY: self._scores(common, scored, classes)["miou"],
            "position": self._scores(at_place, scored, classes)["miou"],
        }

    def baseline_names(self, modality: Modality) -> list[str]:
        """Those of what has to be beaten."""
        return ["raw", MAJORITY, "position"]

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last mIoU is above the untrained encoder, the raw input and the most frequent class."""
        return learned(self.what, "miou", history, self.cfg.margin, level)

    def _measured(
        self, featurize: Featurize, modality: HasPixelLabels, device: torch.device
    ) -> dict[str, float]:
        train = self._read(featurize, modality, "train", device)
        scored = self._read(featurize, modality, self.cfg.split, device)
        classes = self._classes(train, scored)
        if not classes:
            return {}
        made = self.predict(train, scored, classes, device)
        return self._scores(made.classes, scored, classes) | made.chosen

    def _read(
        self, featurize: Featurize, modality: HasPixelLabels, split: str, device: torch.device
    ) -> Dense:
        cfg = self.cfg
        limit = cfg.train if split == "train" else cfg.queries
        return read_dense(
            self, featurize, modality, split, "classes", limit=limit, size=space_of(cfg.size), device=device
        )

    def _classes(self, train: Dense, scored: Dense) -> int:
        """Return the number of classes; 0, with a warning, where nothing can be learned."""
        present = torch.unique(train.labels[train.labels != IGNORED])
        if len(present) < 2 or len(train.labels) < FEWEST:
            self.warn_nothing_to_measure(
                f"{len(train.labels)} training pictures with masks of {len(present)} classes"
            )
            return 0
        classes = self.cfg.classes or count_classes(train.labels)
        check_classes(train, classes)
        check_classes(scored, classes)
        if not bool((scored.labels != IGNORED).any()):
            self.warn_nothing_to_measure(f"no pixel of the {self.cfg.split} split has a class")
            return 0
        return classes

    def _scores(self, predicted: Tensor, scored: Dense, classes: int) -> dict[str, float]:
        areas = Areas.of_pictures(predicted, scored.labels, classes)
        some = areas.labeled.sum(1) > 0  # a picture of ignored pixels alone says nothing of accuracy
        right = areas.both.sum(1)[some] / areas.labeled.sum(1)[some]
        whole = 100 * float(areas.sum().accuracy())
        shares = areas.labeled.sum(1)[some].double()
        # the figure is over pixels: a picture counts by how many it has
        weighted = 100 * right.double() * shares / shares.mean()
        return {
            "miou": mean_iou_of(areas, scored.groups),
            "pixel_accuracy": estimate(
                weighted.numpy(), scored.groups[some.numpy()], percent=False, value=whole
            ),
        }


def mean_iou(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Return mIoU of pictures [S, H, W] together, from 0 to 1; 0 where no pixel has a class."""
    return float(Areas.of(predicted.long(), labels.long(), classes).mean_iou().nan_to_num())
