"""An evaluator measures frozen encoders on clean views.

Features that are not finite go no further: `FrozenEncoders` raises `NotFinite`, and the base of evaluators turns that
into figures that are NaN and one warning, so that no evaluator can make a plausible number of them.
Shapes: see `contract.data`.
"""

from __future__ import annotations

import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from multissl.config import Component, config_name
from multissl.config import Config as BaseConfig
from multissl.contract.data import Views
from multissl.contract.decision import GO_ON, Decision
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.finite import NotFinite, check_finite
from multissl.contract.learning import Features, Figure, Progress
from multissl.contract.modality import Modality
from multissl.contract.plans import Masking
from multissl.contract.verdict import Verdict
from multissl.statistics import LEVEL

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
    mixed: Callable[[float], AbstractContextManager[None]] | None = None
    """Within what it returns, the weights are a mixture of those at the start of the run and the present ones, which
    have this share; None outside of a run. Take another `FrozenEncoders` there, as features are remembered."""
    depths: Mapping[str, int] = field(default_factory=dict)
    """Blocks whose outputs an encoder can hand out, by stream; one that is not named here hands out none."""

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

        return FrozenEncoders(encode, device, modules=encoders, depths=depths_of(encoders))

    def __post_init__(self) -> None:
        if self.part_errors is not None:
            self.part_errors = finite_errors(self.part_errors)

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Return the features of every item. Raises `NotFinite` where those of a present sample are not finite.

        Under a mask that drops tokens it cannot tell padding among the tokens, and looks at the rest alone.
        """
        features = self.function(views, masking, inner)
        for made, v in zip(features, views, strict=True):
            check_finite(made.pooled, v.present)
            for rows in made.inner_pooled if made.embedding is None else (made.embedding, *made.inner_pooled):
                check_finite(rows, v.present)
            for tokens in (made.tokens, *made.inner):
                if v.valid is None or v.valid.shape == tokens.shape[:2]:
                    check_finite(tokens, v.present, v.valid)
        return features


def depths_of(encoders: Encoders) -> dict[str, int]:
    """Return the blocks whose outputs encoders can hand out, by stream."""
    return {stream: e.depth if e.gives_blocks else 0 for stream, e in encoders.items()}


def finite_errors(errors: Callable[[Views], Tensor]) -> Callable[[Views], Tensor]:
    """Return the same function of views, which raises `NotFinite` where one of its errors is not finite."""

    def checked(views: Views) -> Tensor:
        costs = errors(views)
        check_finite(costs)
        return costs

    return checked


def gated(method: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Return an evaluator's method that warns and gives what `instead` makes, where `NotFinite` is raised."""

    @functools.wraps(method)
    def measure(self: Evaluator, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except NotFinite as bad:
            self.warn_not_finite(bad)
            return instead(self, *args, **kwargs)

    return measure


class Evaluator(Component, ABC):
    """Base of evaluators."""

    group: ClassVar[str] = "evaluators"
    titles: ClassVar[dict[str, str]] = {}
    """What the report calls its figures, by name."""
    version: ClassVar[int] = 1
    """Raised whenever the same features and options give other figures: those of two versions are not compared."""
    reads: ClassVar[Literal["pooled", "encoders"]] = "encoders"
    """pooled: features [S, D] with labels and groups are all that it reads, so that a file of features is enough."""
    fits: ClassVar[bool] = False
    """Whether it fits or stores something of the train split, which is then not the one that may be scored."""

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

        def check_counts(self, *names: str) -> None:
            """Raise a ValueError where one of these options, whose 0 stands for all samples, is below 0."""
            counts = {name: getattr(self, name) for name in names}
            if min(counts.values()) < 0:
                listed = ", ".join(f"{name}={count}" for name, count in counts.items())
                raise ValueError(f"{listed}: want 0 (all) or a number of samples")

        def build(self) -> Evaluator:
            """Return the evaluator."""
            return super(Evaluator.Config, self).build()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put the gate around what a subclass measures: no evaluator has to ask for it, or can forget it."""
        super().__init_subclass__(**kwargs)
        instead: dict[str, Callable[..., Any]] = {
            "run": lambda self, encoders, modality, progress: dict.fromkeys(self.metric_names(), math.nan),
            "baselines": lambda self, modality: dict.fromkeys(self.baseline_names(modality), math.nan),
            "begin": lambda self, encoders, modality: None,
            "figures": lambda self, encoders, modality: [],
        }
        for name in vars(cls).keys() & instead:
            setattr(cls, name, gated(vars(cls)[name], instead[name]))

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._said: set[str] = set()

    @property
    def measures_student(self) -> bool:
        """Return whether the student is measured too, where a teacher is what the run exports."""
        return False

    @property
    def selected_on(self) -> str:
        """Return what its hyperparameters are chosen on, which is recorded beside its figures; by default "none".

        Never the scored split, unless the names of its figures say so.
        """
        return "none"

    @abstractmethod
    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """Return metrics by name, `Estimate`s where they are means over samples.

        The engine adds the evaluator's own name in front.
        """

    def metric_names(self) -> list[str]:
        """Return the names that are NaN where features are not finite; those the report has titles for by default."""
        return [*self.titles] or ["metric"]

    def baseline_names(self, modality: Modality) -> list[str]:
        """Return the names of baselines that are NaN where classical features are not finite."""
        return [*modality.baselines()]

    def baselines(self, modality: Modality) -> dict[str, float]:
        """Return figures of the modality's classical features, measured once at the start; none by default."""
        return {}

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Return what this evaluator's figures over time say of the run; None where they say nothing.

        Where nothing was learned it says "learned" with a chance of at most `level`.
        """
        return None

    def alarm(self, history: list[dict[str, float]]) -> str:
        """Return what its figures over time find wrong while the run goes on, and what to change; empty: nothing."""
        return ""

    @property
    def decides(self) -> bool:
        """Return whether the run may depend on its figures: it is measured then whatever time that takes."""
        return False

    @property
    def mixes(self) -> bool:
        """Return whether it may ask for a `Decision.share`: others measure after it then, what the run would ship."""
        return False

    def decision(self, history: list[dict[str, float]]) -> Decision:
        """Return what its figures over time ask of the training; nothing by default.

        It depends on them alone, so that a resumed run decides as an uninterrupted one does.
        """
        return GO_ON

    def begin(self, encoders: FrozenEncoders, modality: Modality) -> None:
        """Look at the encoders as the run starts with them: in every start of it, before a checkpoint is loaded."""

    def figures(self, encoders: FrozenEncoders, modality: Modality) -> list[Figure]:
        """Draw pictures for the report; none by default."""
        return []

    def labeled(self, modality: Modality, *splits: str) -> bool:
        """Return whether all of the splits have labels; warn once where one has none. Looks at 64 samples of each."""
        for split in splits:
            data = modality.dataset(split)
            if data.label_sets() is not None:
                self.warn_nothing_to_measure(
                    f"samples of the {split} split have several classes each, which linear_probe, mlp_probe, "
                    "weighted_layers, attentive_probe and fine_tune read"
                )
                return False
            count = len(data)
            if not any(data[i * count // min(64, count)].label >= 0 for i in range(min(64, count))):
                self.warn_nothing_to_measure(f"the {split} split has no labels")
                return False
        return True

    def warn_nothing_to_measure(self, why: str) -> None:
        """Warn, once whatever the reason, that there is nothing to measure."""
        self.warn(f"{why}, nothing to measure", once="nothing to measure")

    def warn_not_finite(self, bad: NotFinite) -> None:
        """Warn, once whatever the samples, that features are not finite, and whose."""
        self.warn(f"not a number: {bad}", once="not a number")

    def warn(self, text: str, *, once: str = "") -> None:
        """Warn of something that a reader of the figures has to know, once for each text, or for each `once`."""
        if (once or text) not in self._said:
            log.warning("%s: %s", config_name(type(self.cfg)), text)
            self._said.add(once or text)
