"""Whether features tell which recording a sound comes from: microphone, room and codec rather than what is heard.

Two parts of each recording are featurized apart. For each second part the nearest first part is sought, by cosine after
the mean of the first parts is taken out of both; it should be of the same recording in `same` percent. Views of one
recording share its noise baseline, which a contrastive objective can recognize instead of the sound. The figure should
not be far above the untrained encoder's and the classical features' while accuracy on classes rises. Parts that the
modality cannot read (silence) leave the recording out. There is no verdict: content is similar within a recording too.
Shapes: n recordings, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.abilities import HasRecordings
from multissl.contract.data import Sample, Unreadable
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.inference import Featurize, Pooled, clean_views, drawn, finite_features


class RecordingProbe(Evaluator):
    """Share of recordings recognized by another part of them, in percent."""

    titles: ClassVar[dict[str, str]] = {"same": "recording recognized, %"}

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the recording probe."""

        split: str = "val"
        """Whose recordings are looked for among each other."""
        recordings: int = 1000
        """Recordings, drawn with a fixed seed; 0: all. More are harder to tell apart."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.recordings < 0 or self.recordings == 1:
                raise ValueError(f"recordings={self.recordings}: want 0 (all) or 2 or more")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`same` of the pooled features and the figure of `chance`; nothing where samples have no parts."""
        pairs = self._pairs(modality)
        if not pairs:
            return {}
        featurize = Pooled(encoders)
        first, second = self._features(featurize, modality, pairs, encoders.device)
        return {"same": recognized(first, second), "chance": 100 / len(first)}

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The same figure for the modality's classical features."""
        pairs = self._pairs(modality)
        baselines = modality.baselines().items() if pairs else ()
        return {name: recognized(*self._features(f, modality, pairs, "cpu")) for name, f in baselines}

    def _pairs(self, modality: Modality) -> list[tuple[Sample, Sample]]:
        """The two parts of the recordings that have them, numbered alike."""
        if not isinstance(modality, HasRecordings):
            self.warn_nothing_to_measure("the data is no recordings")
            return []
        data, pairs = modality.dataset(self.cfg.split), []
        for i in drawn(len(data), self.cfg.recordings):  # type: ignore[arg-type]
            try:
                pairs.append(modality.parts(data[i]))
            except Unreadable:
                continue
        if len(pairs) < 2:
            self.warn_nothing_to_measure(
                f"{len(pairs)} recordings of the {self.cfg.split} split have two readable parts"
            )
            return []
        return pairs

    def _features(
        self,
        featurize: Featurize,
        modality: Modality,
        pairs: list[tuple[Sample, Sample]],
        device: torch.device | str,
        batch_size: int = 256,
    ) -> tuple[Tensor, Tensor]:
        """Features [n, F] of the first and of the second parts."""
        stream, source = next(iter(modality.streams())), f"the {self.cfg.split} split"
        starts = range(0, len(pairs), batch_size)
        chunks = [
            [*zip(*pairs[i : i + batch_size], strict=True)] for i in starts
        ]  # of first and second parts
        found: list[list[Tensor]] = [[], []]
        with torch.no_grad():
            for sides in chunks:
                for rows, samples in zip(found, sides, strict=True):
                    views = clean_views(modality, [*samples], stream, device)
                    rows.append(finite_features(featurize, views, modality, samples, source))
        return torch.cat(found[0]), torch.cat(found[1])


def recognized(first: Tensor, second: Tensor) -> float:
    """Percent of rows of second [n, F] whose nearest row of first [n, F] is theirs; NaN where some are not finite."""
    if not bool(first.isfinite().all() & second.isfinite().all()):
        return math.nan
    mean = first.mean(0)
    first, second = (F.normalize((x - mean).double(), dim=1) for x in (first, second))
    nearest = (second @ first.T).argmax(1)
    hits = nearest == torch.arange(len(first), device=first.device)
    return estimate(100.0 * hits.cpu().numpy())
