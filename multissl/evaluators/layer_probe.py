"""Which block of an encoder says most? A k-NN of the mean token of every block.

The last block of masked and predictive encoders is rarely the best one (Chen et al. 2020, arXiv 2006.16241; Fini et al.
2025, arXiv 2411.14402). A tenth of the training samples chooses the block, as published "best layer" figures seldom do:
`top1` is what that block scores.
Shapes: S samples, Q queries, R rows, N tokens, D width, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.classified import labeled_task, validation_mask
from multissl.evaluators.knn import knn_accuracy
from multissl.evaluators.neighbors import check_temperature
from multissl.evaluators.verdicts import learned
from multissl.inference import mean_token, stream_of
from multissl.statistics import LEVEL


class LayerProbe(Evaluator):
    """k-NN accuracy of every block's mean token, and of the one that training samples choose, in percent."""

    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "k-NN accuracy of the chosen block, %",
        "block": "block that training samples choose",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the probe of blocks."""

        k: int = 20
        """Neighbors that vote."""
        temperature: float = 0.07
        """Temperature of the votes: a neighbour counts exp((s - 1) / temperature) at cosine s."""
        split: str = "val"
        """Where the queries come from; the bank is the train split."""
        bank: int = 5_000
        """Samples of the bank, drawn from the train split with a fixed seed; 0: all."""
        queries: int = 2_000
        """Queries, drawn from the split with a fixed seed; 0: all."""
        margin: float = 2.0
        """Points above the untrained encoder that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.k < 1:
                raise ValueError(f"k={self.k}: want 1 or more")
            check_temperature(self.temperature)
            self.check_counts("bank", "queries")

    cfg: Config

    @property
    def selected_on(self) -> str:
        """The block, on a tenth of training."""
        return "a tenth of training"

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`block1`, `block2` and so on from the input on, the chosen `block`, and its `top1`; percent."""
        cfg = self.cfg
        if not self.labeled(modality, cfg.split, "train"):
            return {}
        depth = encoders.depths.get(stream_of(modality, cfg.stream), 0)
        if not depth:
            self.warn_nothing_to_measure("the encoder hands out no blocks")
            return {}

        def blocks(views: Views) -> Tensor:
            (features,) = encoders.encode([views], inner=depth)
            return torch.cat([mean_token(tokens, views.valid) for tokens in features.inner], 1)

        device = encoders.device
        task = labeled_task(
            self,
            blocks,
            modality,
            split=cfg.split,
            train=cfg.bank,
            queries=cfg.queries,
            device=device,
            least=2,
        )
        if task is None:
            return {}
        bank = task.x.chunk(depth, 1)
        accuracies = [
            knn_accuracy(x, task.y, q, task.truth, (cfg.k,), cfg.temperature, device, task.groups)[cfg.k]
            for x, q in zip(bank, task.queries.chunk(depth, 1), strict=True)
        ]
        best = choose_block(bank, task.y, cfg.k, cfg.temperature)
        every = {f"block{i}": accuracy for i, accuracy in enumerate(accuracies, start=1)}
        return {"top1": accuracies[best], "block": float(best + 1), **every}

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the chosen block is above that of the untrained encoder."""
        return learned("k-NN of the chosen block", "top1", history, self.cfg.margin, level)


def choose_block(blocks: Sequence[Tensor], labels: Tensor, k: int, temperature: float) -> int:
    """Return which of blocks [S, D] classifies a tenth of training best by the other samples; of equals the last."""
    tenth = validation_mask(len(labels))
    scores = [
        knn_accuracy(x[~tenth], labels[~tenth], x[tenth], labels[tenth], (k,), temperature)[k] for x in blocks
    ]
    return max(range(len(blocks)), key=lambda i: (float(scores[i]), i))
