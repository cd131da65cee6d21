"""MSN: views with hidden tokens are sorted into prototypes as a teacher sorts another, whole view of the sample.

Assran et al., ECCV 2022, arXiv 2204.07141, equations 1 and 2; PMSN: Assran et al., ICLR 2023, arXiv 2210.07277.
With cosines s of projections and learned prototypes, p = softmax(s / T) of an anchor and p+ the teacher's, sharpened to
p+^(1/S) / sum p+^(1/S) and perhaps evened by Sinkhorn-Knopp, the terms are
  ce       mean over anchors of -sum_k p+_k log p_k
  me_max   log K - H(m), m the mean of p over the anchors of all ranks (prior uniform, MSN), or
           KL(prior || m) with a prior proportional to k^-e over the prototypes k = 1..K (prior power_law, PMSN)
As in the official code the target is the first global view, the anchors are the second one with tokens left out and
local views without; prototypes are not averaged, have no weight decay, and teacher and anchors share them. The head has
ReLU where the official one has GELU.
Shapes: V anchors a sample, view-major, B samples on this rank, P projector width, K prototypes.
Across ranks: the sum of p, with gradient; Sinkhorn's potentials.  State: projector, teacher, prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, ParamRule, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from multissl.losses.common import embedding_std
from multissl.losses.msn import cosines, msn_targets, msn_terms
from multissl.losses.targets import describe
from multissl.objectives.common import same_plan, single_stream
from multissl.precision import at_least_fp32


class MSN(Objective):
    """Masked and small views of one stream agree with a teacher that sees a whole view."""

    reads_present = True
    maskings = frozenset({"none", "drop"})

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of MSN and PMSN."""

        prototypes: int = 1024
        """Number of prototypes."""
        temperature: float = 0.1
        """Temperature of the anchors' softmax, more than 0."""
        sharpening: float = 0.25
        """S of the targets, 0 to 1; 1 leaves them as they are."""
        sinkhorn_rounds: int = 0
        """Rounds that even out the targets over the prototypes; 0: none (the official configs take 3)."""
        me_max_weight: float = 1.0
        """Weight of the mean entropy that is maximised; 0 leaves it out."""
        prior: Literal["uniform", "power_law"] = "uniform"
        """How the anchors should use the prototypes on average: evenly, or with a long tail (PMSN)."""
        prior_exponent: float = 0.25
        """Of the power law."""
        mask_ratio: float = 0.15
        """Share of the tokens that the full anchor leaves out; 0: none, for encoders that cannot."""
        num_local: int = 10
        """Number of local views per sample."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config())
        """Head between the features and the loss."""
        teacher: Teacher.Config = field(
            default_factory=lambda: Teacher.Config(ema=0.996, buffers="keep", batch_norm="batch")
        )
        """The slow copy of the student that makes the targets."""

        def __post_init__(self) -> None:
            for name in ("temperature", "sharpening", "prior_exponent"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want more than 0")
            for name, low in dict(prototypes=2, sinkhorn_rounds=0, me_max_weight=0, num_local=0).items():
                if getattr(self, name) < low:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want {low} or more")
            if self.sharpening > 1:
                raise ValueError(f"objective.sharpening={self.sharpening}: want at most 1 (no change)")
            if not 0 <= self.mask_ratio < 1:
                raise ValueError(f"objective.mask_ratio={self.mask_ratio}: want 0 (no masks) to below 1")

        def maskings(self) -> frozenset[Masking]:
            """Tokens are left out only where a share of them is to be."""
            return frozenset({"none", "drop"}) if self.mask_ratio else frozenset({"none"})

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        instead = "a masked view and its target are views of one stream; sum objectives with weighted instead"
        self.cfg, self.stream = cfg, single_stream("msn", streams, instead=instead)
        self.projector: MLPHead = cfg.projector.build(encoders.widths()[self.stream])
        self.prototypes = nn.Linear(cfg.projector.out, cfg.prototypes, bias=False)
        self.teacher: Teacher = cfg.teacher.build(self.students(encoders))

    def students(self, encoders: nn.Module) -> dict[str, nn.Module]:
        """What the teacher has a copy of, by name."""
        return {"encoders": encoders, "projector": self.projector}

    def plans(self) -> Plans:
        """A global view as target, one as anchor, and local anchors."""
        ratio = self.cfg.mask_ratio
        masks = (ratio, ratio) if ratio else None
        return same_plan(
            [self.stream], ViewPlan(num_global=2, num_local=self.cfg.num_local, mask_ratio=masks)
        )

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The terms of this rank's anchors."""
        cfg, full, local = self.cfg, batch.find(self.stream, "global"), batch.find(self.stream, "local")
        if full is None or full.num_views != 2:
            raise ValueError(f"msn wants 2 global views, got {full.num_views if full else 0}")
        if cfg.mask_ratio and full.mask is None:
            raise ValueError("msn needs masked global views, got none: or set objective.mask_ratio=0")
        anchors = [full.part(1, 1), *([local] if local else [])]
        target = self.teach([full.part(0, 1).with_mask(None)])  # [B, K]
        features = encoders.encode(anchors, "drop" if cfg.mask_ratio else "none")
        present = full.present  # [B]
        rows = None if present is None else present.repeat(sum(v.num_views for v in anchors))  # [V*B]
        z = at_least_fp32(self.projector(torch.cat([f.pooled for f in features]), rows))  # [V*B, P]
        targets = msn_targets(target, cfg.temperature, cfg.sharpening, cfg.sinkhorn_rounds, present)
        scores = cosines(z, self.prototypes.weight)
        exponent = cfg.prior_exponent * (cfg.prior == "power_law")
        terms, ce = msn_terms(scores, targets, cfg.temperature, exponent, present)
        stats: dict[str, Tensor] = {}
        if progress.described:
            stats = describe(targets, ce.view(-1, len(target)).mean(0))
            stats["std"] = embedding_std(z.unflatten(0, (-1, len(target))), present)
            stats["entropy_share"] = stats["teacher_entropy"] / math.log(cfg.prototypes)
        return Losses.weigh(terms, {"ce": 1.0, "me_max": cfg.me_max_weight}, stats)

    @torch.no_grad()
    def teach(self, views: Sequence[Views]) -> Tensor:
        """The teacher's scores of one whole view, [B, K]."""
        (features,) = self.teacher.encoders.encode(views, "none")
        z = self.teacher["projector"](features.pooled, views[0].present_rows)
        return cosines(z, self.prototypes.weight)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows."""
        self.teacher.update(self.students(encoders), progress)

    def exported(self, encoders: Encoders) -> Encoders:
        """The teacher's encoders, unless the teacher never learns."""
        return encoders if self.cfg.teacher.rule == "frozen" else self.teacher.encoders

    def param_rules(self) -> list[ParamRule]:
        """No weight decay on prototypes."""
        return [ParamRule(of=self.prototypes, decay=0.0)]

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks and projector, and the student's projector."""
        return [*self.teacher.shard_units(), self.projector]
