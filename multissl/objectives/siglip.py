"""SigLIP: every pair of a sample's side and another's is judged on its own, same sample or not.

Zhai et al. 2023, arXiv 2303.15343, algorithm 1, as in open_clip: the sum of softplus(-y * (scale * cos + bias)) over
all pairs of the global batch, y = 1 for the same sample and -1 otherwise, divided by the batch, not by its square; with
more than two streams the mean over their pairs. Scale (10 at first) and bias (-10) are learned. A sum of such terms
needs no softmax; we gather, where the paper passes one side around a ring: the same loss and gradient.
Equal sample_ids have y = 1, pairs of equal group_id and of missing streams are left out.
Shapes: S streams, B samples on this rank, W ranks, P width.
Collectives: gathers of embeddings (with gradient) and of ids.  State: one projector per stream, scale and bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import torch

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.layers.scale import Bias, Scale
from multissl.losses.common import embedding_std
from multissl.losses.siglip import pair_sigmoid
from multissl.objectives.common import ONE_VIEW, need_two, presence, project, same_plan, shared_space
from multissl.objectives.pairing import relations_of
from multissl.parallel.ranks import world


class SigLIP(Objective):
    """Streams in a shared space by yes-or-no questions; two or more of them."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of SigLIP."""

        scale: float = 10.0
        """Of the cosines, at first."""
        bias: float = -10.0
        """At first; about -ln(batch) makes the share of positives right from the start."""
        largest_scale: float = 100.0
        """Limit of the learned scale, which is 1 / temperature."""
        view: Literal["clean", "global"] = "clean"
        """What is compared: the sample as it is, or a crop or moment of it, changed as global views are."""
        projector: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(out=512, layers=1, norm="none")
        )
        """Head of each stream into the shared space."""

        def __post_init__(self) -> None:
            if not 1 <= self.scale <= self.largest_scale:
                raise ValueError(
                    f"objective.scale={self.scale}: want 1 to objective.largest_scale={self.largest_scale}"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        if len(streams) < 2:
            raise ValueError(
                f"siglip compares streams with each other, got only {', '.join(streams)}: "
                "use infonce, which compares views of one stream"
            )
        self.cfg = cfg
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.scale = Scale(1 / cfg.scale, cfg.largest_scale)
        self.bias = Bias(cfg.bias)

    def plans(self) -> Plans:
        """One view of every stream."""
        return same_plan(self.projectors, ONE_VIEW[self.cfg.view])

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("siglip", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's rows."""
        z = project(encoders, self.projectors, batch)  # [S, B, P]
        need_two("siglip", z.shape[1] * world())
        scale, bias = 1 / self.scale(), self.bias()
        relation, flags = relations_of(batch), presence(batch)
        found = [
            pair_sigmoid(
                z[a],
                z[b],
                scale,
                bias,
                relation,
                None if flags is None else flags[[a, b]],
            )
            for a, b in combinations(range(len(z)), 2)
        ]
        losses, hits = (torch.stack(values) for values in zip(*found, strict=True))
        stats = {"std": embedding_std(z, flags), "accuracy": hits.mean(), "scale": scale.squeeze()}
        stats["bias"] = bias.squeeze()
        return Losses.weigh({"sigmoid": losses.mean()}, {"sigmoid": 1.0}, stats)

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The scale goes back into its limits."""
        self.scale.clamp()
