"""The `forward` of objectives against slow loops: view by view, pair by pair, row by row, as the papers write it.

The losses have tests of their own; here it counts which views, heads, teachers and tokens they are called with. Heads
have batch norm, so that views which go through them together would be seen, and teachers differ from their students.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.plans import StreamSpec, ViewPlan
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.decoder import Decoder, places
from multissl.layers.heads import MLPHead
from multissl.modalities.image.crops import patchify
from multissl.modalities.masks import draw_masks
from multissl.objectives.barlow import BarlowTwins
from multissl.objectives.byol import BYOL
from multissl.objectives.clip import CLIP
from multissl.objectives.data2vec import Data2Vec
from multissl.objectives.infonce import InfoNCE
from multissl.objectives.mae import MAE
from multissl.objectives.moco import MoCo
from multissl.objectives.msn import MSN
from multissl.objectives.nnclr import NNCLR
from multissl.objectives.siglip import SigLIP
from multissl.objectives.swav import SwAV
from multissl.objectives.vicreg import VICReg
from multissl.random import RowRandom
from tests.objectives.contrast import START, batch_of, build

HEAD = MLPHead.Config(hidden=8, out=5, layers=2)
B, V = 8, 2


def apart(teacher: nn.Module | None) -> None:
    """Move a teacher away from its student."""
    if teacher is not None:
        for parameter in teacher.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)


def projections(head: Any, linear: Any, batch: Batch) -> list[Tensor]:
    """One view after the other through an encoder and a head."""
    return [head(linear(x)) for x in batch[0].x.chunk(batch[0].num_views)]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def nce(query: Tensor, positive: Tensor, negatives: list[Tensor], temperature: float) -> Tensor:
    """-log of the positive's share."""
    scores = torch.stack([cosine(query, k) / temperature for k in [positive, *negatives]])
    return torch.logsumexp(scores, 0) - scores[0]


def of(objective: Any, name: str) -> Any:
    return getattr(objective, name)["a"]


def test_byol_predicts_the_teacher_s_projection_of_the_other_view() -> None:
    encoders, objective = build(BYOL.Config(projector=HEAD, predictor=HEAD))
    apart(objective.teacher)
    batch = batch_of(B)
    z = projections(of(objective, "projectors"), encoders.get_submodule("a.linear"), batch)
    p = [of(objective, "predictors")(each) for each in z]
    teacher = objective.teacher
    t = projections(teacher["projectors"]["a"], teacher.encoders.get_submodule("a.linear"), batch)
    losses = [2 - 2 * cosine(p[a][i], t[1 - a][i]) for a in range(V) for i in range(B)]
    torch.testing.assert_close(objective(encoders, batch, START).total, torch.stack(losses).mean())


def test_simsiam_predicts_its_own_projection_of_the_other_view() -> None:
    encoders, objective = build(BYOL.Config(projector=HEAD, predictor=HEAD, target="student", scale=0.5))
    batch = batch_of(B)
    z = projections(of(objective, "projectors"), encoders.get_submodule("a.linear"), batch)
    p = [of(objective, "predictors")(each) for each in z]
    losses = [1 - cosine(p[a][i], z[1 - a][i]) for a in range(V) for i in range(B)]
    torch.testing.assert_close(objective(encoders, batch, START).total, torch.stack(losses).mean())


@pytest.mark.parametrize("symmetric", [False, True])
def test_moco_looks_for_the_teacher_s_key_of_the_other_view_in_its_queue(symmetric: bool) -> None:
    cfg = MoCo.Config(queue=24, projector=HEAD, symmetric=symmetric, temperature=0.2)
    encoders, objective = build(cfg)
    apart(objective.teacher)
    batch, queue = batch_of(B), objective.queue("a").rows.clone()
    q = projections(of(objective, "projectors"), encoders.get_submodule("a.linear"), batch)
    heads, teacher = objective.teacher["a_projector"], objective.teacher.encoders
    k = projections(heads, teacher.get_submodule("a.linear"), batch)
    losses = [
        nce(q[a][i], k[1 - a][i], list(queue), 0.2) for a in ((0, 1) if symmetric else (0,)) for i in range(B)
    ]
    torch.testing.assert_close(objective(encoders, batch, START).total, torch.stack(losses).mean())


