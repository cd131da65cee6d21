"""VICRegL: VICReg of whole views, and of the places in them that match.

Bardes, Ponce, LeCun, NeurIPS 2022, arXiv 2210.01571, section 3: alpha * global + (1 - alpha) * local. As in the
official code: views 0 and 1 are global and each meets every other view; variance and covariance of whole views are
means over views. For a pair (i, j) every token looks for the nearest token of the other view, once by features and
once by its place in the sample; the closest matches are kept, in the order of their tokens, `matches[0]` from i to j
and `matches[1]` back. VICReg's terms are taken of the matched tokens, with statistics over the batch at every slot,
halved for both ways; those by features and those by places add up; the local terms are means over pairs.
Shapes: V views, B samples on this rank, N, M tokens, P width of the projections, k matches.
State: two projectors.  Collectives: gathers with gradient, one a view and four a pair and kind of match.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Plans, StreamSpec, ViewPlan
from multissl.layers.heads import MLPHead
from multissl.losses.common import embedding_std
from multissl.losses.vicregl import TERMS, global_terms, local_terms
from multissl.objectives.common import head, need_two, same_plan, single_stream
from multissl.objectives.vicreg import check_weights


class VICRegL(Objective):
    """VICReg on pooled features and on matching tokens."""

    reads_present = True

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of VICRegL."""

        alpha: float = 0.75
        """Share of the loss on whole views; 1 leaves the matches out."""
        invariance: float = 25.0
        """Weight of the distance between matching embeddings."""
        variance: float = 25.0
        """Weight of the hinge on each channel's deviation."""
        covariance: float = 1.0
        """Weight of the covariance between channels."""
        num_local: int = 0
        """Local views; each meets the two global ones."""
        matches: tuple[int, int] = (20, 4)
        """Matches kept from the first view of a pair to the second, and back; at most as many as there are tokens."""
        all_by_features: bool = False
        """Keep every match by features; those by places are always cut."""
        projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(hidden=8192, out=8192))
        """Head between the features and the loss."""
        token_projector: MLPHead.Config = field(default_factory=lambda: MLPHead.Config(hidden=512, out=512))
        """Head between tokens and the local loss."""

        def __post_init__(self) -> None:
            check_weights(self.invariance, self.variance, self.covariance)
            if not 0 <= self.alpha <= 1:
                raise ValueError(f"objective.alpha={self.alpha}: want 0 to 1")
            if self.num_local < 0:
                raise ValueError(f"objective.num_local={self.num_local}: want 0 or more")
            if min(self.matches) < 1:
                raise ValueError(f"objective.matches={self.matches}: want 1 or more; alpha=1 leaves them out")

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        instead = "places of different streams cannot be compared; use vicreg"
        self.cfg = cfg
        self.stream = single_stream("vicregl", streams, "matches places within one stream", instead)
        dim = encoders.widths()[self.stream]
        self.projector = cfg.projector.build(dim) if cfg.alpha > 0 else None
        self.token_projector = cfg.token_projector.build(dim) if cfg.alpha < 1 else None

    def plans(self) -> Plans:
        """Two global views and local ones, with the places of their tokens."""
        plan = ViewPlan(num_global=2, num_local=self.cfg.num_local, coords=self.cfg.alpha < 1)
        return same_plan([self.stream], plan)

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("vicregl", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The losses of this rank's rows."""
        cfg, features = self.cfg, encoders.encode(batch)
        terms: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        if self.projector is not None:
            present = batch[0].present  # [B]
            z = torch.cat(
                [
                    head(self.projector, f.pooled, v.num_views, apart=True, keep=v.present_rows)
                    for f, v in zip(features, batch, strict=True)
                ]
            )
            terms |= {f"global_{n}": t for n, t in global_terms(z, present).items()}
            stats["std"] = embedding_std(z, present)
        if self.token_projector is not None:
            maps, places, real = self.maps(features, batch)
            found = local_terms(maps, places, cfg.matches, cfg.all_by_features, real)
            terms |= {f"local_{n}": t for n, t in found.items()}
            keep = None if real is None else real[0].flatten()
            stats["token_std"] = embedding_std(maps[0].flatten(0, 1), keep)
        shares = {"global": cfg.alpha, "local": 1 - cfg.alpha}
        weights = {f"{part}_{n}": share * getattr(cfg, n) for part, share in shares.items() for n in TERMS}
        return Losses.weigh(terms, weights, stats)

    def maps(
        self, features: Sequence[Features], batch: Batch
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        """Each view's tokens projected [B, N, P], their places [B, N, 2], which are real, bool [B, N]; None: all."""
        assert self.token_projector is not None
        maps: list[Tensor] = []
        places: list[Tensor] = []
        real: list[Tensor] = []
        some = any(v.present is not None or v.valid is not None for v in batch)
        for f, v in zip(features, batch, strict=True):
            count = f.tokens.shape[1]
            flags = v.real_tokens(count)  # [R, N]
            if some and flags is None:
                flags = torch.ones(f.tokens.shape[:2], dtype=torch.bool, device=f.tokens.device)
            keep = None if flags is None else flags.flatten()
            rows = head(self.token_projector, f.tokens.flatten(0, 1), v.num_views, apart=True, keep=keep)
            maps += list(rows.unflatten(1, (-1, count)))
            places += list(places_of(v.coords, count).chunk(v.num_views))
            real += [] if flags is None else list(flags.chunk(v.num_views))
        return maps, places, real or None


def places_of(coords: Tensor | None, tokens: int) -> Tensor:
    """Coordinates [R, N, 2] of a square grid of tokens, for an encoder with another square grid: [R, tokens, 2]."""
    if coords is None:
        raise ValueError(
            "vicregl wants views with coords: take a modality that provides them, or objective.alpha=1"
        )
    before, after = math.isqrt(coords.shape[1]), math.isqrt(tokens)
    if coords.shape[1] == tokens:
        return coords
    if before**2 != coords.shape[1] or after**2 != tokens or before < 2:
        raise ValueError(
            f"vicregl has places for {coords.shape[1]} tokens and the encoder gives {tokens}: both want to be square "
            "grids, the first 2 x 2 or more; choose a patch size like the encoder's, or objective.alpha=1"
        )
    grid = coords.unflatten(1, (before, before))  # [R, n, n, 2], rising evenly along both axes
    down, across = grid[:, 1, 0] - grid[:, 0, 0], grid[:, 0, 1] - grid[:, 0, 0]  # [R, 2]
    at = (torch.arange(after, device=coords.device, dtype=coords.dtype) + 0.5) * before / after - 0.5
    rows, columns = at[:, None, None] * down[:, None, None], at[:, None] * across[:, None, None]
    return (grid[:, :1, :1] + rows + columns).flatten(1, 2)
