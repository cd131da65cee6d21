"""MSN's targets and terms: sharpened assignments to prototypes, and their mean entropy.

Assran et al., ECCV 2022, arXiv 2204.07141, equations 1 and 2; PMSN: Assran et al., ICLR 2023, arXiv 2210.07277.
Shapes: V anchors of a sample, view-major, B samples on this rank, P projector width, K prototypes.
Collectives: the sum of probabilities, with gradient; Sinkhorn's potentials.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.losses.common import kept, mean_of
from multissl.losses.sinkhorn import centered, sinkhorn
from multissl.losses.targets import Targets, cross_entropy
from multissl.parallel.collectives import sum_ranks
from multissl.parallel.ranks import world
from multissl.precision import at_least_fp32


def cosines(z: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines [R, K] of embeddings z [R, P] and prototypes [K, P], in fp32 at least, with gradient to both."""
    return F.linear(F.normalize(at_least_fp32(z), dim=1), F.normalize(at_least_fp32(prototypes), dim=1))


@torch.no_grad()
def msn_targets(
    scores: Tensor, temperature: float, sharpening: float, rounds: int = 0, present: Tensor | None = None
) -> Targets:
    """Targets from a teacher's scores [B, K]: softmax, sharpened, evened by Sinkhorn where rounds > 0.

    Samples outside `present` (bool [B]) have probabilities 0.
    """
    logits = at_least_fp32(scores) / (temperature * sharpening)
    if rounds:  # on the sharpened probabilities, so that every row begins with a sum of 1
        return sinkhorn(logits.log_softmax(1), 1.0, present, rounds)
    return centered(logits, 1.0, logits.new_zeros(logits.shape[1]), present)


def msn_terms(
    scores: Tensor, targets: Targets, temperature: float = 0.1, exponent: float = 0.0,
    present: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """The unweighted terms ce and me_max, and the cross entropies [V*B].

    scores [V*B, K] of anchors, view-major, targets of B rows; the prior is proportional to k^-exponent, so 0 is the
    uniform one. Anchors of samples outside `present` (bool [B]) are left out. Computed in fp32 at least; the rounding
    of bf16 scores moves the terms by 3 % of log K at most.
    """
    rows = torch.arange(len(targets.b), device=scores.device).repeat(len(scores) // len(targets.b))
    ce = cross_entropy(scores, targets, rows[:, None], temperature)  # [V*B]
    p = (at_least_fp32(scores) / temperature).softmax(1)
    keep = None if present is None else present[rows]  # [V*B]
    share = p.mean(0) if keep is None else p.masked_fill(~keep[:, None], 0).sum(0) / kept(keep, p.dtype)
    mean = sum_ranks(share) / world()  # [K]
    mean = mean.clamp(min=torch.finfo(mean.dtype).tiny)  # log of 0
    if exponent == 0:
        return {"ce": mean_of(ce, keep), "me_max": math.log(len(mean)) + (mean * mean.log()).sum()}, ce
    prior = torch.arange(1, len(mean) + 1, device=mean.device).to(mean.dtype) ** -exponent
    prior = prior / prior.sum()
    return {"ce": mean_of(ce, keep), "me_max": (prior * (prior.log() - mean.log())).sum()}, ce
