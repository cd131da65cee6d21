"""Scores over folds: each group of samples is scored once, by a head that it neither trained nor chose.

As in HEAR (Turian et al. 2022, arXiv 2203.03022, `heareval`) the fold after the scored one chooses the head that the
others train, and the figure is the mean over folds, as sets of recordings (ESC-50, UrbanSound8K) are published with
them.
Shapes: S samples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from multissl.contract.estimate import estimate
from multissl.evaluators.probes.trained import Labeled, TrainedProbe

FEWEST_FOLDS = 3
"""One that is scored, one that chooses, and one that trains."""


def joined(*parts: Labeled) -> Labeled:
    """Return the samples of several splits as those of one."""
    inputs = tuple(torch.cat(each) for each in zip(*(part.inputs for part in parts), strict=True))
    groups = np.concatenate([part.groups for part in parts])
    return Labeled(inputs, torch.cat([part.labels for part in parts]), groups)


def folds_of(groups: np.ndarray) -> list[int]:
    """Return the folds that samples [S] are of. Raises a ValueError where there are too few, or samples of none."""
    folds = sorted({*groups.tolist()})
    if len(folds) < FEWEST_FOLDS or folds[0] < 0:
        found = f"{len(folds)} groups" if folds and folds[0] >= 0 else "samples without one"
        raise ValueError(
            f"folds=True: want {FEWEST_FOLDS} groups or more and one for every sample, as a column `group` of a table "
            f"or --modality.group_pattern of names says them; got {found}"
        )
    return folds


def over_folds(probe: TrainedProbe, whole: Labeled, device: torch.device) -> dict[str, float]:
    """Return `top1` over all samples, each by its fold's head, and `over_folds`; of several classes `map` over folds.

    `left_out` counts the classes that no sample of a fold has, of all folds together.
    """
    folds = folds_of(whole.groups)
    measured = []
    for place, fold in enumerate(folds):
        scored, following = whole.groups == fold, folds[(place + 1) % len(folds)]
        train = part_of(whole, ~scored)
        trial = probe.fitted(train, torch.from_numpy(train.groups == following), device)
        measured.append(probe.measured(trial.head, part_of(whole, scored), device))
    if whole.labels.dtype == torch.bool:
        means = [float(each[each.isfinite()].mean()) for each in measured]
        left_out = sum(int(each.isnan().sum()) for each in measured)
        return {"map": estimate(100.0 * np.array(means), percent=False), "left_out": float(left_out)}
    right = np.zeros(len(whole.labels))
    for fold, each in zip(folds, measured, strict=True):
        right[whole.groups == fold] = each.numpy()
    means = [float(each.double().mean()) for each in measured]
    return {
        "top1": estimate(100.0 * right, whole.groups),
        "over_folds": estimate(100.0 * np.array(means), percent=False),
    }


def part_of(whole: Labeled, rows: np.ndarray) -> Labeled:
    """Return some of the samples, by flags [S]."""
    keep: Tensor = torch.from_numpy(rows)
    return Labeled(tuple(each[keep] for each in whole.inputs), whole.labels[keep], whole.groups[rows])
