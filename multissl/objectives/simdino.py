"""SimDINO and SimDINOv2: DINO's views and teacher without prototypes, temperatures or centering.

Wu et al., ICML 2025, arXiv 2502.10385. Features after the head are unit vectors; the loss is
  - compression_weight * compression - expansion_weight * expansion - patch_weight * patches
  compression  mean cosine of the teacher's global views with the student's other views
  expansion    scaled coding rate of the global views over the global batch, which is low where embeddings are alike
  patches      cosine of student and teacher at hidden tokens, divided as iBOT's loss; 0 in SimDINO
(`losses/coding_rate.py`). The expansion's covariance is summed over ranks: a step is that of one process. The published
runs leave it local, `reduce_covariance=False`, and then the expansion is weaker on more ranks, and not that of one
process. SimDINO is `patch_weight=0, epsilon=0.5`; one head serves views and tokens.
Shapes: B samples on this rank, L local views, N tokens, M hidden tokens (padded), D width, P features.
State: teacher encoders and head, the student's head.  Collectives: sums over ranks, with gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from multissl.contract.alarms import History, point_alarm
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.layers.heads import UnitHead
from multissl.layers.teacher import Teacher
from multissl.losses.coding_rate import compression, expansion, patch_likeness
from multissl.losses.common import embedding_std, kept
from multissl.objectives.common import same_plan, single_stream


class SimDINO(Objective):
    """Views of one stream, and perhaps hidden tokens, agree with a teacher; the coding rate keeps samples apart."""

    reads_present = True
    maskings = frozenset({"none", "replace"})

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of SimDINO; the defaults are SimDINOv2's."""

        compression_weight: float = 1.0
        """Weight of the cosine between views of a sample."""
        expansion_weight: float = 1.0
        """Weight of the coding rate, which keeps samples apart; more than 0."""
        patch_weight: float = 1.0
        """Weight of the cosine at hidden tokens; 0 leaves it out, with the masks (SimDINO)."""
        epsilon: float = 0.05
        """Error that the coding rate allows; SimDINO has 0.5."""
        expand: Literal["mean", "student"] = "mean"
        """What the coding rate is taken of: the mean of the student's and the teacher's features, or the student's."""
        reduce_covariance: bool = True
        """Sum the covariance over ranks; False: each rank's own, as in the published runs, which depends on their
        number."""
        num_local: int = 10
        """Local views of a sample."""
        mask_ratio: tuple[float, float] = (0.1, 0.5)
        """Range of the hidden share of a masked global view."""
        mask_share: float = 0.5
        """Share of the global views that are masked."""
        head: UnitHead.Config = field(default_factory=lambda: UnitHead.Config())
        """Head of views and tokens, which ends on the unit sphere."""
        teacher: Teacher.Config = field(default_factory=lambda: Teacher.Config(ema=0.9))
        """The slow copy of the student that views and tokens are compared with."""

        def __post_init__(self) -> None:
            for name in ("compression_weight", "patch_weight", "num_local"):
                if getattr(self, name) < 0:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want 0 or more")
            for name, usual in {"expansion_weight": "1", "epsilon": "0.05"}.items():
                if getattr(self, name) <= 0:
                    raise ValueError(
                        f"objective.{name}={getattr(self, name)}: want more than 0, such as {usual}; without the "
                        "coding rate every sample becomes one point"
                    )
            if not self.compression_weight and not self.patch_weight:
                raise ValueError(
                    "objective.compression_weight and patch_weight are both 0: set one above 0, or nothing is compared"
                )
            low, high = self.mask_ratio
            if not 0 < low <= high < 1:
                raise ValueError(
                    f"objective.mask_ratio={low, high}: want 0 < low <= high < 1, such as 0.1 0.5"
                )
            if not 0 < self.mask_share <= 1:
                raise ValueError(
                    f"objective.mask_share={self.mask_share}: want above 0, at most 1; objective.patch_weight=0 masks "
                    "nothing"
                )

        def maskings(self) -> frozenset[Masking]:
            """Tokens are hidden only where they are compared."""
            return frozenset({"none", "replace"}) if self.patch_weight else frozenset({"none"})

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        instead = (
            "small and large views are of one stream; use vicreg or lejepa, or sum objectives with weighted"
        )
        self.cfg, self.stream = cfg, single_stream("simdino", streams, instead=instead)
        self.reads_tokens = cfg.patch_weight > 0
        self.head: UnitHead = cfg.head.build(encoders.widths()[self.stream])
        self.teacher: Teacher = cfg.teacher.build(self.students(encoders))

    def students(self, encoders: nn.Module) -> dict[str, nn.Module]:
        """What the teacher has a copy of, by name."""
        return {"encoders": encoders, "head": self.head}

    def plans(self) -> Plans:
        """Two global views, masked where tokens are compared, and local ones."""
        cfg = self.cfg
        plan = ViewPlan(
            num_global=2,
            num_local=cfg.num_local,
            mask_ratio=cfg.mask_ratio if cfg.patch_weight else None,
            mask_share=cfg.mask_share if cfg.patch_weight else 1.0,
        )
        return same_plan([self.stream], plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        cfg, views = self.cfg, self.sides(batch)
        whole, mask, present = views[0], views[0].mask, views[0].present  # of the global views; [B]
        features = encoders.encode(views, "replace" if mask is not None else "none")
        z, hidden = self.project(self.head, features, views)  # [2+L, B, P], [M, P]
        with torch.no_grad():
            seen = self.teacher.encoders.encode([whole.with_mask(None)], "none")
            target, tokens = self.project(self.teacher["head"], seen, [whole])  # [2, B, P], [M, P]
        expanded = (z[:2] + target) / 2 if cfg.expand == "mean" else z[:2]
        terms = {
            "compression": -compression(z, target, present, cosine=False),
            "expansion": -expansion(expanded, cfg.epsilon, present, cfg.reduce_covariance),
        }
        weights = {"compression": cfg.compression_weight, "expansion": cfg.expansion_weight}
        if mask is not None and hidden is not None and tokens is not None:
            count = whole.batch * 2 if present is None else 2 * kept(present, z.dtype)
            terms["patches"] = -patch_likeness(hidden, tokens, mask.weight, count)
            weights["patches"] = cfg.patch_weight
        return Losses.weigh(terms, weights, {"std": embedding_std(z[:2], present)})

    def sides(self, batch: Batch) -> list[Views]:
        """The global views, and the local ones where there are any.

        Hidden tokens that are padding, or of a stand-in, count nowhere.
        """
        whole, local = batch.find(self.stream, "global"), batch.find(self.stream, "local")
        if whole is None or whole.num_views != 2:
            raise ValueError(f"simdino wants 2 global views, got {whole.num_views if whole else 0}")
        mask = whole.mask if self.cfg.patch_weight else None
        if self.cfg.patch_weight and mask is None:
            raise ValueError(
                "simdino needs masked global views: take a modality with masks, or set objective.patch_weight=0"
            )
        if mask is not None:
            mask = mask.counting(whole.real_tokens(mask.hidden.shape[1]))
        whole = whole.with_mask(mask)
        return [whole, local] if local else [whole]

    def project(
        self, module: nn.Module, features: list[Features], views: list[Views]
    ) -> tuple[Tensor, Tensor | None]:
        """Unit vectors of views [V, B, P] and, where there is a mask, of hidden tokens [M, P]: one call of the head."""
        mask, count = views[0].mask, sum(v.num_views for v in views)
        rows = torch.cat([f.pooled for f in features])  # [V*B, D]
        hidden = rows[:0] if mask is None else features[0].tokens.flatten(0, 1)[mask.index]  # [M, D]
        keep = None
        if mask is not None or views[0].present is not None:
            here = [rows.new_ones(len(rows), dtype=torch.bool)]
            if views[0].present is not None:
                here = [views[0].present.repeat(count)]
            keep = torch.cat([*here, *([] if mask is None else [mask.weight > 0])])
        unit = module(torch.cat([rows, hidden]), keep)
        z, tokens = unit.split([len(rows), len(hidden)])
        return z.unflatten(0, (count, -1)), None if mask is None else tokens

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The teacher follows."""
        self.teacher.update(self.students(encoders), progress)

    def alarm(self, history: History, progress: Progress) -> str | None:
        """Embeddings in one point."""
        return point_alarm("simdino", history, "raise objective.expansion_weight, or lower optim.lr")

    def exported(self, encoders: Encoders) -> Encoders:
        """The teacher's encoders, unless the teacher never learns."""
        return encoders if self.cfg.teacher.rule == "frozen" else self.teacher.encoders

    def shard_units(self) -> list[nn.Module]:
        """The teacher's blocks and both heads."""
        return [*self.teacher.shard_units(), self.head]
