"""Which block of an encoder says most? A k-NN of the mean token of every block, and a linear head on it if asked for.

The last block of masked and predictive encoders is rarely the best one (Chen et al. 2020, arXiv 2006.16241; Fini et al.
2025, arXiv 2411.14402). A tenth of the training samples chooses the block, as published "best layer" figures seldom do:
`top1` is what that block scores.
Shapes: S samples, Q queries, R rows, N tokens, D width, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.classified import Task, labeled_task, validation_mask
from multissl.evaluators.knn import knn_accuracy
from multissl.evaluators.linear_probe import probe_accuracy
from multissl.evaluators.neighbors import check_temperature
from multissl.evaluators.verdicts import learned
from multissl.inference import mean_token, stream_of
from multissl.statistics import LEVEL

Groups = np.ndarray | None
"""Of queries [Q]: those of one count together in the figure's interval."""
Accuracy = Callable[..., float]
"""From features [S, D] and labels [S] to the accuracy, in percent, on queries [Q, D] of labels [Q] and groups [Q]."""


class LayerProbe(Evaluator):
    """k-NN accuracy of every block's mean token, and of the one that training samples choose, in percent."""

    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "k-NN accuracy of the chosen block, %",
        "block": "block that training samples choose",
        "linear_top1": "accuracy of a linear head on the block chosen for it, %",
        "linear_block": "block that training samples choose for a linear head",
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
        linear: tuple[float, ...] = ()
        """Strengths of L2, such as 1e-3 1e-2 1e-1, of a linear head on every block, too, fitted and chosen among as
        the linear probe does; its figures begin with `linear_`. Empty: no such head."""
        margin: float = 2.0
        """Points above the untrained encoder that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.k < 1:
                raise ValueError(f"k={self.k}: want 1 or more")
            check_temperature(self.temperature)
            if min(self.linear, default=0) < 0:
                raise ValueError(f"linear={self.linear}: want strengths of 0 or more, or none")
            self.check_counts("bank", "queries")

    cfg: Config

    @property
    def selected_on(self) -> str:
        """The block, on a tenth of training."""
        return "a tenth of training"

    def metric_names(self) -> list[str]:
        """Those of the k-NN, and of the linear head where there is one."""
        return [name for name in self.titles if self.cfg.linear or not name.startswith("linear_")]

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`block1`, `block2` and so on from the input on, the chosen `block` and its `top1`, in percent."""
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

        def votes(x: Tensor, y: Tensor, queries: Tensor, truth: Tensor, groups: Groups = None) -> float:
            return knn_accuracy(x, y, queries, truth, (cfg.k,), cfg.temperature, device, groups)[cfg.k]

        def head(x: Tensor, y: Tensor, queries: Tensor, truth: Tensor, groups: Groups = None) -> float:
            x, y, queries, truth = (t.to(device) for t in (x, y, queries, truth))
            return probe_accuracy(x, y, queries, truth, cfg.linear, query_groups=groups)

        figures = figures_of(task, depth, votes)
        if cfg.linear:
            figures |= {f"linear_{name}": value for name, value in figures_of(task, depth, head).items()}
        return figures

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the chosen block is above that of the untrained encoder."""
        return learned("k-NN of the chosen block", "top1", history, self.cfg.margin, level)


def figures_of(task: Task, depth: int, accuracy: Accuracy) -> dict[str, float]:
    """Return the accuracy of each of `depth` blocks, side by side in features, and of the one that training chooses."""
    bank, queries = task.x.chunk(depth, 1), task.queries.chunk(depth, 1)
    scores = [accuracy(x, task.y, q, task.truth, task.groups) for x, q in zip(bank, queries, strict=True)]
    best = choose_block(bank, task.y, accuracy)
    every = {f"block{i}": score for i, score in enumerate(scores, start=1)}
    return {"top1": scores[best], "block": float(best + 1), **every}


def choose_block(blocks: Sequence[Tensor], labels: Tensor, accuracy: Accuracy) -> int:
    """Return which of blocks [S, D] classifies a tenth of training best by the other samples; of equals the last."""
    tenth = validation_mask(len(labels))
    scores = [accuracy(x[~tenth], labels[~tenth], x[tenth], labels[tenth]) for x in blocks]
    return max(range(len(blocks)), key=lambda i: (float(scores[i]), i))
