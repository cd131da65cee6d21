"""What every evaluator shares: features of a labelled split on clean views.

Shapes: S samples of a split, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.random import RowRandom
from multissl.types import CLEAN, Encode, Features, Modality, Panel, Progress, Sample, Unreadable, Views

Featurize = Callable[[Views], Tensor]
"""From clean views to features [R, D]: an encoder's pooled output, or a modality's floor."""


class Evaluator(Component):
    """Base of evaluators."""

    group: ClassVar[str] = "evaluators"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an evaluator."""

        every: int = 0
        """Steps between runs; 0 runs it before the first step and after the last one only."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    def run(self, encoders: Encode, modality: Modality, progress: Progress) -> dict[str, float]:
        """Figures by name."""
        raise NotImplementedError

    def floors(self, modality: Modality) -> dict[str, float]:
        """Figures of the modality's classical features, measured once at the start; none by default."""
        return {}

    def verdict(self, history: list[dict[str, float]]) -> tuple[bool, str] | None:
        """Whether the run learned and a sentence that says so, from this evaluator's figures of the whole run."""
        return None

    def panels(self, encoders: Encode, modality: Modality) -> list[Panel]:
        """Pictures for the report; none by default."""
        return []


def pooled(encoders: Encode) -> Featurize:
    """The encoder's pooled output as features."""

    def featurize(views: Views) -> Tensor:
        feature: Features = encoders.encode([views])[0]
        return feature.pooled.float()

    return featurize


@torch.inference_mode()
def featurize_split(
    featurize: Featurize,
    modality: Modality,
    split: str,
    limit: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Features [S, D] and labels [S] of a split's samples, `limit` of them evenly spaced (0: all).

    Unreadable samples are left out. The stream is the modality's first.
    """
    data = modality.dataset(split)
    count = len(data)  # type: ignore[arg-type]
    picked = range(count) if not limit or limit >= count else [i * count // limit for i in range(limit)]
    stream = next(iter(modality.streams()))
    features, labels = [], []
    for start in range(0, len(picked), batch_size):
        samples = [data[i] for i in picked[start : start + batch_size]]
        views, samples = clean_views(modality, samples, stream, device)
        features.append(featurize(views).cpu())
        labels += [s.label for s in samples]
    return torch.cat(features), torch.tensor(labels)


def clean_views(
    modality: Modality, samples: list[Sample], stream: str, device: torch.device | str = "cpu"
) -> tuple[Views, list[Sample]]:
    """The clean views of the readable ones of some samples on a device, and those samples."""
    plans = {stream: CLEAN}
    while samples:
        rng = RowRandom((0, 0), 0, len(samples), len(samples))
        try:
            raw = modality.collate(samples, plans, rng)
        except Unreadable as bad:
            samples = [s for s in samples if s.index != bad.index]
            continue
        raw = tree_map_only(Tensor, lambda t: t.to(device), raw)
        return next(v for v in modality.views(raw, plans, rng.to(device)) if v.role == "clean"), samples
    raise ValueError("none of the samples to evaluate on can be read")
