"""VIME and denoising of tables: tell which cells of a row were replaced, and what they were.

Yoon et al., NeurIPS 2020, "VIME: Extending the Success of Self- and Semi-supervised Learning to Tabular Domain",
equations 3 to 5: an encoder reads corrupted rows, one head predicts the mask (binary cross entropy), another the row
(weight 2). As in the paper the mask to predict is where the row really differs from its original, for a replaced cell
often gets the value it had. Here numbers take squared error and categories cross entropy, column by column, where the
paper squares everything; a fixed share of each row is drawn, where the paper draws each cell by itself.
With corrupt=0 the views are those that the modality makes for any objective, so that this is the reconstruction term
beside a contrastive one (SAINT, SubTab) in a weighted sum.
Shapes: R rows, C columns, D encoder width, H hidden width.
Collectives: two sums of the columns' counts (see rebuild), one of the cells' that are shown.  State: the two heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.init import init_linear
from multissl.layers.readout import Readout
from multissl.losses.common import embedding_std, mean_of
from multissl.losses.vime import auc
from multissl.objectives.common import same_plan, single_stream
from multissl.precision import at_least_fp32


class VIME(Objective):
    """Mask prediction and denoising of one stream of columns."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of VIME; the defaults are the paper's."""

        corrupt: float = 0.3
        """Share of the cells that are replaced; 0 takes the views as the modality makes them."""
        num_views: int = 1
        """Views of each row."""
        mask_weight: float = 1.0
        """Of the mask's loss; 0 leaves its head out."""
        cells_weight: float = 2.0
        """Of the cells' loss."""
        reads: Literal["pooled", "tokens"] = "pooled"
        """What the heads read: one feature per row, or each column's token (a transformer's)."""
        hidden: int = 0
        """Width of a layer before the heads; 0: none, as in the paper."""

        def __post_init__(self) -> None:
            if not 0 <= self.corrupt < 1:
                raise ValueError(
                    f"objective.corrupt={self.corrupt}: want a share of 0 to less than 1, such as 0.3"
                )
            for name, low in {"num_views": 1, "mask_weight": 0, "hidden": 0}.items():
                if getattr(self, name) < low:
                    raise ValueError(f"objective.{name}={getattr(self, name)}: want {low} or more")
            if not self.cells_weight > 0:
                raise ValueError(f"objective.cells_weight={self.cells_weight}: want more than 0, such as 2")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.stream = cfg, single_stream("vime", streams, "rebuilds one stream")
        spec, width = streams[self.stream], encoders.widths()[self.stream]
        if spec.kind != "columns" or spec.target_kind != "cells" or not spec.target_dim:
            raise ValueError(
                f"vime tells which cells of a row were replaced, this stream is of kind {spec.kind}: take mae instead"
            )
        self.columns = spec.shape[0]
        self.neck = nn.Sequential(nn.Linear(width, cfg.hidden), nn.GELU()) if cfg.hidden else nn.Identity()
        width = cfg.hidden or width
        self.cells = Readout(width, spec)
        self.mask = (
            nn.Linear(width, self.columns if cfg.reads == "pooled" else 1) if cfg.mask_weight else None
        )
        if self.mask is not None:
            init_linear(self.mask, 0.0)

    def plans(self) -> Plans:
        """Corrupted global views and the rows they were."""
        ratio = (self.cfg.corrupt, self.cfg.corrupt) if self.cfg.corrupt else None
        plan = ViewPlan(
            num_global=self.cfg.num_views, mask_ratio=ratio, corrupt=ratio is not None, target=True
        )
        return same_plan([self.stream], plan)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows; every row has equally many cells."""
        views = batch.find(self.stream, "global")
        if views is None or views.target is None:
            raise ValueError("vime wants global views with their targets, as its plan says")
        (features,) = encoders.encode([views])
        if self.cfg.reads == "tokens":
            z = self.neck(features.tokens)  # [R, C, H]
            if z.shape[1] != self.columns:
                raise ValueError(
                    f"objective.reads=tokens wants one token per column ({self.columns}), "
                    f"the encoder gives {z.shape[1]}: set objective.reads=pooled, or take transformer"
                )
            at_cells = z
        else:
            z = self.neck(features.pooled)  # [R, H]
            at_cells = z[:, None].expand(-1, self.columns, -1)
        target = views.target.flatten(1)  # [R, C]
        everywhere = torch.arange(self.columns, device=z.device).expand(len(z), -1)  # [R, C]
        rows = views.present_rows  # [R]
        there = None if rows is None else rows[:, None].expand_as(everywhere)  # cells that are withheld count
        cells, cells_of_constant = self.cells.loss(at_cells, everywhere, target, valid=there)
        terms = {"cells": cells}
        stats = {
            "std": embedding_std(features.pooled, rows),
            "cells_of_constant": cells / cells_of_constant.clamp(min=1e-12),
        }
        constant = self.cfg.cells_weight * cells_of_constant
        if self.mask is not None:
            logits = at_least_fp32(self.mask(z)).reshape(target.shape)  # [R, C]
            changed = (views.x != views.target).float()
            real = views.real_tokens(self.columns)  # [R, C]
            errors = F.binary_cross_entropy_with_logits(logits, changed.to(logits.dtype), reduction="none")
            terms["mask"] = mean_of(errors, real)
            seen = torch.ones_like(changed) if real is None else real.float()
            count = seen.sum().clamp(min=1)
            share = ((changed * seen).sum(0) / seen.sum(0).clamp(min=1)).clamp(1e-6, 1 - 1e-6)  # [C]
            entropy = torch.special.entr(share) + torch.special.entr(1 - share)
            constant = constant + self.cfg.mask_weight * (entropy * seen.sum(0)).sum() / count
            stats |= {"changed": (changed * seen).sum() / count, "mask_auc": auc(logits, changed, seen)}
        weights = {"cells": self.cfg.cells_weight, "mask": self.cfg.mask_weight}
        return Losses.weigh(terms, weights, {"constant": constant, **stats})

    def shard_units(self) -> list[nn.Module]:
        """None: the heads are small."""
        return []
