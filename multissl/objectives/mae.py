"""MAE and SimMIM: rebuild the hidden tokens of a view from those that are left.

MAE: He et al., CVPR 2022, arXiv 2111.06377, section 3. The encoder sees the visible tokens only, a small decoder gets
them back with mask tokens at the hidden places and predicts every hidden token's target, normalized token by token.
SimMIM: Xie et al., CVPR 2022, arXiv 2111.09886 (masking=replace): the encoder sees mask tokens, one linear layer
reads its outputs; there the absolute error of plain values is usual (metric=l1 norm_target=none), on squares of
several tokens. The official MAE gives the decoder the class token: so do we, as the encoder's pooled feature. SimMIM's
code adds 1e-5 to its count of hidden values; we divide by the count itself.
Shapes: R rows, N tokens, K visible, Q hidden, D encoder width, d decoder width, T values of a token.
Collectives: none, but for tables, padded views and missing streams (see rebuild).  State: decoder and readout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.layers.decoder import Decoder, gather_tokens, places
from multissl.layers.readout import Readout
from multissl.losses.rebuild import Metric, Norm
from multissl.objectives.common import same_plan, single_stream


class MAE(Objective):
    """Rebuilds one stream's hidden tokens, whatever its target: values, classes or cells."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of masked rebuilding; the defaults are MAE's."""

        mask_ratio: float = 0.75
        """Share of the tokens that are hidden, the same in every row."""
        masking: Literal["drop", "replace"] = "drop"
        """drop: the encoder sees visible tokens only, a decoder rebuilds (MAE); replace: it sees mask tokens, and a
        linear layer rebuilds (SimMIM, BERT)."""
        metric: Metric = "mse"
        """Of values; classes take cross entropy, cells squared error or cross entropy by column."""
        norm_target: Norm = "token"
        """Of values: each token's to mean 0 and deviation 1 (MAE), each token's channels' (VideoMAE), or none."""
        decoder: Decoder.Config = field(default_factory=lambda: Decoder.Config())
        """Transformer that rebuilds hidden tokens."""

        def __post_init__(self) -> None:
            if not 0 < self.mask_ratio < 1:
                raise ValueError(
                    f"objective.mask_ratio={self.mask_ratio}: want more than 0, less than 1, such as 0.75"
                )

        def maskings(self) -> frozenset[Masking]:
            """What the option says."""
            return frozenset({self.masking})

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.stream = cfg, single_stream("mae", streams, "rebuilds one stream")
        spec, width = streams[self.stream], encoders.widths()[self.stream]
        if spec.target_kind == "values" and spec.target_dim:
            values = spec.target_dim // (spec.shape[0] if cfg.norm_target == "channel" else 1)
            if cfg.norm_target != "none" and values < 2:
                raise ValueError(
                    f"objective.norm_target={cfg.norm_target} needs 2 or more values to normalize, a token of this"
                    f" stream has {values}: set objective.norm_target=none"
                )
        kernel = encoders.kernel(self.stream)
        drops = cfg.masking == "drop"
        self.decoder: Decoder | None = cfg.decoder.build(width, spec, kernel) if drops else None
        self.readout = Readout(
            cfg.decoder.dim if self.decoder else width,
            spec,
            cfg.decoder.init_std,
        )

    def plans(self) -> Plans:
        """One global view under a mask of fixed ratio, with its target."""
        ratio = (self.cfg.mask_ratio, self.cfg.mask_ratio)
        return same_plan([self.stream], ViewPlan(num_global=1, mask_ratio=ratio, target=True))

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's hidden tokens; padding and stand-ins do not count."""
        views = batch.find(self.stream, "global")
        if views is None or views.mask is None or views.target is None:
            raise ValueError("mae wants a global view with a mask and a target, as its plan says")
        seen, hidden = places(views.mask)  # [R, K], [R, Q]
        (features,) = encoders.encode([views], self.cfg.masking)
        if self.decoder is None:
            tokens = gather_tokens(features.tokens, hidden)  # [R, Q, D]
        else:
            valid = None if views.valid is None else views.valid.gather(1, seen)
            _, tokens = self.decoder(features.tokens, seen, hidden, features.pooled[:, None], valid)
        real = views.real_tokens(views.mask.hidden.shape[1])
        loss, constant = self.readout.loss(
            tokens, hidden, views.target, self.cfg.metric, self.cfg.norm_target, real
        )
        stats = {"constant": constant, "share_of_constant": loss / constant.clamp(min=1e-12)}
        return Losses.weigh({"rebuild": loss}, {"rebuild": 1.0}, stats)

    def shard_units(self) -> list[nn.Module]:
        """The decoder's blocks."""
        return [] if self.decoder is None else self.decoder.shard_units()
