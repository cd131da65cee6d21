"""Who is alike in a batch, and each stream's predictions: what contrastive objectives share.

Shapes: V views, B samples on this rank, W ranks, P projector width.  Collectives: a gather of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.per_stream import PerStream
from multissl.layers.queue import NOBODY
from multissl.losses.nce import Relations, relations
from multissl.objectives.common import head


def relations_of(batch: Batch) -> Relations:
    """Relations by the ids of a batch's views; samples alike in one stream are alike."""
    samples = [v.sample_id for v in batch if v.sample_id is not None]
    groups = [g for v in batch if v.group_id is not None for g in v.group_id.reshape(v.batch, -1).T]
    return relations(batch[0].batch, samples, groups, batch[0].x.device)


def predict(
    predictors: PerStream[Any], streams: Sequence[str], z: Tensor, present: Tensor | None = None
) -> Tensor:
    """Each view's projections z [V, B, P] through the predictor of its stream, one view at a time; fp32 again.

    present bool [V, B] keeps the rows of a view that are not there out of batch norm's statistics.
    """
    parts = []
    for stream, each, keep in zip(streams, z, [None] * len(z) if present is None else present, strict=True):
        narrow = next(
            predictors[stream].parameters()
        ).dtype  # z was widened; in mixed precision weights were not
        parts.append(head(predictors[stream], each.to(narrow), 1, keep=keep))
    return torch.cat(parts)


def ids_of(batch: Batch) -> Tensor:
    """Each sample's sample_id and (first) group_id, [B, 2], of the first stream that knows them, else NOBODY."""
    nobody = torch.full((batch[0].batch,), NOBODY, device=batch[0].x.device)
    samples = [v.sample_id for v in batch if v.sample_id is not None]
    groups = [v.group_id.reshape(v.batch, -1)[:, 0] for v in batch if v.group_id is not None]
    return torch.stack([[*samples, nobody][0], [*groups, nobody][0]], 1)
