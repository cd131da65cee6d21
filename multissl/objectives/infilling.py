"""Span infilling: write the spans that were taken out of a sequence, each behind the symbol that stands for it.

T5: Raffel et al., JMLR 2020, arXiv 1910.10683, section 3.1.4. The modality takes the spans out; inputs and targets have
the same lengths in every row. The decoder is a causal transformer over the encoder's tokens and, behind them, the
targets so far: every target sees all of the encoder's tokens, which T5 reaches by cross-attention instead. Its
embedding and readout are its own.
Shapes: R rows, N tokens of the encoder, N' tokens of the target, d decoder width, T symbols.  Every row predicts
N' tokens.  Collectives: a sum of counts where samples lack the stream.  State: decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.decoder import Decoder
from multissl.layers.init import init_linear
from multissl.layers.transformer import Trunk
from multissl.losses.common import mean_of
from multissl.losses.language import constant
from multissl.objectives.common import same_plan
from multissl.objectives.language import one_view, sequence
from multissl.precision import at_least_fp32


class Infilling(Objective):
    """Writes the target of a sequence, one symbol after the other."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of infilling."""

        decoder: Decoder.Config = field(
            default_factory=lambda: Decoder.Config(dim=256, depth=2, heads=4, init_std=0.0)
        )
        """Sizes of the net that writes."""

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.stream, spec = sequence("infilling", streams)
        if not spec.target_tokens:
            raise ValueError(
                "infilling writes what was taken out of a sequence, this stream takes nothing out: set"
                " modality.infill=0.15"
            )
        dim, std = cfg.decoder.dim, cfg.decoder.init_std
        self.embed = nn.Linear(encoders.widths()[self.stream], dim)
        self.symbols = nn.Embedding(spec.target_dim, dim)
        self.start = nn.Parameter(torch.empty(1, 1, dim))
        self.place = nn.Parameter(torch.empty(1, spec.num_tokens + spec.target_tokens, dim))
        kernel = encoders.kernel(self.stream)
        self.trunk = Trunk(dim, cfg.decoder.depth, cfg.decoder.heads, init_std=std, backend=kernel)
        self.readout = nn.Linear(dim, spec.target_dim)
        for linear in (self.embed, self.readout):
            init_linear(linear, std)
        for table in (self.symbols.weight, self.start, self.place):
            nn.init.trunc_normal_(table, std=0.02)

    def plans(self) -> Plans:
        """One global view with its target."""
        return same_plan([self.stream], ViewPlan(num_global=1, target=True))

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's targets; every row has equally many symbols."""
        views = one_view(batch, self.stream)
        assert views.target is not None
        (features,) = encoders.encode([views])
        seen = self.embed(features.tokens.to(self.embed.weight.dtype))  # [R, N, d]
        written = torch.cat([self.start.expand(len(seen), -1, -1), self.symbols(views.target[:, :-1])], 1)
        both = torch.cat([seen, written.to(seen.dtype)], 1) + self.place.to(seen.dtype)  # [R, N+N', d]
        valid = None if views.valid is None else F.pad(views.valid, (0, written.shape[1]), value=True)
        (out,), _ = self.trunk([both], [valid], causal=True)
        logits = at_least_fp32(self.readout(out[:, seen.shape[1] :])).flatten(0, 1)  # [R*N', T]
        asked, rows = views.target.flatten(), views.present_rows
        keep = None if rows is None else rows.repeat_interleave(views.target.shape[1])  # [R*N']
        loss = mean_of(F.cross_entropy(logits, asked, reduction="none"), keep)
        real = torch.ones_like(asked, dtype=torch.bool) if keep is None else keep
        return Losses.weigh(
            {"write": loss}, {"write": 1.0}, {"constant": constant(asked, real, logits.shape[1])}
        )

    def shard_units(self) -> list[nn.Module]:
        """The decoder's blocks."""
        return list(self.trunk.blocks)
