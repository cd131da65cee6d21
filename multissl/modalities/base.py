"""What every modality shares: the base class and helpers that cut a global batch into views.

Shapes: B samples of this rank, V views, R = V*B rows stacked view-major, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.modalities.readers import Slice
from multissl.random import RowRandom
from multissl.types import Batch, Mask, Panel, Plans, Raw, Sample, StreamSpec, Views

if TYPE_CHECKING:
    import numpy as np


class Modality(Component):
    """Base of modalities: options in `Config`, no parameters."""

    group: ClassVar[str] = "modalities"
    offers: frozenset[str] = frozenset()
    suffixes: ClassVar[tuple[str, ...]] = ()
    """File types that a payload, `Sample.data`, comes in, the preferred first."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Usual names of a table's column that holds payloads."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a modality."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    def streams(self) -> dict[str, StreamSpec]:
        """The streams it feeds, by name."""
        raise NotImplementedError

    def offered(self, stream: str) -> frozenset[str]:
        """What plans may ask for in a stream: `offers`, unless streams differ."""
        return self.offers

    def dataset(self, split: str) -> Dataset[Sample]:
        """The samples of a split."""
        raise NotImplementedError

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """The worker's part."""
        raise NotImplementedError

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """The device's part."""
        raise NotImplementedError

    def floors(self) -> dict[str, Any]:
        """The raw input, flattened, is the floor that every modality has."""
        return {"raw": flatten}

    def panels(self, batch: Batch) -> list[Panel]:
        """Pictures of a batch; none by default."""
        return []

    def pictures(self, views: Views) -> np.ndarray | None:
        """Clean views as pictures, uint8 [R, H, W, 3], for the report; None where they are none."""
        return None

    def told(self, sample: Sample) -> dict[str, str]:
        """What a table of features says of a sample besides its class; here the file that it is, if it is one."""
        name = sample.data.name if isinstance(sample.data, Slice) else sample.data
        return {"file": str(name)} if isinstance(name, str | Path) else {}

    def fit(self, data: Sequence[Any]) -> None:
        """Measure what is not known yet on these training payloads instead of its own source; nothing by default."""

    def state(self) -> dict[str, Any]:
        """Nothing fitted by default."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take back by default."""


class Payloads(Dataset[Sample]):
    """Payloads as samples."""

    def __init__(self, data: Sequence[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.data[index], index)


def flatten(views: Views) -> Tensor:
    """The input itself as features: [R, C*...] in fp32."""
    return views.x.flatten(1).float()


def pack_masks(hidden: Tensor, size: int | None = None) -> Mask:
    """A `Mask` from hidden [R, N], its index padded to `size` (default: as many as are hidden)."""
    counts = hidden.sum(1)  # [R]
    index = hidden.flatten().nonzero().flatten()
    weight = (1.0 / counts.clamp(min=1)).repeat_interleave(counts).float()
    padding = (len(index) if size is None else size) - len(index)
    if padding < 0:
        raise ValueError(f"{len(index)} tokens are hidden, more than the {size} that fit")
    same = counts.numel() > 0 and bool((counts == counts[0]).all())
    return Mask(
        hidden=hidden,
        index=torch.nn.functional.pad(index, (0, padding)),
        weight=torch.nn.functional.pad(weight, (0, padding)),
        num_hidden=int(counts[0]) if same else None,
    )
