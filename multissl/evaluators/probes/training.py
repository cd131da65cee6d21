"""Many heads trained in one pass: each batch goes to all of them, and none changes another.

The sum of their losses has the gradient of each, and AdamW moves every parameter by its own; so a grid of learning
rates and decays costs one pass over the data. CAPI (Darcet et al. 2025, arXiv 2502.08769), V-JEPA 2 and DINOv2 train
theirs so.
Shapes: S training samples, B samples of a batch, C classes, T trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.evaluators.several_classes import mean_precision

REFERENCE_BATCH = 256
"""Learning rates are those of a batch of this size."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""From scores and truth of a batch to a number."""
Logits = Callable[[nn.Module, Tensor], Tensor]
"""From a head and positions of samples [B] to scores [B, C]."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A head and how it is trained."""

    head: nn.Module
    lr: float
    weight_decay: float = 0.0


class Choice(NamedTuple):
    """The trial that did best where the choice is made."""

    trial: Trial
    accuracy: float
    """There, from 0 to 1; the mean average precision where samples have several classes."""


def trials_of(
    build: Callable[[], nn.Module], rates: Sequence[float], decays: Sequence[float], seed: int
) -> list[Trial]:
    """Return a trial for every pair of learning rate and decay; all heads begin alike, whatever the grid."""
    trials = []
    for lr, decay in product(rates, decays):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trials.append(Trial(build(), lr, decay))
    return trials


def train_trials(
    trials: Sequence[Trial],
    logits: Logits,
    rows: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch: int,
    warmup: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    seed: int = 0,
    loss_of: Loss = F.cross_entropy,
    reference_batch: int = REFERENCE_BATCH,
) -> None:
    """Train all heads on the samples `rows` (positions int64 [n] among labels [S, ...]); vectors have no decay.

    Learning rates are those of a batch of `reference_batch`, or of any where it is 0. They rise on a line during a
    share of the steps and fall on a cosine to 0 after.
    """
    batch = min(batch, len(rows))
    groups = []
    for trial in trials:
        parameters = [p for p in trial.head.parameters() if p.requires_grad]
        lr = trial.lr * (batch / reference_batch if reference_batch else 1.0)
        for many, decay in ((True, trial.weight_decay), (False, 0.0)):
            some = [p for p in parameters if (p.ndim > 1) is many]
            groups.append({"params": some, "lr": lr, "peak": lr, "weight_decay": decay})
        trial.head.train()
    solver = torch.optim.AdamW([g for g in groups if g["params"]], betas=betas)
    generator = torch.Generator().manual_seed(seed)
    rising = int(warmup * steps)
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        for step in range(steps):
            while len(order) < batch:
                order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
            chosen, order = rows[order[:batch]], order[batch:]
            share = (step + 1) / rising if step < rising else falling(step - rising, steps - rising)
            for group in solver.param_groups:
                group["lr"] = group["peak"] * share
            truth = labels[chosen]
            loss = torch.stack([loss_of(logits(t.head, chosen), truth) for t in trials]).sum()
            solver.zero_grad()
            loss.backward()
            solver.step()


def falling(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step of a cosine to 0."""
    return (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def scores_of(head: nn.Module, logits: Logits, rows: Tensor, batch: int = 256) -> Tensor:
    """Return a head's scores [n, C] of samples `rows` [n]."""
    head.eval()
    return torch.cat([logits(head, some) for some in rows.split(batch)])


@torch.no_grad()
def hits(head: nn.Module, logits: Logits, rows: Tensor, labels: Tensor, batch: int = 256) -> Tensor:
    """Return whether a head finds the classes of samples `rows` [n] among labels: bool [n]; never by scores of NaN."""
    head.eval()
    found = []
    for some in rows.split(batch):
        scores = logits(head, some)
        found.append((scores.argmax(1) == labels[some]) & scores.isfinite().all(1))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.bool)


def choose(trials: Sequence[Trial], logits: Logits, rows: Tensor, labels: Tensor) -> Choice:
    """Return the trial that finds most classes of samples `rows`; the first of equals.

    Where samples have several classes (labels bool [S, C]) it is that of the highest mean average precision.
    """
    if labels.dtype == torch.bool:
        made = [mean_precision(scores_of(t.head, logits, rows), labels[rows]) for t in trials]
        scores = [-math.inf if math.isnan(value) else value for value in made]
    else:
        scores = [float(hits(t.head, logits, rows, labels).double().mean()) for t in trials]
    best = max(range(len(trials)), key=lambda i: scores[i])
    return Choice(trials[best], scores[best])