def test_nnclr_contrasts_the_neighbor_of_a_view_with_predictions_of_the_other() -> None:
    encoders, objective = build(
        NNCLR.Config(queue=24, projector=HEAD, predictor=HEAD.replace(last_norm=False), temperature=0.2)
    )
    batch, queue = batch_of(B), list(of(objective, "queues").rows.clone())
    z = projections(of(objective, "projectors"), encoders.get_submodule("a.linear"), batch)
    p = [of(objective, "predictors")(each) for each in z]
    losses = []
    for a in range(V):
        for i in range(B):
            near = max(queue, key=lambda row: cosine(row, z[a][i]).item())
            others = [p[1 - a][j] for j in range(B) if j != i]
            losses.append(nce(near, p[1 - a][i], others, 0.2))
    torch.testing.assert_close(objective(encoders, batch, START).total, torch.stack(losses).mean())


def test_infonce_contrasts_both_views_with_all_others_of_the_batch() -> None:
    encoders, objective = build(InfoNCE.Config(projector=HEAD.replace(norm="none"), temperature=0.3))
    batch = batch_of(B)
    z = projections(of(objective, "projectors"), encoders.get_submodule("a.linear"), batch)
    losses = []
    for a in range(V):
        for i in range(B):
            others = [z[b][j] for b in range(V) for j in range(B) if j != i]
            losses.append(nce(z[a][i], z[1 - a][i], others, 0.3))
    torch.testing.assert_close(objective(encoders, batch, START).total, torch.stack(losses).mean())


def shared(objective: Any, encoders: Any, batch: Batch) -> list[Tensor]:
    """What one view of each of two streams becomes in the shared space."""
    return [objective.projectors[v.stream](encoders.get_submodule(f"{v.stream}.linear")(v.x)) for v in batch]


def test_siglip_asks_of_every_pair_whether_it_belongs_together() -> None:
    head = MLPHead.Config(out=5, layers=1, norm="none")
    encoders, objective = build(SigLIP.Config(projector=head, scale=3.0, bias=-1.5), "ab")
    batch = batch_of(B, "ab")
    a, b = shared(objective, encoders, batch)
    losses = torch.zeros(())
    for i in range(B):
        for j in range(B):
            logit = 3.0 * cosine(a[i], b[j]) - 1.5
            losses = losses - (logit if i == j else -logit).sigmoid().log()
    torch.testing.assert_close(objective(encoders, batch, START).total, losses / B)


def test_clip_chooses_among_the_batch_in_both_directions() -> None:
    head = MLPHead.Config(out=5, layers=1, norm="none")
    encoders, objective = build(CLIP.Config(projector=head, temperature=0.2), "ab")
    batch = batch_of(B, "ab")
    z = shared(objective, encoders, batch)
    losses = []
    for one, other in (z, z[::-1]):
        losses += [nce(one[i], other[i], [other[j] for j in range(B) if j != i], 0.2) for i in range(B)]
    torch.testing.assert_close(objective(encoders, batch, START).total, torch.stack(losses).mean())


@pytest.mark.parametrize("cfg", [InfoNCE.Config(projector=HEAD), VICReg.Config(projector=HEAD)])
def test_only_several_streams_share_a_space(cfg: Any) -> None:
    assert build(cfg, "a")[1].shared_space() is None
    assert build(cfg, "ab")[1].shared_space() is not None


@pytest.mark.parametrize(
    "groups", [(0, 0, 1, 1, 2, 2, -5, -6), ((0, 9), (0, 8), (1, 9), (2, 7), (3, 6), (4, 5), (5, 4), (6, 3))]
)
def test_infonce_takes_no_sample_of_one_group_for_a_negative(
    groups: Any,
) -> None:
    encoders, objective = build(InfoNCE.Config(projector=HEAD.replace(norm="none"), temperature=0.3))
    table = torch.tensor(groups)
    batch = batch_of(B, sample_id=torch.arange(B), group_id=table)
    z = projections(of(objective, "projectors"), encoders.get_submodule("a.linear"), batch)
    table, losses = table.reshape(B, -1), []
    for a in range(V):
        for i in range(B):
            negatives = [z[b][j] for b in range(V) for j in range(B) if not same_group(table, i, j)]
            losses.append(nce(z[a][i], z[1 - a][i], negatives, 0.3))
    torch.testing.assert_close(objective(encoders, batch, START).total, torch.stack(losses).mean())


