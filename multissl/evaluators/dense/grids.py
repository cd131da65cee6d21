"""What protocols that train a linear head on tokens share: their grid of rates and decays, and the choice among it.

Shapes: as in `reading`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from multissl.evaluators.dense.reading import BATCH, Dense, split_training
from multissl.evaluators.probes.training import Logits, Trial


class Grid(Protocol):
    """The options by which heads are trained."""

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]


Train = Callable[[Dense, Sequence[float], Sequence[float]], list[Trial]]
"""From pictures, rates and decays to a trained head for each pair."""


def check_grid(cfg: Grid) -> None:
    """Raise a ValueError where there is nothing to choose from, or a rate or decay that means nothing."""
    if not cfg.lr or not min(cfg.lr) > 0 or not cfg.weight_decay or min(cfg.weight_decay) < 0:
        raise ValueError(
            f"lr={cfg.lr}, weight_decay={cfg.weight_decay}: want one or more of each, rates above 0, "
            "decays of 0 or more"
        )


def selected_on(cfg: Grid) -> str:
    """Return what chooses: a tenth of training, where there is something to choose."""
    return "none" if len(cfg.lr) * len(cfg.weight_decay) == 1 else "a tenth of training"


def chosen_head(
    train: Dense, cfg: Grid, trained: Train, worth: Callable[[nn.Module, Dense], float]
) -> tuple[nn.Module, dict[str, float]]:
    """Return a head that is trained on all pictures, by the rate and decay worth most on a tenth, and these two.

    The first of equals is taken, and a worth that is not a number never before another; of one pair nothing is chosen.
    """
    if selected_on(cfg) == "none":
        return trained(train, cfg.lr, cfg.weight_decay)[0].head, {}
    most, tenth = split_training(train)
    trials = trained(most, cfg.lr, cfg.weight_decay)
    worths = [worth(trial.head, tenth) for trial in trials]
    best = trials[max(range(len(trials)), key=lambda i: -math.inf if math.isnan(worths[i]) else worths[i])]
    (trial,) = trained(train, (best.lr,), (best.weight_decay,))
    return trial.head, {"lr": best.lr, "weight_decay": best.weight_decay}


@torch.no_grad()
def applied(head: nn.Module, function: Logits, count: int, kept: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what a function of a head and rows gives for so many pictures, as `kept` keeps it of each batch."""
    head.eval()
    return torch.cat([kept(function(head, rows)).cpu() for rows in torch.arange(count).split(BATCH)])
