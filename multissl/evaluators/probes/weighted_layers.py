"""A learned weighted sum of all blocks, and a linear head on its mean token: which blocks does a task ask for?

SUPERB's protocol for utterances (Yang et al., Interspeech 2021, arXiv 2105.01051) with s3prl's `Featurizer`: one weight
for each block, by softmax from equal ones, trained with the head, while the encoder stays as it is. There the head is a
projection to 256 channels, a mean over time and a linear map; both maps are linear, and so is one. Training and choice
are `probes.training`'s (a grid of rates, a tenth of the training samples chooses) in place of 200,000 steps of Adam at
one rate. What goes into the first block is not handed out by encoders, and not among the layers.
Shapes: S samples, R rows, N tokens, D width, L blocks, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.probes.trained import Labeled, TrainedProbe
from multissl.inference import drawn, featurized, mean_token, stream_of


class WeightedLayers(TrainedProbe):
    """Accuracy of a linear classifier on a learned weighted sum of all blocks, in percent."""

    what = "linear probe of a weighted sum of blocks"
    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "accuracy of a linear head on the weighted sum of blocks, %",
        "block": "block of the largest weight",
        "weight": "its weight, %",
        "lr": "learning rate of the chosen head",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(TrainedProbe.Config):
        """Options of the weighted sum of blocks."""

        lr: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
        """Learning rates to choose from, for a batch of 256."""
        weight_decay: tuple[float, ...] = (0.0,)
        """Weight decays to choose from, 0 or more; vectors have none."""
        normalize: bool = False
        """Give the tokens of every block a mean of 0 and a deviation of 1 over channels first, as s3prl can."""

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1`, the chosen `lr` and `weight_decay`, the `block` of the largest `weight`, all weights in percent."""
        if not encoders.depths.get(stream_of(modality, self.cfg.stream), 0):
            self.warn_nothing_to_measure("the encoder hands out no blocks")
            return {}
        return super().run(encoders, modality, progress)

    def metric_names(self) -> list[str]:
        """Those of every encoder."""
        return [*super().metric_names(), "block", "weight"]

    def read(self, encoders: FrozenEncoders, modality: Modality, split: str, limit: int) -> Labeled:
        """Return the mean token of every block [S, L, D]."""
        depth = encoders.depths[stream_of(modality, self.cfg.stream)]

        def blocks(views: Views) -> Tensor:
            (features,) = encoders.encode([views], inner=depth)
            parts = features.inner
            if self.cfg.normalize:
                parts = tuple(F.layer_norm(tokens.float(), tokens.shape[-1:]) for tokens in parts)
            return torch.stack([mean_token(tokens, views.valid) for tokens in parts], 1)

        places = drawn(len(modality.dataset(split)), limit)
        made = featurized(blocks, modality, split, places, device=encoders.device, stream=self.cfg.stream)
        return self.labeled_samples(modality, split, made, (made.features,))

    def builders(self, train: Labeled, classes: int) -> list[Callable[[], nn.Module]]:
        """Return the one kind of head that there is."""
        layers, width = train.inputs[0].shape[1:]
        return [partial(LayerSum, layers, width, classes)]

    def describe(self, head: nn.Module) -> dict[str, float]:
        """Return the block of the largest weight, its weight, and those of all blocks, in percent."""
        weights = (100 * cast(LayerSum, head).shares()).tolist()
        best = max(range(len(weights)), key=lambda i: weights[i])
        every = {f"weight{i}": weight for i, weight in enumerate(weights, start=1)}
        return {"block": float(best + 1), "weight": weights[best], **every}


class LayerSum(nn.Module):
    """A weighted sum of layers and a linear classifier."""

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers))
        self.classifier = nn.Linear(width, classes)

    def shares(self) -> Tensor:
        """Return the weights of the layers [L], whose sum is 1."""
        return self.scores.detach().softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        """Layers [R, L, D] to scores [R, C]."""
        return self.classifier(torch.einsum("l,rld->rd", self.scores.softmax(0), x))