def same_group(table: Tensor, i: int, j: int) -> bool:
    return bool((table[i] == table[j]).any())


def test_vicreg_weighs_invariance_variance_and_covariance() -> None:
    cfg = VICReg.Config(projector=HEAD, invariance=2.0, variance=3.0, covariance=0.5)
    encoders, objective = build(cfg)
    batch = batch_of(B)
    z = projections(of(objective, "projectors"), encoders.get_submodule("a.linear"), batch)
    apart_by = (z[0] - z[1]).square().mean()
    variance, covariance = [], []
    for each in z:
        centered = each - each.mean(0)
        table = centered.T @ centered / (B - 1)
        variance.append(torch.relu(1 - (table.diagonal() + 1e-4).sqrt()).mean())
        covariance.append((table.square().sum() - table.diagonal().square().sum()) / 5)
    terms = objective(encoders, batch, START)
    spread, shared = torch.stack(variance), torch.stack(covariance)
    # as in the official code the variance is the mean over views, the covariance their sum
    torch.testing.assert_close(terms.total, 2 * apart_by + 3 * spread.mean() + 0.5 * shared.sum())


def test_barlow_twins_makes_the_correlation_of_views_a_unit_matrix() -> None:
    encoders, objective = build(BarlowTwins.Config(projector=HEAD, redundancy=0.02, scale=1.0))
    batch = batch_of(B)
    z = projections(of(objective, "projectors"), encoders.get_submodule("a.linear"), batch)
    a, b = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in z)
    loss = torch.zeros(())
    for i in range(5):
        for j in range(5):
            c = (a[:, i] * b[:, j]).sum() / B
            loss = loss + ((1 - c) ** 2 if i == j else 0.02 * c**2)
    torch.testing.assert_close(objective(encoders, batch, START).total, loss)


