"""The contrastive kernel: anchors recognize their positives among the candidates of all ranks.

InfoNCE: van den Oord et al. 2018, arXiv 1807.03748, equation 4, in the log-sum-exp form
  loss_i = LSE over the denominator of s_ij  -  mean over positives p of s_ip,      s = cos(q, k) / temperature
with several positives outside the log (SupCon's L_out, arXiv 2004.11362, equation 2, the default) or inside it
(solo-learn). The denominator holds positives and negatives, or negatives only (DCL, arXiv 2110.06848, equation 4).
Means are over anchors: SimCLR's and MoCo v3's first code sum the directions, which is an option of the objectives.
Ranks: a rank scores its own anchors against gathered candidates, so that no rank holds all pairs of the batch, and the
gather's gradient makes the mean of the ranks' gradients that of the global batch.
Shapes: B samples on this rank, W ranks, Nq anchors, Nk candidates, P width.  State: `Scale` alone, a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.blocks import by_anchors, found_share
from multissl.losses.common import mean_of
from multissl.parallel.collectives import gather, row_labels
from multissl.precision import at_least_fp32

MultiPos = Literal["outside", "inside"]


def scores(q: Tensor, k: Tensor, temperature: float | Tensor = 1.0, bilinear: Tensor | None = None) -> Tensor:
    """Cosines of q [Nq, P] and k [Nk, P] over a temperature, [Nq, Nk]; with `bilinear` [P, P] it is q W k^T (CURL).

    In fp32 or wider, under autocast too: bf16 inputs only bring their own rounding, at most 0.01 / temperature.
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k = at_least_fp32(q), at_least_fp32(k)
        q, k = (
            (F.normalize(q, dim=1), F.normalize(k, dim=1))
            if bilinear is None
            else (q @ at_least_fp32(bilinear), k)
        )
        return q @ k.mT / temperature


def nce(
    s: Tensor,
    pos: Tensor,
    neg: Tensor,
    multi_pos: MultiPos = "outside",
    decoupled: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """The loss of every anchor, [Nq], from scores s [Nq, Nk] and masks of positives and negatives, bool [Nq, Nk].

    `weight` [Nq] multiplies the positives' part (DCLW). An anchor without positives, or without anything to tell them
    from, has no loss. bf16 scores are widened first: the result is that of fp32 within 0.01 * max |s|.
    """
    s = at_least_fp32(s)
    rivals = neg if decoupled else pos | neg
    mean = s.masked_fill(~pos, 0).sum(1) / pos.sum(1).clamp(min=1)  # [Nq]
    near = masked_lse(s, pos) if multi_pos == "inside" else mean
    near = near if weight is None else near * weight
    return (masked_lse(s, rivals) - near).masked_fill(~(pos.any(1) & rivals.any(1)), 0)


def masked_lse(s: Tensor, mask: Tensor) -> Tensor:
    """log-sum-exp over the candidates in `mask`, [Nq]; a finite number of no meaning for an anchor without any."""
    lowest = torch.where(mask.any(1, keepdim=True), -torch.inf, 0.0).to(s.dtype)  # [Nq, 1]
    return torch.where(mask, s, lowest).logsumexp(1)


@torch.no_grad()
def accuracy(s: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    """Return the fraction of anchors whose top-scoring candidate is a positive, of those that have one."""
    return found_share(hits(s, pos, neg), pos)


@torch.no_grad()
def hits(s: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    """Whether an anchor's highest score is a positive's, bool [Nq]."""
    best = s.masked_fill(~(pos | neg), -torch.inf).argmax(1, keepdim=True)  # [Nq, 1]
    return pos.gather(1, best)[:, 0]


@torch.no_grad()
def constant_loss(pos: Tensor, neg: Tensor, decoupled: bool = False) -> Tensor:
    """The mean loss of embeddings that are all alike: the log of the number of candidates."""
    rivals = neg if decoupled else pos | neg
    logs = rivals.sum(1).clamp(min=1).float().log()  # [Nq]
    return logs.sum() / rivals.any(1).sum().clamp(min=1)


class Relations(NamedTuple):
    """Which candidates of all ranks are which to this rank's samples; bool [B, W*B] each."""

    same: Tensor
    """The sample itself and those of the same sample_id."""
    apart: Tensor
    """Negatives: neither the same sample nor of the same group_id."""


def relations(
    rows: int,
    sample_ids: Sequence[Tensor] = (),
    group_ids: Sequence[Tensor] = (),
    device: torch.device | None = None,
) -> Relations:
    """Relations of this rank's B=`rows` samples; ids are int64 [B], one an occasion to be equal. Gathers the ids."""
    same = match(torch.stack([row_labels(rows, device), *sample_ids], 1))
    return Relations(same, ~same if not group_ids else ~(same | match(torch.stack([*group_ids], 1))))


def match(ids: Tensor) -> Tensor:
    """Whether any of the ids [B, n] equals a candidate's, bool [B, W*B]."""
    everyone = gather(ids)  # [W*B, n]
    return torch.stack([a[:, None] == b for a, b in zip(ids.T, everyone.T, strict=True)]).any(0)


def one_way(
    q: Tensor,
    k: Tensor,
    relation: Relations,
    temperature: float | Tensor,
    keep: Tensor | None = None,
    multi_pos: MultiPos = "outside",
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of anchors q [B, P] against k [B, P] of all ranks, the same rows being positives.

    Rows outside `keep` (bool [B]) are neither anchors nor candidates. As exact in half precision as `scores`.
    """
    pos, neg = relation
    if keep is not None:
        real = gather(keep.long()).bool()  # [W*B]
        pos, neg = pos & real & keep[:, None], neg & real & keep[:, None]
    everyone = gather(k)  # [W*B, P]

    def table(q: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
        s = scores(q, everyone, temperature)
        return nce(s, pos, neg, multi_pos), hits(s, pos, neg)

    loss, found = by_anchors(table, q, pos, neg)
    return mean_of(loss, keep), found
