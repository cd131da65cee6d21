"""Retrieval among samples of one stream: does a sample find the others of its class, or of its group, first?

Every sample of the split asks all others, ranked by cosine: mean average precision by the step rule (scikit-learn's),
mAP@R (Musgrave et al. 2020, arXiv 2003.08505), recall@k. Oxford, Paris and Copydays use trapezoids, see `ranking`.
Queries share a gallery, so the interval over queries is too narrow where there are few classes.
Shapes: S samples, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.retrieval import rank
from multissl.evaluators.verdicts import learned
from multissl.inference import Featurize, Pooled, drawn, featurized, measured_baselines
from multissl.statistics import LEVEL


class ClassRetrieval(Evaluator):
    """Mean average precision, mAP@R and recall of samples that ask for their like, in percent."""

    reads = "pooled"
    titles: ClassVar[dict[str, str]] = {
        "map": "retrieval of the same class, mAP, %",
        "map_at_r": "retrieval of the same class, mAP@R, %",
        "r1": "retrieval of the same class, recall@1, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of retrieval among samples."""

        split: str = "val"
        """Split whose samples ask and answer."""
        samples: int = 2_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        by: Literal["class", "group"] = "class"
        """What a right answer shares with the question: its class, or its group, such as the place of a photo."""
        k: tuple[int, ...] = (1, 5)
        """Ranks up to which a right answer counts."""
        margin: float = 2.0
        """Points of mAP above the untrained encoder and the raw input that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if self.samples < 0 or self.samples == 1:
                raise ValueError(f"samples={self.samples}: want 0 (all) or 2 and more")
            if not self.k or min(self.k) < 1:
                raise ValueError(f"k={self.k}: want one or more ranks, each 1 or more")

    cfg: Config

    def metric_names(self) -> list[str]:
        """With the recall at every rank."""
        return ["map", "map_at_r", *(f"r{k}" for k in self.cfg.k)]

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`map`, `map_at_r`, `r1` and so on in percent, over samples that have another of their like."""
        return self._measured(Pooled(encoders), modality, encoders.device)

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The mAP of the modality's classical features."""
        return {name: each["map"] for name, each in measured_baselines(modality, self._measured)}

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last mAP is above the untrained encoder's and the raw input's."""
        return learned("retrieval mAP", "map", history, self.cfg.margin, level)

    def _measured(
        self, featurize: Featurize, modality: Modality, device: torch.device | str
    ) -> dict[str, float]:
        cfg = self.cfg
        places = drawn(len(modality.dataset(cfg.split)), cfg.samples)
        made = featurized(featurize, modality, cfg.split, places, device=device, stream=cfg.stream)
        key = made.labels if cfg.by == "class" else made.groups
        x, key, groups = made.features[key >= 0], key[key >= 0], made.groups[key >= 0]
        right = key[:, None] == key
        has_like = right.sum(1) > 1
        if not bool(has_like.any()):
            self.warn_nothing_to_measure(f"no two samples of the {cfg.split} split share a {cfg.by}")
            return {}
        unit = F.normalize(x, dim=1)
        ranked = rank(unit, unit, right, own=True)
        together = (groups if cfg.by == "class" else key)[has_like].numpy()
        return {
            "map": estimate(100 * ranked.precision.numpy(), together),
            "map_at_r": estimate(100 * ranked.precision_at_r.numpy(), together),
            **{f"r{k}": estimate(100 * ranked.hits(k).numpy(), together) for k in cfg.k},
        }
