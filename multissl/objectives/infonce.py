"""InfoNCE: each view of a sample is recognised by its other views among the views of all samples (SimCLR, NT-Xent).

NT-Xent: Chen et al. 2020, arXiv 2002.05709, equation 1: V views, anchors are all V*B of them, candidates all views of
all ranks but the anchor itself, the mean over anchors (lightly, solo-learn; Google's code is V times that). Options:
several positives outside or inside the log (SupCon, arXiv 2004.11362), DCL and DCLW (Yeh et al. 2022, arXiv 2110.06848,
equations 4 and 6), candidates of other views only, ReLIC's invariance term (Mitrovic et al. 2021, arXiv 2010.07922,
equation 3; here the mean of both directions, with gradient to both), CURL's bilinear similarity (arXiv 2004.04136).
Shapes: V views, B samples on this rank, W ranks, P projector width.
Collectives: gathers of embeddings (with gradient) and of ids.  State: a projector a stream, a learned scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from multissl.distributed import gather, row_labels, world
from multissl.encoders.base import Encoders
from multissl.layers.heads import MLPHead
from multissl.objectives.base import Objective, embedding_std, presence, project, spread, views_per_stream
from multissl.objectives.nce import (
    NO_DECAY,
    MultiPos,
    Relations,
    Scale,
    accuracy,
    blind,
    mean_of,
    nce,
    relations_of,
    scores,
)
from multissl.types import Batch, Encode, Losses, ParamRule, Plans, Progress, StreamSpec


class InfoNCE(Objective):
    """Views of a lone stream, or the views of several streams of a sample, are positives of each other."""

    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of InfoNCE; the defaults are SimCLR's."""

        temperature: float = 0.1
        learn_temperature: bool = False
        """Learn the temperature from this one on, between 0.01 and 1."""
        num_views: int = 2
        """Views of a lone stream; several streams give one clean view each."""
        clean: bool = False
        """Of a lone stream, the first view is the sample as it is and the others are global; else all are global."""
        multi_pos: MultiPos = "outside"
        """Where several positives are averaged: outside the log (SupCon) or inside it."""
        decoupled: bool = False
        """Leave the positives out of the denominator (DCL)."""
        sigma: float = 0.0
        """Weigh each positive pair by how far apart it is, at this temperature (DCLW: 0.5); 0 weighs all alike."""
        other_view_only: bool = False
        """Leave out candidates of the anchor's own view."""
        relic: float = 0.0
        """Weight of the divergence between the views' distributions over the batch (ReLIC: 1)."""
        bilinear: bool = False
        """Learn the similarity q W k of embeddings as they are (CURL, temperature=1) in place of their cosine."""
        projector: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=2048, out=128, layers=2, last_norm=True)
        )

        def __post_init__(self) -> None:
            if self.temperature <= 0:
                raise ValueError(f"objective.temperature={self.temperature}: want more than 0, as 0.1")
            if self.learn_temperature and not 0.01 <= self.temperature <= 1:
                raise ValueError(
                    f"objective.temperature={self.temperature}: a learned one starts between 0.01 and 1; "
                    "or set objective.learn_temperature=False"
                )
            if self.num_views < 2:
                raise ValueError(f"objective.num_views={self.num_views}: want 2 or more")
            for name in (n for n in ("sigma", "relic") if getattr(self, n) < 0):
                raise ValueError(f"objective.{name}={getattr(self, name)}: want 0 or more")
            if self.sigma and not self.decoupled:
                raise ValueError(
                    f"objective.sigma={self.sigma} belongs to the decoupled loss: set objective.decoupled=True"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.plan = cfg, views_per_stream(streams, cfg.num_views, cfg.clean)
        self.projectors = nn.ModuleDict({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.scale = Scale(cfg.temperature) if cfg.learn_temperature else None
        self.bilinear = nn.Parameter(torch.eye(cfg.projector.out)) if cfg.bilinear else None

    def plans(self) -> Plans:
        """Global views of a lone stream, or one clean view of each of several."""
        return spread(self.projectors, self.plan)

    def forward(self, encoders: Encode, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        z = project(encoders, self.projectors, batch)  # [V, B, P]
        if z.shape[1] * world() < 2:
            raise ValueError("infonce needs 2 or more samples a step, got 1: raise batch_size")
        cfg, temperature = self.cfg, self.scale.temperature() if self.scale else self.cfg.temperature
        terms, stats = infonce_terms(
            z, relations_of(batch), temperature, presence(batch), cfg.multi_pos, cfg.decoupled, cfg.sigma,
            cfg.other_view_only, cfg.relic > 0, self.bilinear,
        )  # fmt: skip
        if self.scale:
            stats["temperature"] = self.scale.temperature().squeeze()
        return Losses.weigh(terms, {"nce": 1.0, "relic": cfg.relic}, {"std": embedding_std(z), **stats})

    def after_step(self, encoders: nn.ModuleDict, progress: Progress) -> None:
        """A learned temperature goes back into its limits."""
        if self.scale:
            self.scale.clamp()

    def param_rules(self) -> list[ParamRule]:
        """No decay on what is learned of the similarity."""
        return NO_DECAY


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
    weight = None
    if sigma:
        weight = far_weights((s * temperature).masked_fill(~pos, 0).sum(1) / pos.sum(1).clamp(min=1), sigma)
    values = nce(s, pos, neg, multi_pos, decoupled, weight)
    terms = {"nce": mean_of(values, None if present is None else pos.any(1))}
    if relic:
        whole = None if present is None else present.all(0)  # [B]
        terms["relic"] = divergence(s.view(blocks), relation, whole)
    return terms, {"accuracy": accuracy(s, pos, neg), "constant": blind(pos, neg, decoupled)}


@torch.no_grad()
def far_weights(cosine: Tensor, sigma: float) -> Tensor:
    """DCLW's weights 2 - N * softmax(cosine / sigma) over the N anchors of all ranks, from this rank's cosines [n]."""
    everyone = gather(cosine) / sigma  # [N]
    return 2 - len(everyone) * (cosine / sigma - everyone.logsumexp(0)).exp()


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
