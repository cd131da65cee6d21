"""MLP probe: is what a linear classifier misses in the pooled features all the same?

Heads, rates and dropout are those of HEAR (Turian et al. 2022, arXiv 2203.03022, `heareval`): one or two hidden layers
of 1,024 with batch norm, ReLU and dropout 0.1, four learning rates, no decay. Features are standardized with the
training statistics, and training is `probes.training`'s with a fixed number of steps instead of a patience.
Shapes: S samples, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.probes.folds import joined, over_folds
from multissl.evaluators.probes.trained import Labeled, TrainedProbe, nothing
from multissl.evaluators.several_classes import PREVALENCE, have_several, prevalence
from multissl.evaluators.verdicts import MAJORITY, majority_accuracy
from multissl.inference import Pooled, drawn, featurized


class MLPProbe(TrainedProbe):
    """Accuracy of a small network on pooled features, or mAP of samples of several classes, in percent."""

    what = "MLP probe"
    fits = True
    reads = "pooled"
    titles: ClassVar[dict[str, str]] = {
        "top1": "MLP probe accuracy, %",
        "map": "MLP probe, mean average precision over classes, %",
        "over_folds": "MLP probe accuracy, mean over folds, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(TrainedProbe.Config):
        """Options of the MLP probe."""

        lr: tuple[float, ...] = (3.2e-3, 1e-3, 3.2e-4, 1e-4)
        """Learning rates to choose from, for a batch of 256."""
        weight_decay: tuple[float, ...] = (0.0,)
        """Weight decays to choose from, 0 or more; vectors have none."""
        layers: tuple[int, ...] = (1, 2)
        """Numbers of hidden layers to choose from."""
        hidden: int = 1024
        """Channels of a hidden layer."""
        dropout: float = 0.1
        """Share of the hidden channels that are dropped while it trains."""
        folds: bool = False
        """Take the groups of the train and the scored split together for folds, as HEAR does: each is scored once, by
        the head that the next one chooses and the others train."""

        def __post_init__(self) -> None:
            TrainedProbe.Config.__post_init__(self)
            if not self.layers or min(self.layers) < 1 or self.hidden < 1:
                raise ValueError(
                    f"layers={self.layers}, hidden={self.hidden}: want one or more numbers of layers and channels, "
                    "each 1 or more"
                )
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout={self.dropout}: want 0 or more and less than 1")

    cfg: Config

    @property
    def selected_on(self) -> str:
        """The next fold, or a tenth of training, where there is something to choose."""
        return "the fold after the scored one" if self.cfg.folds and self.choices > 1 else super().selected_on

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1`, or `map`, in percent, with the chosen `lr` and `weight_decay`, or the mean `over_folds`."""
        cfg = self.cfg
        if not cfg.folds:
            return super().run(encoders, modality, progress)
        if not have_several(modality, cfg.split, "train") and not self.labeled(modality, cfg.split, "train"):
            return {}
        sides = [
            self.read(encoders, modality, split, limit)
            for split, limit in (("train", cfg.train), (cfg.split, cfg.queries))
        ]
        return over_folds(self, joined(*sides), encoders.device)

    def metric_names(self) -> list[str]:
        """Those of the accuracy, and of what was chosen or the mean over folds."""
        return ["top1", "over_folds"] if self.cfg.folds else super().metric_names()

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The accuracy of the most frequent class, or how frequent several are, of what is scored."""
        cfg = self.cfg
        if not cfg.folds:
            return super().baselines(modality)
        several = have_several(modality, cfg.split, "train")
        if not several and not self.labeled(modality, cfg.split, "train"):
            return {}
        found = []
        for split, limit in (("train", cfg.train), (cfg.split, cfg.queries)):
            places = drawn(len(modality.dataset(split)), limit)
            made = featurized(nothing, modality, split, places, stream=cfg.stream)
            found.append(self.labeled_samples(modality, split, made, (made.features,)))
        whole = joined(*found)
        if several:
            return {PREVALENCE: prevalence(whole.labels)}
        return {MAJORITY: majority_accuracy(whole.labels, whole.labels, whole.groups)}

    @property
    def choices(self) -> int:
        """Return how many heads there are to choose from."""
        return len(self.cfg.lr) * len(self.cfg.weight_decay) * len(self.cfg.layers)

    def read(self, encoders: FrozenEncoders, modality: Modality, split: str, limit: int) -> Labeled:
        """Return pooled features [S, F]."""
        places = drawn(len(modality.dataset(split)), limit)
        made = featurized(
            Pooled(encoders), modality, split, places, device=encoders.device, stream=self.cfg.stream
        )
        return self.labeled_samples(modality, split, made, (made.features,))

    def builders(self, train: Labeled, classes: int) -> list[Callable[[], nn.Module]]:
        """Return a kind of head for each number of layers."""
        x = train.inputs[0]
        std = x.std(0, correction=0)
        scale = torch.where(std > 1e-6, 1 / std.clamp(min=1e-12), torch.zeros_like(std))
        return [partial(MLP, x.mean(0), scale, self.cfg, layers, classes) for layers in self.cfg.layers]


class MLP(nn.Module):
    """Hidden layers with batch norm, ReLU and dropout, and a linear classifier, on standardized features."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, cfg: MLPProbe.Config, layers: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        widths = [len(mean), *[cfg.hidden] * layers]
        self.hidden = nn.Sequential()
        for before, after in pairwise(widths):
            self.hidden.extend(
                [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(cfg.dropout)]
            )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features [R, F] to scores [R, C]."""
        return self.classifier(self.hidden((x - self.mean) * self.scale))
