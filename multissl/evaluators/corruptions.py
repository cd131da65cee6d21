"""How much of the accuracy is left where pictures are noisy, blurred, pale or badly compressed.

Hendrycks and Dietterich 2019, arXiv 1903.12261 (ImageNet-C), with corruptions made on the spot (`corrupting`). A linear
classifier is fitted to clean training features, its strength chosen on a tenth of them, and sees no corrupted picture.
Pictures are corrupted as they are shown, after the cut and before they are normalized, and keep 8 bits, as clean ones
do here. `over15` is the mean over the fifteen corruptions of the published figure and `over19` over the four extra ones
too, each where all of them are made: not the published mCE, as motion blur, snow, frost and spatter are likenesses and
nothing is divided by AlexNet's errors, which are of ImageNet (`robustness.mean_corruption_error` does that).
Shapes: S training samples, Q queries, K conditions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.preparation import Preparation
from multissl.contract.verdict import Verdict
from multissl.evaluators.classified import Task, measurable, task_of
from multissl.evaluators.corrupting import CORRUPTIONS, FIFTEEN, NINETEEN, SEVERITIES, corrupt
from multissl.evaluators.linear_probe import choose_l2, fit_logistic, standardized
from multissl.evaluators.probes.trained import nothing
from multissl.evaluators.verdicts import MAJORITY, learned
from multissl.inference import Pooled, drawn, featurized, labeled_split, pooled, stream_of
from multissl.registry import suggest
from multissl.statistics import LEVEL


class Corruptions(Evaluator):
    """Accuracy under corruptions, in percent, and beside that of clean pictures."""

    fits = True
    version = 2
    titles: ClassVar[dict[str, str]] = {
        "top1": "accuracy under corruptions, mean, %",
        "clean": "accuracy of clean pictures, %",
        "ratio": "accuracy under corruptions, share of the clean one, %",
        "over15": "accuracy under the fifteen of ImageNet-C, three of them likenesses, mean, %",
        "over19": "accuracy under the nineteen of ImageNet-C, four of them likenesses, mean, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the corruptions."""

        corruptions: tuple[str, ...] = FIFTEEN
        """Which are made, by default fifteen; speckle_noise, gaussian_blur, spatter_like and saturate are four more."""
        severities: tuple[int, ...] = SEVERITIES
        """How strong they are, 1 to 5."""
        l2: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001, 0.0001)
        """Strengths of the classifier's penalty to choose from."""
        max_steps: int = 200
        """Steps of L-BFGS."""
        train: int = 5_000
        """Training samples of the classifier, drawn with a fixed seed; 0: all."""
        queries: int = 500
        """Samples of the split, each of which is corrupted in all ways, drawn with a fixed seed; 0: all."""
        split: str = "val"
        """Which pictures are corrupted."""
        margin: float = 2.0
        """Points above the untrained encoder that would matter."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("train", "queries")
            for name in self.corruptions:
                if name not in CORRUPTIONS:
                    raise ValueError(
                        f"corruptions has {name!r}, which cannot be made{suggest(name, [*CORRUPTIONS])}"
                    )
            if not self.corruptions or not self.severities or not {*self.severities} <= {*SEVERITIES}:
                raise ValueError(
                    f"corruptions={self.corruptions}, severities={self.severities}: want one or more of each, "
                    "severities of 1 to 5"
                )
            if not self.l2 or not min(self.l2) >= 0 or self.max_steps < 1:
                raise ValueError(
                    f"l2={self.l2}, max_steps={self.max_steps}: want strengths of 0 or more, 1 or more steps"
                )

        @property
        def published(self) -> dict[str, tuple[str, ...]]:
            """Return the published sets of which every corruption is made, by the name of their figure."""
            sets = {"over15": FIFTEEN, "over19": NINETEEN}
            return {name: each for name, each in sets.items() if {*each} <= {*self.corruptions}}

    cfg: Config

    @property
    def selected_on(self) -> str:
        """The strength of the penalty."""
        return "none" if len(self.cfg.l2) == 1 else "a tenth of training"

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1` over all corruptions, `clean`, `ratio`, means over published sets, every corruption and severity."""
        cfg, device = self.cfg, encoders.device
        if not self.labeled(modality, cfg.split, "train"):
            return {}
        stream = stream_of(modality, cfg.stream)
        preparation = self._preparation(modality, stream)
        if preparation is None:
            return {}
        conditions = [(name, severity) for name in cfg.corruptions for severity in cfg.severities]

        def under_all(views: Views) -> Tensor:
            return corrupted(encoders, modality, views, preparation, conditions)  # [R, 1 + K, D]

        x, y = labeled_split(Pooled(encoders), modality, "train", cfg.train, device=device, stream=stream)
        places = drawn(len(modality.dataset(cfg.split)), cfg.queries)
        made = featurized(under_all, modality, cfg.split, places, 16, device, stream)
        known = made.labels >= 0
        shown = made.features[known]  # [Q, 1 + K, D]
        task = Task(x, y, shown[:, 0], made.labels[known], made.groups[known].numpy())
        if not measurable(self, task, cfg.split):
            return {}
        weight, bias = self._fitted(x, y, task.classes)
        queries = standardized(x, shown.flatten(0, 1))[1]
        guesses = (queries @ weight.T + bias).argmax(1).unflatten(0, (-1, 1 + len(conditions)))
        right = 100.0 * (guesses == task.truth[:, None]).double().numpy()  # [Q, 1 + K]
        return self._figures(right, conditions, task.groups)

    def metric_names(self) -> list[str]:
        """Those of the means, and of every corruption."""
        cfg = self.cfg
        each = [f"{name}/{severity}" for name in cfg.corruptions for severity in cfg.severities]
        return ["top1", "clean", "ratio", *cfg.published, *cfg.corruptions, *each]

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The accuracy of the most frequent class, which no corruption changes."""
        cfg = self.cfg
        if not self.labeled(modality, cfg.split, "train"):
            return {}
        task = task_of(
            self, nothing, modality, split=cfg.split, train=cfg.train, queries=cfg.queries, device="cpu"
        )
        return {} if task is None else {MAJORITY: task.majority}

    def baseline_names(self, modality: Modality) -> list[str]:
        """That of the most frequent class."""
        return [MAJORITY]

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last mean is above that of the untrained encoder and the most frequent class."""
        return learned("accuracy under corruptions", "top1", history, self.cfg.margin, level)

    def _preparation(self, modality: Modality, stream: str) -> Preparation | None:
        """Return how pictures become views; None, with a warning, where samples are no pictures."""
        shape = modality.streams()[stream].shape
        channels = shape[0] if len(shape) == 3 else 0
        if channels not in (1, 3):
            self.warn_nothing_to_measure(
                f"corruptions are of pictures of 1 or 3 channels, {stream} has {shape}"
            )
            return None
        return modality.preparation(stream)

    def _fitted(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Return weight [C, D] and bias [C] of the classifier of standardized clean features."""
        cfg = self.cfg
        l2 = choose_l2(x, y, cfg.l2, classes, cfg.max_steps)
        return fit_logistic(standardized(x)[0], y, l2, classes, cfg.max_steps)

    def _figures(
        self, right: np.ndarray, conditions: list[tuple[str, int]], groups: np.ndarray
    ) -> dict[str, float]:
        """Return the figures of what is right [Q, 1 + K], clean pictures first, in percent."""
        clean, rest = right[:, 0], right[:, 1:]
        by_name: Mapping[str, list[int]] = {
            name: [i for i, (n, _) in enumerate(conditions) if n == name] for name, _ in conditions
        }
        figures: dict[str, Any] = {
            "top1": estimate(rest.mean(1), groups),
            "clean": estimate(clean, groups),
            "ratio": 100 * float(rest.mean() / clean.mean()) if clean.any() else float("nan"),
        }
        for figure, names in self.cfg.published.items():
            figures[figure] = estimate(rest[:, [i for name in names for i in by_name[name]]].mean(1), groups)
        figures |= {name: estimate(rest[:, at].mean(1), groups) for name, at in by_name.items()}
        return figures | {
            f"{name}/{severity}": estimate(rest[:, i], groups)
            for i, (name, severity) in enumerate(conditions)
        }


def corrupted(
    encoders: FrozenEncoders, modality: Modality, views: Views, preparation: Preparation,
    conditions: list[tuple[str, int]],
) -> Tensor:  # fmt: skip
    """Return features [R, 1 + K, D] of clean pictures and of the same ones under every condition."""
    shown = modality.pictures(views)
    if shown is None or shown.shape[1:3] != views.x.shape[2:]:
        raise ValueError("corruptions want a modality whose views can be shown as pictures")
    pictures = torch.from_numpy(shown).permute(0, 3, 1, 2).contiguous()  # uint8 [R, 3, H, W]
    channels = views.x.shape[1]
    constants = {name: value.to(views.x.device) for name, value in preparation.constants.items()}
    rows = [pictures]
    rows += [
        torch.stack([corrupt(picture, name, severity) for picture in pictures])
        for name, severity in conditions
    ]
    features = []
    for each in rows:
        x, _ = preparation(each[:, :channels].to(views.x.device), None, constants)
        features.append(pooled(encoders, replace(views, x=x)))
    return torch.stack(features, 1)