def codes(scores: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Sinkhorn-Knopp of scores [B, K] as SwAV writes it."""
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    for _ in range(rounds):
        q = q / q.sum(1, keepdim=True) / len(q)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def test_swav_predicts_the_code_of_a_view_from_every_other() -> None:
    cfg = SwAV.Config(
        projector=HEAD.replace(norm="none"), prototypes=6, num_local=2, queue=0, temperature=0.2
    )
    encoders, objective = build(cfg)
    batch = batch_of(B)
    local = dataclasses.replace(batch_of(B, seed=2)[0], role="local")
    weight = F.normalize(objective.prototypes.weight.detach(), dim=1)
    objective.prototypes.weight.data = weight
    unit = [F.normalize(of(objective, "projectors")(encoders.get_submodule("a.linear")(x)), dim=1)
            for v in (batch[0], local) for x in v.x.chunk(2)]  # fmt: skip
    losses = []
    for coded in range(2):
        target = codes((unit[coded] @ weight.T).detach(), cfg.epsilon, cfg.sinkhorn_rounds)
        for other in range(4):
            if other != coded:
                logits = unit[other] @ weight.T / 0.2
                losses += [-(target[i] * logits[i].log_softmax(0)).sum() for i in range(B)]
    total = objective(encoders, Batch([batch[0], local]), START).total
    torch.testing.assert_close(total, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_msn_asks_the_second_and_the_local_views_for_the_first_of_the_teacher() -> None:
    cfg = MSN.Config(projector=HEAD.replace(norm="none"), prototypes=6, num_local=2, mask_ratio=0.0,
                     sinkhorn_rounds=0, me_max_weight=2.0)  # fmt: skip
    encoders, objective = build(cfg)
    apart(objective.teacher)
    batch = batch_of(B)
    local = dataclasses.replace(batch_of(B, seed=2)[0], role="local")
    weight = F.normalize(objective.prototypes.weight, dim=1)
    teacher = objective.teacher
    t = teacher["projector"](teacher.encoders.get_submodule("a.linear")(batch[0].x[:B]))
    power = 1 / cfg.sharpening
    target = (F.normalize(t, dim=1) @ weight.T / cfg.temperature).softmax(1) ** power
    target = (target / target.sum(1, keepdim=True)).detach()
    anchors = [batch[0].x[B:], *local.x.chunk(2)]
    probs = []
    for x in anchors:
        z = F.normalize(objective.projector(encoders.get_submodule("a.linear")(x)), dim=1)
        probs.append((z @ weight.T / cfg.temperature).softmax(1))
    ce = torch.stack([-(target[i] * p[i].log()).sum() for p in probs for i in range(B)]).mean()
    mean = torch.cat(probs).mean(0)
    me_max = (mean * mean.log()).sum()  # up to a constant
    losses = objective(encoders, Batch([batch[0], local]), START)
    torch.testing.assert_close(losses.terms["ce"], ce.detach())
    constant = losses.terms["me_max"] - me_max.detach()
    assert min(abs(constant - c) for c in (0.0, torch.tensor(6.0).log().item())) < 1e-4
    torch.testing.assert_close(losses.total, losses.terms["ce"] + 2 * losses.terms["me_max"])


# ---------------------------------------------------------------------------------- hidden tokens

SPEC = StreamSpec(kind="grid", shape=(3, 16, 16), patch=(4, 4), num_tokens=16, target_dim=48)
SMALL = Decoder.Config(dim=16, depth=1, heads=2)


def net() -> Encoders:
    torch.manual_seed(0)
    config = TransformerEncoder.Config(dim=16, depth=2, heads=2, init_std=0.0)
    return Encoders({"pictures": config.build(SPEC)})


def masked(rows: int = 4, **more: Any) -> Views:
    x = torch.randn(rows, 3, 16, 16)
    plan = ViewPlan(num_global=1, mask_ratio=(0.75, 0.75))
    masks = draw_masks(plan, "random", (4, 4), rows, RowRandom((0, 0), 0, rows, rows))
    return Views(x=x, stream="pictures", role="global", masks=masks, target=patchify(x, 4), **more)


@pytest.mark.parametrize("padded", [False, True])
def test_mae_rebuilds_each_hidden_token_from_the_seen_ones_and_the_class_token(padded: bool) -> None:
    encoders, views = net(), masked()
    if padded:
        valid = torch.ones(4, 16, dtype=torch.bool)
        valid[1, 10:] = valid[3, 5:] = False
        views = dataclasses.replace(views, valid=valid)
    objective = MAE(MAE.Config(decoder=SMALL), encoders, {"pictures": SPEC})
    (features,) = encoders.encode([views], "drop")
    seen, hidden = places(views.masks[0])
    assert objective.decoder is not None
    assert views.target is not None
    losses = []
    for r in range(4):
        real = torch.ones(16, dtype=torch.bool) if views.valid is None else views.valid[r]
        kept = [k for k in range(seen.shape[1]) if real[seen[r, k]]]  # padding is as if it were not there
        first, at = features.pooled[None, None, r], seen[None, r, kept]
        _, out = objective.decoder(features.tokens[None, r, kept], at, hidden[None, r], first)
        pred = objective.readout(out)[0]
        for q in range(hidden.shape[1]):
            if real[hidden[r, q]]:
                target = views.target[r, hidden[r, q]]
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                losses.append((pred[q] - target).square().mean())
    assert len(losses) < 48 if padded else len(losses) == 48
    total = objective(encoders, Batch([views]), START).total
    torch.testing.assert_close(total, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_data2vec_predicts_the_mean_of_the_teacher_s_last_blocks_at_hidden_tokens(beta: float) -> None:
    encoders, views = net(), masked()
    cfg = Data2Vec.Config(top_k=2, beta=beta, layer_norm="layer", final_norm="none", scale=0.0)
    objective = Data2Vec(cfg, encoders, {"pictures": SPEC})
    apart(objective.teacher)
    (whole,) = objective.teacher.encoders.encode([views.with_mask(None)], "none", 2)
    (features,) = encoders.encode([views], "replace")
    _, hidden = places(views.masks[0])
    losses = []
    for r in range(4):
        for place in hidden[r].tolist():
            target = torch.stack([F.layer_norm(t[r, place], (16,)) for t in whole.inner]).mean(0)
            difference = (objective.head(features.tokens[r, place]) - target).abs()
            if beta:
                each = torch.where(difference < beta, difference**2 / (2 * beta), difference - beta / 2)
            else:
                each = difference**2
            losses.append(each.sum() if cfg.sum_channels else each.mean())
    total = objective(encoders, Batch([views]), START).total
    expected = torch.stack(losses).mean()
    assert (
        min(abs(total / expected - c) for c in (1.0, 16**-0.5)) < 1e-4
    )  # scale 0: over the root of the width
