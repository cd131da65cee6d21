"""What continuing from weights costs: the encoder beside itself as the run started, on the user's data and elsewhere.

Linear CKA of start and present features (Kornblith et al. 2019, arXiv 1905.00414, section 3, features centered): 1 for
features that are equal up to rotation and scale. k-NN accuracy at the start and now, where there are labels. On data
that is kept for reference, which the run does not train on, a fall of the second is what the encoder has forgotten.
The start is measured anew at each start of the run, from the same weights, so nothing of it is stored.
Shapes: S samples, D width.  State: features and accuracies of the start.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from multissl.config import to_dict
from multissl.contract.decision import GO_ON, Decision
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.classified import labeled_task
from multissl.evaluators.knn import knn_accuracy
from multissl.inference import Pooled, featurize_split

HERE, KEPT = "", "reference_"
"""What the names of figures begin with: those of the user's data, and of the reference."""

FEWEST = 3
"""Samples that CKA takes: of two, centered features of any two encoders agree."""


class Measured(NamedTuple):
    """What an encoder is, on some data."""

    features: Tensor
    """[S, D]"""
    knn: float | None
    """Accuracy in percent; None without labels."""


class Drift(Evaluator):
    """CKA and k-NN accuracy against the start, and what a bound on them asks of the training."""

    titles: ClassVar[dict[str, str]] = {
        "cka": "CKA with the start",
        "knn": "k-NN accuracy, %",
        "knn_start": "k-NN accuracy of the start, %",
        "reference_cka": "CKA with the start, on the reference",
        "reference_knn": "k-NN accuracy on the reference, %",
        "reference_knn_start": "k-NN accuracy of the start on the reference, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the drift guard."""

        split: str = "val"
        """Split whose features are compared and whose labeled samples are queries; the bank is the train split."""
        samples: int = 2_000
        """Samples that are compared, and queries, drawn with a fixed seed; 0: all."""
        bank: int = 5_000
        """Samples of the bank, drawn from the train split with a fixed seed; 0: all."""
        k: int = 20
        """Neighbors that vote, at a temperature of 0.07."""
        reference: str = ""
        """Data on which the start should keep its worth, read as the run's own data is; empty: none."""
        min_cka: float = 0.0
        """The bound on CKA, of the reference where there is one, else of the user's data."""
        max_loss: float = 2.0
        """The bound on points of k-NN accuracy below the start, there."""
        action: Literal["say", "lower", "stop"] = "say"
        """What a measurement beyond a bound does: raise an alarm; lower the learning rate, too; or end the run."""
        factor: float = 0.1
        """Of action=lower: on the learning rate, for each measurement beyond a bound."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("samples", "bank")
            if self.k < 1:
                raise ValueError(f"k={self.k}: want 1 or more neighbors")
            if not 0 <= self.min_cka <= 1:
                raise ValueError(f"min_cka={self.min_cka}: want 0 (no bound) to 1")
            if not self.max_loss >= 0:
                raise ValueError(f"max_loss={self.max_loss}: want 0 or more points of accuracy")
            if not 0 <= self.factor < 1:
                raise ValueError(f"factor={self.factor}: want at least 0 and below 1")
            if self.action != "say" and not self.every:
                raise ValueError(
                    f"action={self.action} with every=0, which measures at the start and the end only: want every N "
                    "steps"
                )

    fits = True
    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._start: dict[str, Measured] | None = None
        self._reference: Modality | None = None

    @property
    def decides(self) -> bool:
        """Return whether it may lower the rate or end the run."""
        return self.cfg.action != "say"

    def metric_names(self) -> list[str]:
        """Of the user's data, and of the reference where there is one."""
        return [name for name in self.titles if self.cfg.reference or not name.startswith(KEPT)]

    def begin(self, encoders: FrozenEncoders, modality: Modality) -> None:
        """Measure the start."""
        self._start = {}  # of features that are not finite nothing is known
        self._start = self._measured(encoders, modality)

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`cka` with the start, `knn` now and then; the same of the reference. Nothing outside of a run."""
        if progress.step == 0 and self._start is None:
            self.begin(encoders, modality)
        if self._start is None:
            self.warn_nothing_to_measure("outside of a run there is no start to compare with")
            return {}
        figures: dict[str, float] = {}
        # before the first step the encoders are those of the start, which has just been measured
        present = self._measured(encoders, modality) if progress.step else self._start
        if not self._start:
            return dict.fromkeys(self.metric_names(), math.nan)
        for prefix, now in present.items():
            start = self._start[prefix]
            if len(now.features) >= FEWEST:
                figures[f"{prefix}cka"] = linear_cka(start.features, now.features)
            if now.knn is not None and start.knn is not None:
                figures |= {f"{prefix}knn": now.knn, f"{prefix}knn_start": start.knn}
        return figures

    def alarm(self, history: list[dict[str, float]]) -> str:
        """Say where the last measurement is beyond a bound."""
        why = self._beyond(history[-1])
        return f"drift: {why}; lower optim.lr, or freeze more by --frozen, --lora.rank 8" if why else ""

    def decision(self, history: list[dict[str, float]]) -> Decision:
        """Lower the rate for each measurement beyond a bound, or stop at the first; see `action`."""
        reasons = [f"step {entry['step']:.0f}, {why}" for entry in history if (why := self._beyond(entry))]
        if not reasons or self.cfg.action == "say":
            return GO_ON
        if self.cfg.action == "stop":
            return Decision(stop=True, text=f"the run ends by drift: {reasons[0]}")
        lr = self.cfg.factor ** len(reasons)
        return Decision(lr=lr, text=f"learning rate times {lr:g} by drift: {reasons[-1]}")

    def _beyond(self, figures: Mapping[str, float]) -> str:
        """Return which bound a measurement is beyond, by how much; "" for none. What is not a number is beyond it."""
        prefix, where = (KEPT, "the reference") if self.cfg.reference else (HERE, "this data")
        cka = figures.get(f"{prefix}cka", 1.0)
        if not cka >= self.cfg.min_cka:
            return f"CKA with the start is {cka:.3f} on {where}, below min_cka={self.cfg.min_cka:g}"
        loss = figures.get(f"{prefix}knn_start", 0.0) - figures.get(f"{prefix}knn", 0.0)
        if not loss <= self.cfg.max_loss:
            return f"k-NN on {where} is {loss:.1f} points below the start, more than max_loss={self.cfg.max_loss:g}"
        return ""

    def _measured(self, encoders: FrozenEncoders, modality: Modality) -> dict[str, Measured]:
        """Return what the encoders are on the user's data and on the reference."""
        places = {HERE: modality}
        if self.cfg.reference:
            self._reference = self._reference or self._opened(modality)
            places[KEPT] = self._reference
        # another memory for each: features are remembered by split
        return {
            prefix: self._on(FrozenEncoders(encoders.function, encoders.device) if prefix else encoders, data)
            for prefix, data in places.items()
        }

    def _opened(self, modality: Modality) -> Modality:
        """Return the reference; raise a ValueError that names the option where it cannot be one."""
        cfg = self.cfg
        own = to_dict(modality.cfg).get("data")
        if os.path.realpath(cfg.reference) in [
            os.path.realpath(each) for each in (own if isinstance(own, list) else [own]) if each
        ]:
            raise ValueError(
                f"drift: reference={cfg.reference} is what the run trains on, and tells nothing of what is forgotten "
                "elsewhere: name other data, or leave it empty to watch the run's own"
            )
        try:
            other = read_otherwise(modality, cfg.reference)
            count = len(other.dataset(cfg.split))
        except (ValueError, OSError) as error:
            raise ValueError(f"drift: reference={cfg.reference} cannot be read: {error}") from error
        if count < FEWEST:
            raise ValueError(
                f"drift: the {cfg.split} split of reference={cfg.reference} has {count} samples, and features are "
                f"compared on {FEWEST} or more: give it more, or folders {cfg.split} and train of your own choice"
            )
        return other

    def _on(self, encoders: FrozenEncoders, modality: Modality) -> Measured:
        cfg, featurize = self.cfg, Pooled(encoders)
        x, _ = featurize_split(
            featurize, modality, cfg.split, cfg.samples, device=encoders.device, stream=cfg.stream
        )
        if len(x) < FEWEST:
            self.warn(
                f"the {cfg.split} split has {len(x)} samples, and CKA takes {FEWEST} or more: it is left out"
            )
        if not self.labeled(modality, cfg.split, "train"):
            return Measured(x, None)
        task = labeled_task(
            self,
            featurize,
            modality,
            split=cfg.split,
            train=cfg.bank,
            queries=cfg.samples,
            device=encoders.device,
        )
        if task is None:
            return Measured(x, None)
        accuracies = knn_accuracy(
            task.x, task.y, task.queries, task.truth, (cfg.k,), device=encoders.device, groups=task.groups
        )
        return Measured(x, accuracies[cfg.k])


def read_otherwise(modality: Modality, data: str) -> Modality:
    """Return a modality that reads other data as this one reads its own: by the same options and what was fitted."""
    other = modality.cfg.reading(data, "reference=").build()
    other.restore(modality.state())
    return other


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return linear CKA of two encoders' features of the same samples, [S, D] and [S, E], 0 to 1.

    NaN where one of them tells no sample from another, or holds what is not finite.
    """
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    shared = (x.T @ y).square().sum()
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return (shared / scale).item() if scale > 0 else math.nan
