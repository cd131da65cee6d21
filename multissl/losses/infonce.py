"""InfoNCE over the views of a batch: NT-Xent for any number of views, DCL, DCLW and ReLIC's divergence.

Chen et al., ICML 2020, arXiv 2002.05709 (NT-Xent); Yeh et al., ECCV 2022, arXiv 2110.06848 (DCL, equation 6 for DCLW);
Mitrovic et al., ICLR 2021, arXiv 2010.07922 (ReLIC).
Shapes: V views, B samples on this rank, W ranks, P width.  Collectives: gathers of embeddings, with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multissl.losses.nce import MultiPos, Relations, accuracy, constant_loss, mean_of, nce, scores
from multissl.parallel.collectives import gather, row_labels


def infonce_terms(
    z: Tensor,
    relation: Relations,
    temperature: float | Tensor,
    present: Tensor | None = None,
    multi_pos: MultiPos = "outside",
    decoupled: bool = False,
    sigma: float = 0.0,
    other_view_only: bool = False,
    relic: bool = False,
    bilinear: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms `nce` and, where asked, `relic`, and the statistic `accuracy`, of V views z [V, B, P] of this rank.

    `present` bool [V, B] leaves missing views out. bf16 z gives the fp32 loss within 0.02 / temperature.
    """
    views, rows, width = z.shape
    everyone = gather(z.transpose(0, 1).contiguous()).transpose(0, 1)  # [V, W*B, P]
    s = scores(z.reshape(-1, width), everyone.reshape(-1, width), temperature, bilinear)  # [V*B, V*W*B]
    blocks = (views, rows, views, everyone.shape[1])
    own_view = torch.eye(views, dtype=torch.bool, device=z.device)[:, None, :, None]  # [V, 1, V, 1]
    own_row = row_labels(rows, z.device)[:, None] == torch.arange(blocks[3], device=z.device)  # [B, W*B]
    idle = own_view.expand(blocks) if other_view_only else own_view & own_row[:, None]  # anchors themselves
    if present is not None:
        real = gather(present.T.long().contiguous()).T.bool()  # [V, W*B]
        idle = idle | ~(present[:, :, None, None] & real)
    pos, neg = ((m[:, None] & ~idle).flatten(2).flatten(0, 1) for m in relation)  # [V*B, V*W*B]
    weight, keep = None, None if present is None else pos.any(1)  # [V*B]
    if sigma:
        cosine = (s * temperature).masked_fill(~pos, 0).sum(1) / pos.sum(1).clamp(min=1)
        weight = far_weights(cosine, sigma, keep)
    values = nce(s, pos, neg, multi_pos, decoupled, weight)
    terms = {"nce": mean_of(values, keep)}
    if relic:
        whole = None if present is None else present.all(0)  # [B]
        terms["relic"] = divergence(s.view(blocks), relation, whole)
    return terms, {"accuracy": accuracy(s, pos, neg), "constant": constant_loss(pos, neg, decoupled)}


@torch.no_grad()
def far_weights(cosine: Tensor, sigma: float, keep: Tensor | None = None) -> Tensor:
    """DCLW's weights 2 - N * softmax(cosine / sigma) over the N anchors of all ranks, from this rank's cosines [n].

    Anchors outside `keep` (bool [n]) are none of the N.
    """
    mine = cosine / sigma
    mine = mine if keep is None else mine.masked_fill(~keep, -torch.inf)
    everyone = gather(mine)  # [N]
    share = (mine - everyone.logsumexp(0)).exp().nan_to_num(0)  # NaN: nobody has an anchor
    return 2 - (everyone > -torch.inf).sum() * share


def divergence(s: Tensor, relation: Relations, whole: Tensor | None = None) -> Tensor:
    """KL between p_ab, a sample's view a over the samples' views b, and p_ba; the mean over ordered pairs a != b.

    s [V, B, V, W*B]; samples outside `whole` (bool [B]: all their views exist) are left out. In fp32.
    """
    used = relation.same | relation.apart  # [B, W*B]
    used = used if whole is None else used & gather(whole.long()).bool()
    lowest = torch.finfo(s.dtype).min / 2  # finite: a row may have nothing to look at
    logs = s.masked_fill(~used[:, None], lowest).log_softmax(3).transpose(1, 2)  # [V, V, B, W*B]
    kl = (logs.exp() * (logs - logs.transpose(0, 1))).masked_fill(~used, 0).sum(3)  # [V, V, B], 0 for a = b
    pairs = len(s) * (len(s) - 1)
    return mean_of(kl.sum((0, 1)) / pairs, whole)
