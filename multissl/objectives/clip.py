"""CLIP: of each pair of streams, a sample's two sides find each other among the samples of all ranks.

Radford et al. 2021, arXiv 2103.00020, figure 3, as in open_clip: per pair the mean of the two directions' cross
entropies, each a mean over samples; with more than two streams the mean over their pairs. The scale starts at
ln(1 / temperature), is learned and clamped to [0, ln 100] after each step; or the temperature stays fixed (CAV-MAE:
0.05). Equal sample_ids are positives of each other (outside the log), equal group_ids no negatives, and a sample that
lacks a stream is left out of that stream's pairs.
Shapes: S streams, B samples on this rank, W ranks, P width.
Collectives: gathers of embeddings (with gradient) and of ids.  State: one projector per stream, the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders, SharedSpace
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.layers.scale import Scale
from multissl.losses.clip import clip_loss, modality_gap
from multissl.losses.common import embedding_std
from multissl.objectives.common import ONE_VIEW, need_two, presence, project, same_plan, shared_space
from multissl.objectives.pairing import relations_of
from multissl.parallel.ranks import world


class CLIP(Objective):
    """Streams in a shared space, a linear map each; two or more of them."""

    reads_present = True
    reads_tokens = False

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of CLIP."""

        temperature: float = 0.07
        """The first one, or the one."""
        learn_temperature: bool = True
        """Train the temperature; otherwise it stays as it starts."""
        largest_scale: float = 100.0
        """Of a learned scale, 1 / temperature."""
        view: Literal["clean", "global"] = "clean"
        """What is compared: the sample as it is, or a crop or moment of it, changed as global views are."""
        projector: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(out=512, layers=1, norm="none")
        )
        """Head of each stream into the shared space."""

        def __post_init__(self) -> None:
            if self.temperature <= 0:
                raise ValueError(f"objective.temperature={self.temperature}: want more than 0, CLIP has 0.07")
            if self.learn_temperature and not 1 <= 1 / self.temperature <= self.largest_scale:
                raise ValueError(
                    f"objective.temperature={self.temperature}: a learned one starts between "
                    f"1/objective.largest_scale={1 / self.largest_scale:g} and 1; or set "
                    "objective.learn_temperature=False"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        if len(streams) < 2:
            raise ValueError(
                f"clip compares streams with each other, got only {', '.join(streams)}: "
                "use infonce, which compares views of one stream"
            )
        self.cfg = cfg
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.scale = Scale(cfg.temperature, cfg.largest_scale) if cfg.learn_temperature else None

    def plans(self) -> Plans:
        """One view of every stream."""
        return same_plan(self.projectors, ONE_VIEW[self.cfg.view])

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("clip", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's rows."""
        z = project(encoders, self.projectors, batch)  # [S, B, P]
        need_two("clip", z.shape[1] * world())
        temperature = self.scale() if self.scale else z.new_tensor([self.cfg.temperature])
        present = presence(batch)  # [S, B]
        loss, stats = clip_loss(z, relations_of(batch), temperature, present)
        stats |= {"std": embedding_std(z, present), "gap": modality_gap(z, present)}
        stats["scale"] = 1 / temperature.squeeze()
        return Losses.weigh({"nce": loss}, {"nce": 1.0}, stats)

    def shared_space(self) -> SharedSpace | None:
        """Return the space of the projections, where there are several streams."""
        return shared_space(self.projectors)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The learned scale goes back into its limits."""
        if self.scale:
            self.scale.clamp()
