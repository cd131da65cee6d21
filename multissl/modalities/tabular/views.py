"""How views of table rows are drawn: which cells are replaced and by what, masks, subsets, splits.

Shapes: B samples of this rank, V views, R = V*B rows, C columns, S rows of the bank.  State: none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Mask, Views
from multissl.contract.plans import ViewPlan
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.rows import group_size
from multissl.modalities.views import pack_masks
from multissl.random import RowRandom
from multissl.sources.copies import split_together


def clean(plan: ViewPlan, rows: Tensor) -> dict[str, Any] | None:
    """The fields of clean views [V*B, C]."""
    if not plan.num_clean:
        return None
    return {"x": rows.repeat(plan.num_clean, 1), "role": "clean", "num_views": plan.num_clean}


def global_views(
    plan: ViewPlan, rows: Tensor, bank: Tensor, cfg: Any, rng: RowRandom
) -> dict[str, Any] | None:
    """The fields of global views: rows [B, C] corrupted as the options say, or under a mask as the plan says."""
    count = plan.num_global
    if not count:
        return None
    fields: dict[str, Any] = {"role": "global", "num_views": count}
    masks = _masks(plan, rows, cfg, rng)
    if plan.corrupt:
        if plan.num_masks > 1 or not masks:
            raise ValueError("tables corrupt cells under one mask: ask for num_masks=1 and a mask_ratio")
        by = _by(cfg)
        hit = masks[0].hidden
        parts = [corrupted(rows, bank, h, by, rng, cfg.mask_group) for h in hit.chunk(count)]
        fields["x"] = torch.cat(parts)
        changed = hit & (fields["x"] != rows.repeat(count, 1))  # a cell that got its own value is no error
        masks = [pack_masks(changed, len(masks[0].index))]
    elif cfg.corrupt_by == "subset":
        fields["x"], fields["valid"] = subsets(rows, bank, count, cfg, rng)
    elif cfg.corrupt_by == "hide":
        fields["x"], fields["valid"] = without(rows, _shares(cfg, count), rng)
    else:
        made = [swap(rows, bank, s, cfg.corrupt_by, rng, cfg.mask_group) for s in _shares(cfg, count)]
        fields["x"] = torch.cat(made)
    if plan.target:
        fields["target"] = rows.repeat(count, 1)  # [R, C], as they were before corruption
    return {**fields, "masks": tuple(masks)}


def local_views(
    plan: ViewPlan, rows: Tensor, bank: Tensor, cfg: Any, rng: RowRandom
) -> dict[str, Any] | None:
    """The fields of local views: most cells swapped for those of other rows."""
    if not plan.num_local:
        return None
    by = _by(cfg)
    x = [swap(rows, bank, 1 - cfg.local_columns, by, rng, cfg.mask_group) for _ in range(plan.num_local)]
    return {"x": torch.cat(x), "role": "local", "num_views": plan.num_local}


def _by(cfg: Any) -> str:
    """How cells are replaced where a plan or a local view asks for it."""
    return "marginal" if cfg.corrupt_by in ("subset", "hide") else cfg.corrupt_by


def _shares(cfg: Any, count: int) -> list[float]:
    """The corruption of each of `count` global views."""
    return [cfg.corruption[min(i, len(cfg.corruption) - 1)] for i in range(count)]


def _masks(plan: ViewPlan, rows: Tensor, cfg: Any, rng: RowRandom) -> list[Mask]:
    if plan.mask_ratio is None:
        return []
    drawn = draw_masks(plan, "random", (1, rows.shape[1]), cfg.mask_group, rng.fork("masks"))
    return [mask.to(rows.device) for mask in drawn]


def choose(columns: int, share: float, rng: RowRandom) -> Tensor:
    """bool [B, C] with round(share * C) True cells in every row."""
    return rng.rand(columns).argsort(1).argsort(1) < round(share * columns)


def swap(rows: Tensor, bank: Tensor, share: float, by: str, rng: RowRandom, group: int) -> Tensor:
    """rows [B, C] with a share of the cells replaced."""
    return corrupted(rows, bank, choose(rows.shape[1], share, rng), by, rng, group)


def corrupted(rows: Tensor, bank: Tensor, hit: Tensor, by: str, rng: RowRandom, group: int) -> Tensor:
    """rows [B, C] with the cells `hit` [B, C] taken from the same columns of other rows.

    marginal: each from any row of bank [S, C]; donor: all of a row from one of its rows; permute: each column of a
    group of samples is shuffled (also across ranks the same, for a rank owns whole groups).
    """
    columns = rows.shape[1]
    match by:
        case "marginal":
            other = bank.gather(0, rng.integers(len(bank), columns))
        case "donor":
            other = bank[rng.integers(len(bank))]
        case "permute":
            size = group_size(group, rng)
            if size < 2:
                raise ValueError(
                    f"modality.corrupt_by=permute shuffles inside groups, and a batch of {rng.total} has groups "
                    "of 1: choose a batch_size with a divisor up to modality.mask_group, or corrupt_by=marginal"
                )
            within = rng.rand(columns).unflatten(0, (-1, size)).argsort(1)  # [groups, size, C]
            other = rows.unflatten(0, (-1, size)).gather(1, within).flatten(0, 1)
        case _:
            raise ValueError(f"modality.corrupt_by={by!r}: want marginal, permute or donor")
    return torch.where(hit, other, rows)


def subsets(rows: Tensor, bank: Tensor, count: int, cfg: Any, rng: RowRandom) -> tuple[Tensor, Tensor]:
    """`count` views [V*B, C] of overlapping runs of columns, 0 elsewhere, and which columns those are, bool [V*B, C].

    Runs start at equal steps from the first to the last column of an order shuffled once.
    """
    columns = rows.shape[1]
    order = torch.from_numpy(np.random.default_rng(0).permutation(columns))
    parts, valids = [], []
    for view, share in enumerate(_shares(cfg, count)):
        keep = max(1, round((1 - share) * columns))
        start = round(view * (columns - keep) / max(count - 1, 1))
        kept = torch.zeros(columns, dtype=torch.bool)
        kept[order[start : start + keep]] = True
        kept = kept.to(rows.device)
        x = swap(rows, bank, cfg.subset_noise, "marginal", rng, cfg.mask_group)
        parts.append(torch.where(kept, x, torch.zeros_like(x)))
        valids.append(kept.expand(len(rows), -1))
    return torch.cat(parts), torch.cat(valids)


def without(rows: Tensor, shares: Sequence[float], rng: RowRandom) -> tuple[Tensor, Tensor]:
    """A view [B, C] for each share, stacked, with random cells left out (0), and which are not, bool [V*B, C].

    How many is drawn for every row by itself, evenly from none to the share.
    """
    columns, valids = rows.shape[1], []
    for share in shares:
        count = (rng.rand(1) * (share * columns + 1)).floor()  # [B, 1]
        valids.append(rng.rand(columns).argsort(1).argsort(1) >= count)
    valid = torch.cat(valids)
    return rows.repeat(len(shares), 1) * valid, valid


def one_hot(views: Views, cardinalities: Sequence[int]) -> Tensor:
    """Cells [R, C] as features [R, F]: numbers as they are, each category's levels as 0 and 1."""
    cells = zip(views.x.float().unbind(1), cardinalities, strict=True)
    return torch.cat([F.one_hot(c.long(), n).float() if n else c[:, None] for c, n in cells], 1)


def split(
    counts: tuple[int, int, int], groups: Sequence[str] | None, copies: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Rows of train, val and test; `counts` are those of the files for each, one after the other.

    Without a file for validation every tenth row (or group of rows) of the training files is; without one for the test
    the row after it is for that. Equal rows (equal numbers in `copies`, int64 [S]) stay together. Rows of such a file
    whose group is among the others, or which are copies of them, are left to it: the files were split by their maker.
    """
    first, val, test = counts
    turn_val = 0 if not val else -1
    turn_test = -1 if test else turn_val + 1
    last = max(turn_val, turn_test)  # of the turns that are held out
    turns = split_together(
        lambda keys: np.minimum(_ranks(keys) % 10, last + 1),
        range(first) if groups is None else groups[:first],
        np.arange(first) if copies is None else copies[:first],
    )
    rows = np.arange(first)
    return {
        "train": rows[turns > last],
        "val": np.arange(first, first + val) if val else rows[turns == turn_val],
        "test": np.arange(first + val, first + val + test) if test else rows[turns == turn_test],
    }


def _ranks(keys: Sequence[Hashable]) -> np.ndarray:
    """Return the place of every key among the different ones, in the order in which they appear: int64 [n]."""
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys], dtype=np.int64)
