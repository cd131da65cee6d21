"""CAV-MAE: streams of a sample rebuild each other's hidden tokens, and what each shows finds what the other shows.

Gong et al., ICLR 2023, arXiv 2210.07839, and its code: each stream's encoder sees its visible tokens alone; the joint
block (layers/joint) runs over all streams' tokens together and over each stream's alone. A decoder with places and mask
tokens for each stream rebuilds all hidden tokens from the joint pass; the mean tokens of the passes alone are
contrasted at a fixed temperature, in one direction: of two streams the later one is the anchor. total = rebuilding,
summed over streams, + 0.01 contrast. Our encoders end in a norm, where CAV-MAE's hand their last block's output on as
it is. Shipped are towers: encoder, joint block alone, mean of the tokens.
A sample that lacks a stream takes part with what it has, in rebuilding alone.
Shapes: R rows (one view: B samples), S streams, N tokens, K visible, Q hidden, D encoder width, d decoder width.
Collectives: gathers of embeddings and ids; sums of counts where streams are missing or padded.  State: none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, cast

import torch
from torch import Tensor, nn

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import ParameterPerStream, PerStream
from multissl.contract.plans import Masking, Plans, StreamSpec, ViewPlan
from multissl.layers.decoder import Decoder, Places, places
from multissl.layers.joint import TOGETHER, Alone, JointBlock, mean_token
from multissl.layers.readout import Readout
from multissl.layers.transformer import Trunk
from multissl.losses.common import embedding_std
from multissl.losses.nce import one_way
from multissl.objectives.common import presence, same_plan
from multissl.objectives.pairing import relations_of


class CAVMAE(Objective):
    """Joint masked rebuilding and contrast of two or more streams with targets."""

    reads_present = True
    maskings: frozenset[Masking] = frozenset({"drop"})

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of CAV-MAE; the defaults are the paper's."""

        mask_ratio: float = 0.75
        """Share of each stream's tokens that is hidden, the same in every row."""
        contrast: float = 0.01
        """Weight of the contrast; each stream's rebuilding weighs 1."""
        temperature: float = 0.05
        """Temperature of the contrast between streams, more than 0."""
        both_ways: bool = False
        """Contrast in both directions, the mean of them."""
        heads: int = 12
        """Of the joint block."""
        decoder: Decoder.Config = field(default_factory=lambda: Decoder.Config())
        """Transformer that rebuilds hidden tokens of both streams."""

        def __post_init__(self) -> None:
            if not 0 < self.mask_ratio < 1:
                raise ValueError(f"objective.mask_ratio={self.mask_ratio}: want more than 0 and less than 1")
            if self.contrast < 0:
                raise ValueError(f"objective.contrast={self.contrast}: want 0 or more")
            if self.temperature <= 0:
                raise ValueError(f"objective.temperature={self.temperature}: want more than 0")
            if self.heads < 1:
                raise ValueError(f"objective.heads={self.heads}: want 1 or more")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        if len(streams) < 2:
            raise ValueError(
                f"cav_mae joins streams, got only {', '.join(streams)}: use mae, which rebuilds one"
            )
        if cells := [s for s, spec in streams.items() if spec.target_kind == "cells"]:
            raise ValueError(
                f"cav_mae rebuilds values and classes, {cells[0]} has cells: take clip, or mae on it alone"
            )
        widths = encoders.widths()
        if len({widths[s] for s in streams}) > 1:
            options = ", ".join(f"encoders.{s}.dim={widths[s]}" for s in streams)
            raise ValueError(
                f"cav_mae runs one block over all streams, whose encoders differ: {options}; set one dim"
            )
        self.cfg, width, d = cfg, widths[next(iter(streams))], cfg.decoder.dim
        if width % cfg.heads:
            raise ValueError(f"objective.heads={cfg.heads} does not divide the encoders' dim={width}")
        kernel = encoders.kernel(next(iter(streams)))  # of the block over all streams the first one's counts
        self.joint = JointBlock(width, cfg.heads, [*streams], kernel)
        self.places = PerStream(
            {s: Places(d, cfg.decoder.init_std, width, spec) for s, spec in streams.items()}
        )
        self.kinds = ParameterPerStream({s: 0.02 * torch.randn(1, 1, d) for s in streams})
        decoder = cfg.decoder
        self.trunk = Trunk(d, decoder.depth, decoder.heads, init_std=decoder.init_std, backend=kernel)
        self.readouts = PerStream({s: Readout(d, spec, cfg.decoder.init_std) for s, spec in streams.items()})

    def plans(self) -> Plans:
        """One global view of each stream under a mask of fixed ratio, with its target."""
        ratio = (self.cfg.mask_ratio, self.cfg.mask_ratio)
        return same_plan(self.places, ViewPlan(num_global=1, mask_ratio=ratio, target=True))

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's samples."""
        masks = [v.mask for v in batch if v.mask is not None and v.target is not None]
        if len(masks) < len(batch):
            raise ValueError("cav_mae wants global views with masks and targets, as its plan says")
        at = [places(m) for m in masks]  # [R, K], [R, Q] each
        found = [f.tokens for f in encoders.encode(batch, "drop")]  # [R, K, D] each
        z = []
        for v, x, (seen, _) in zip(batch, found, at, strict=True):
            real = None if v.valid is None else v.valid.gather(1, seen)
            z.append(mean_token(self.joint(x, v.stream, real), real))  # [B, D]
        terms, constants, real = {}, [], real_tokens(batch)
        for i, (v, x) in enumerate(zip(batch, self.rebuilt(batch, found, at, real), strict=True)):
            readout, counted = cast(Readout, self.readouts[v.stream]), real[i] if real else None
            norm = "token" if readout.kind == "values" else "none"
            loss, constant = readout.loss(x, at[i][1], cast(Tensor, v.target), "mse", norm, counted)
            terms[f"rebuild_{v.stream}"] = loss
            constants.append(constant)
        share = torch.stack([*terms.values()]).sum() / torch.stack(constants).sum().clamp(min=1e-12)
        weights = {**dict.fromkeys(terms, 1.0), "contrast": self.cfg.contrast}
        terms["contrast"], accuracy = self.contrasted(torch.stack(z), batch)
        stats = {
            "std": embedding_std(torch.stack(z), presence(batch)),
            "accuracy": accuracy,
            "share_of_constant": share,
        }
        return Losses.weigh(terms, weights, stats)

    def rebuilt(
        self, batch: Batch, found: list[Tensor], at: list[Any], real: list[Tensor] | None
    ) -> list[Tensor]:
        """Decoded tokens [R, Q, d] of each stream, from the joint pass over the visible tokens of all."""
        looks = [[r.gather(1, places) for places in a] for r, a in zip(real or (), at, strict=bool(real))]
        valid = torch.cat([seen for seen, _ in looks], 1) if looks else None
        together = self.joint(torch.cat(found, 1), TOGETHER, valid).split([x.shape[1] for x in found], 1)
        laid = []
        for v, x, (seen, hidden) in zip(batch, together, at, strict=True):
            placed = cast(Places, self.places[v.stream]).assemble(x, seen, hidden)  # [R, K+Q, d]
            laid.append(placed + self.kinds[v.stream].to(placed.dtype))
        valid = torch.cat([part for pair in looks for part in pair], 1) if looks else None
        (out,), _ = self.trunk([torch.cat(laid, 1)], [valid])
        parts = out.split([x.shape[1] for x in laid], 1)
        return [part[:, x.shape[1] :] for part, x in zip(parts, found, strict=True)]

    def contrasted(self, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean contrast and accuracy over pairs of streams' mean tokens z [S, B, D]."""
        relation, t, there = relations_of(batch), self.cfg.temperature, presence(batch)
        losses, hits = [], []
        for a, b in combinations(range(len(z)), 2):
            keep = None if there is None else there[a] & there[b]
            for q, k in ((b, a), (a, b))[: 1 + self.cfg.both_ways]:
                loss, hit = one_way(z[q], z[k], relation, t, keep)
                losses.append(loss)
                hits.append(hit)
        return torch.stack(losses).mean(), torch.stack(hits).mean()

    def shared_space(self) -> SharedSpace:
        """Return the way into it: the joint block alone with its stream's norms, and the mean of the tokens."""
        return SharedSpace({s: Alone(self.joint, s) for s in self.places}, reads_tokens=True)

    def shard_units(self) -> list[nn.Module]:
        """The decoder's blocks."""
        return list(self.trunk.blocks)


def real_tokens(batch: Batch) -> list[Tensor] | None:
    """Which tokens are real, bool [R, N] of every item: no padding, and the sample has the stream; None: all."""
    if all(v.valid is None and v.present is None for v in batch):
        return None
    whole = [v.valid if v.valid is not None else torch.ones_like(v.masks[0].hidden) for v in batch]
    return [w if v.present is None else w & v.present[:, None] for v, w in zip(batch, whole, strict=True)]
