"""An evaluator measures frozen encoders on clean views.

Shapes: see `contract.data`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from multissl.config import Component, config_name
from multissl.config import Config as BaseConfig
from multissl.contract.data import Views
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.learning import Features, Figure, Progress
from multissl.contract.modality import Modality
from multissl.contract.plans import Masking

log = logging.getLogger("multissl")


@dataclass(slots=True)
class FrozenEncoders(EncodeFunction):
    """Encoders as evaluators see them: a way in, and where they lie. It lives while the weights stay as they are."""

    function: Callable[[Sequence[Views], Masking, int], list[Features]]
    device: torch.device
    memory: dict[Any, Any] = field(default_factory=dict)
    """Features that evaluators share."""
    part_errors: Callable[[Views], Tensor] | None = None
    """What the objective's predictions of parts cost, where it makes some (`abilities.PredictsParts`) and is at hand: a
    saved encoder comes without its objective."""
    modules: Encoders | None = None
    """The encoders themselves, for evaluators that train a copy; None inside a run, where they may be sharded."""

    @staticmethod
    def of(encoders: Encoders) -> FrozenEncoders:
        """Return encoders that are in evaluation mode whenever they are used (batch norm, drop path)."""
        first = next(encoders.parameters(), None)
        device = torch.device("cpu") if first is None else first.device

        def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
            modes = [(m, m.training) for m in encoders.modules()]
            for module, _ in modes:
                module.training = False
            try:
                return encoders.encode(views, masking, inner)
            finally:
                for module, mode in modes:
                    module.training = mode

        return FrozenEncoders(encode, device, modules=encoders)

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Return the features of every item."""
        return self.function(views, masking, inner)


class Evaluator(Component, ABC):
    """Base of evaluators."""

    group: ClassVar[str] = "evaluators"
    titles: ClassVar[dict[str, str]] = {}
    """What the report calls its figures, by name."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of an evaluator."""

        every: int = 0
        """Steps between runs; 0 runs it before the first step and after the last one only."""
        stream: str = ""
        """Whose encoder is measured where the modality feeds several; empty: the first one's."""

        def __post_init__(self) -> None:
            if self.every < 0:
                raise ValueError(f"every={self.every}: want 0 (start and end only) or a number of steps")

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._warned = False

    @property
    def measures_student(self) -> bool:
        """Whether the student is measured too, where a teacher is what the run exports."""
        return False

    @abstractmethod
    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """Return figures by name; the engine adds the evaluator's own name in front."""

    def baselines(self, modality: Modality) -> dict[str, float]:
        """Return figures of the modality's classical features, measured once at the start; none by default."""
        return {}

    def verdict(self, history: list[dict[str, float]]) -> tuple[bool, str] | None:
        """Return whether the run learned, and a sentence that says so, from this evaluator's figures over time."""
        return None

    def figures(self, encoders: FrozenEncoders, modality: Modality) -> list[Figure]:
        """Draw pictures for the report; none by default."""
        return []

    def labeled(self, modality: Modality, *splits: str) -> bool:
        """Return whether all of the splits have labels; warn once where one has none. Looks at 64 samples of each."""
        for split in splits:
            data = modality.dataset(split)
            count = len(data)
            if not any(data[i * count // min(64, count)].label >= 0 for i in range(min(64, count))):
                self.warn_nothing_to_measure(f"the {split} split has no labels")
                return False
        return True

    def warn_nothing_to_measure(self, why: str) -> None:
        """Warn, once, that there is nothing to measure."""
        if not self._warned:
            log.warning("%s: %s, nothing to measure", config_name(type(self.cfg)), why)
            self._warned = True
