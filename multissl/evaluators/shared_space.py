"""What is measured in a space that several streams share: embeddings of a split's samples in every stream.

Shapes: S samples, P width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Sample
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.finite import NotFinite
from multissl.contract.modality import Modality
from multissl.inference import readable_streams, sample_name

NO_SPACE = "these encoders share no space between streams"
"""Why there is nothing to measure where no objective made one."""


@dataclass(kw_only=True, slots=True)
class Embedded:
    """Samples in the shared space."""

    z: dict[str, Tensor]
    """Unit vectors [S, P] by stream."""
    here: dict[str, Tensor]
    """bool [S] by stream: who has it."""
    ids: list[Tensor]
    """int64 [S] each; samples that agree in any of them are the same thing."""
    samples: list[Sample]

    def same(self) -> Tensor:
        """Which samples are the same thing, bool [S, S]; each is itself."""
        alike = torch.eye(len(self.samples), dtype=torch.bool)
        for ids in self.ids:
            alike |= ids[:, None] == ids
        return alike


@torch.no_grad()
def embed(
    encoders: FrozenEncoders,
    modality: Modality,
    samples: Sequence[Sample],
    streams: Sequence[str],
    source: str,
    *,
    batch_size: int = 256,
) -> Embedded | None:
    """The readable ones of some samples in the shared space; None where the encoders lead into none.

    Raises `NotFinite` with the name of the sample of the source ("the val split") whose embedding is not finite.
    """
    device = encoders.device
    z: dict[str, list[Tensor]] = {s: [] for s in streams}
    here: dict[str, list[Tensor]] = {s: [] for s in streams}
    ids: dict[str, list[Tensor]] = {}
    kept: list[Sample] = []
    for start in range(0, len(samples), batch_size):
        views, readable = readable_streams(modality, [*samples[start : start + batch_size]], streams, device)
        kept += readable
        try:
            encoded = encoders.encode([*views.values()])
        except NotFinite as bad:
            raise bad.named(sample_name(modality, readable[bad.rows[0]], source)) from None
        for features, v in zip(encoded, views.values(), strict=True):
            if features.embedding is None:
                return None
            z[v.stream].append(F.normalize(features.embedding.float(), dim=1).cpu())
            present = torch.ones(v.batch, dtype=torch.bool) if v.present is None else v.present.cpu()
            here[v.stream].append(present)
            if v.sample_id is not None:
                ids.setdefault(v.stream, []).append(v.sample_id.cpu())
    return Embedded(
        z={s: torch.cat(parts) for s, parts in z.items()},
        here={s: torch.cat(parts) for s, parts in here.items()},
        ids=[torch.cat(parts) for parts in ids.values()],
        samples=kept,
    )


def permutation_p(found: float, shuffled: Any) -> float:
    """The share of shuffled figures [K] that reach the found one, itself counted among them: (1 + n) / (1 + K)."""
    shuffled = torch.as_tensor(shuffled)
    return (1 + int((shuffled >= found - 1e-9).sum())) / (1 + len(shuffled))
