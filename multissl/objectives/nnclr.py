"""NNCLR: the nearest earlier embedding stands in for a view, and recognizes the sample's other view.

Dwibedi et al. 2021, arXiv 2104.14548, equations 2 and 3, the mean of both directions: anchors are the neighbors of
view a in a queue, candidates the predictions of view b of all ranks (the paper's form, and solo-learn's). lightly
contrasts neighbors and predictions with both (NT-Xent), the option `two_view`. Embeddings of the first view enter the
queue after the step. Batch norms see one view at a time.
Shapes: V views, B samples on this rank, W ranks, K queued embeddings, P width.
Collectives: gathers of predictions (with gradient), of new embeddings (without) and of ids.
State: one projector, predictor and queue per stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import cast

import torch
import torch.nn.functional as F

from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.per_stream import PerStream
from multissl.contract.plans import Plans, StreamSpec
from multissl.layers.heads import MLPHead
from multissl.layers.queue import Queue
from multissl.losses.common import embedding_std
from multissl.losses.nnclr import neighbors, nnclr_loss
from multissl.objectives.common import need_two, presence, project, same_plan, views_per_stream
from multissl.objectives.pairing import predict, relations_of
from multissl.parallel.collectives import gather
from multissl.parallel.ranks import world


class NNCLR(Objective):
    """Contrast with nearest neighbors, of two views or of one view of each of several streams."""

    @dataclass(kw_only=True, slots=True)
    class Config(Objective.Config):
        """Options of NNCLR."""

        queue: int = 65536
        """Embeddings of earlier steps among which neighbors are looked for."""
        temperature: float = 0.1
        """Temperature of the scores, more than 0."""
        two_view: bool = False
        """Contrast neighbors and predictions with each other and among themselves (lightly)."""
        projector: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=2048, out=256, layers=3, last_norm=True)
        )
        """Head between the features and the loss."""
        predictor: MLPHead.Config = field(
            default_factory=lambda: MLPHead.Config(hidden=4096, out=256, layers=2)
        )
        """Head that predicts the neighbour's embedding."""

        def __post_init__(self) -> None:
            if self.temperature <= 0:
                raise ValueError(f"objective.temperature={self.temperature}: want more than 0, NNCLR has 0.1")
            if self.queue < 1:
                raise ValueError(
                    f"objective.queue={self.queue}: want the global batch or more, NNCLR has 98304"
                )
            if self.predictor.out != self.projector.out:
                raise ValueError(
                    f"objective.predictor.out={self.predictor.out}: want that of objective.projector.out, "
                    f"{self.projector.out}"
                )

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__()
        self.cfg, self.plan = cfg, views_per_stream(streams, 2)
        self.projectors = PerStream({s: cfg.projector.build(encoders.widths()[s]) for s in streams})
        self.predictors = PerStream({s: cfg.predictor.build(cfg.projector.out) for s in streams})
        self.queues = PerStream({s: Queue(cfg.queue, cfg.projector.out) for s in streams})

    def plans(self) -> Plans:
        """Two global views of a single stream, or one clean view of each of several."""
        return same_plan(self.projectors, self.plan)

    def check_dataset_size(self, samples: int) -> None:
        """A queue that outlasts an epoch would hand samples their own past as neighbors."""
        if self.cfg.queue > samples:
            raise ValueError(
                f"objective.queue={self.cfg.queue}: more than the {samples} training samples, whose nearest neighbors "
                f"would be themselves; set objective.queue to {samples} or less"
            )

    def check_batch_size(self, samples: int) -> None:
        """Samples are compared with one another."""
        need_two("nnclr", samples)

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        """The loss of this rank's rows."""
        cfg, relation = self.cfg, relations_of(batch)
        if presence(batch) is not None:
            raise ValueError("nnclr cannot queue streams that samples lack: use clip, or moco with queue=0")
        z = project(encoders, self.projectors, batch, apart=True)  # [V, B, P]
        need_two("nnclr", z.shape[1] * world())
        streams = [v.stream for v in batch for _ in range(v.num_views)]
        p = predict(self.predictors, streams, z)  # [V, B, P]
        found, hits = [], []
        for a, b in permutations(range(len(z)), 2):
            queue = cast(Queue, self.queues[streams[a]])
            near, place = neighbors(z[a], queue.rows)
            hits.append((place < queue.filled).float().mean())
            found.append(nnclr_loss(near, p[b], relation, cfg.temperature, cfg.two_view))
        losses, right = (torch.stack(values) for values in zip(*found, strict=True))
        for stream in self.queues:
            queue, first = cast(Queue, self.queues[stream]), streams.index(stream)
            queue.put(gather(F.normalize(z[first].detach(), dim=1)))
        stats = {"std": embedding_std(z), "accuracy": right.mean(), "queue_hits": torch.stack(hits).mean()}
        return Losses.weigh({"nce": losses.mean()}, {"nce": 1.0}, stats)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        """The step's embeddings enter the queues."""
        for queue in self.queues.values():
            cast(Queue, queue).after_step()
