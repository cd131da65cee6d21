"""What continuing from weights costs: the encoder beside itself as the run started, on the user's data and elsewhere.

Linear CKA of start and present features (Kornblith et al. 2019, arXiv 1905.00414, section 3, features centered): 1 for
features that are equal up to rotation and scale. k-NN accuracy at the start and now, where there are labels. On data
that is kept for reference, which the run does not train on, a fall of the second is what the encoder has forgotten.
The start is measured anew at each start of the run, from the same weights, so nothing of it is stored.
A mixture of the weights at the start and the present ones keeps more of what was known than it gives up of what was
learned (WiSE-FT: Wortsman et al. 2021, arXiv 2109.01903); with action=mix a run ships the one that holds the bounds.
Shapes: S samples, D width.  State: features and accuracies of the start.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
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
from multissl.parallel.collectives import broadcast_object

HERE, KEPT = "", "reference_"
"""What the names of figures begin with: those of the user's data, and of the reference."""

TENTHS = 10
"""Steps in which a share of the training is looked for."""

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
        "share": "share of the training in what is shipped",
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
        action: Literal["say", "lower", "stop", "mix"] = "say"
        """What a measurement beyond a bound does: raise an alarm; lower the learning rate, too; end the run; or mix:
        the run ships its start plus the largest share, in tenths, of how the weights have changed that is within the
        bounds."""
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
            if self.action in ("lower", "stop") and not self.every:
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
        """Return whether it may lower the rate, end the run or choose what is shipped."""
        return self.cfg.action != "say"

    @property
    def mixes(self) -> bool:
        """Return whether it chooses what is shipped."""
        return self.cfg.action == "mix"

    def metric_names(self) -> list[str]:
        """Of the user's data, and of the reference where there is one."""
        left_out = [] if self.cfg.reference else [name for name in self.titles if name.startswith(KEPT)]
        return [name for name in self.titles if name not in left_out and (self.mixes or name != "share")]

    def begin(self, encoders: FrozenEncoders, modality: Modality) -> None:
        """Measure the start."""
        self._start = {}  # of features that are not finite nothing is known
        self._start = self._measured(encoders, modality)

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`cka` with the start, `knn` now and then; the same of the reference; `share`. Nothing outside of a run."""
        if progress.step == 0 and self._start is None:
            self.begin(encoders, modality)
        if self._start is None:
            self.warn_nothing_to_measure("outside of a run there is no start to compare with")
            return {}
        if not self._start:
            return dict.fromkeys(self.metric_names(), math.nan)
        if not progress.step:  # the encoders are those of the start, which has just been measured
            return compared(self._start, self._start)
        if encoders.mixed is None or not self.mixes:
            return compared(self._start, self._measured(encoders, modality))
        return self._within_bounds(self._start, encoders, encoders.mixed, modality)

    def _within_bounds(
        self, start: Mapping[str, Measured], encoders: FrozenEncoders,
        mixed: Callable[[float], AbstractContextManager[None]], modality: Modality,
    ) -> dict[str, float]:  # fmt: skip
        """Return the largest share, in tenths, that is within the bounds, and its figures; it is searched by halves."""

        def at(tenths: int) -> dict[str, float]:
            with mixed(tenths / TENTHS):
                now = self._measured(FrozenEncoders(encoders.function, encoders.device), modality)
            # ranks have to go the same way, whatever their last digits say
            return broadcast_object({**compared(start, now), "share": tenths / TENTHS})

        best, low, high = at(TENTHS), 0, TENTHS
        if not self._beyond(best):
            return best
        best = {**compared(start, start), "share": 0.0}
        while high - low > 1:
            middle = (low + high) // 2
            if self._beyond(figures := at(middle)):
                high = middle
            else:
                best, low = figures, middle
        return best

    def alarm(self, history: list[dict[str, float]]) -> str:
        """Say where the last measurement is beyond a bound."""
        why = self._beyond(history[-1])
        if history[-1].get("share") == 0:
            why = "no tenth of the training is within the bounds, and the run would ship its start"
        return f"drift: {why}; lower optim.lr, or freeze more by --frozen, --lora.rank 8" if why else ""

    def decision(self, history: list[dict[str, float]]) -> Decision:
        """Lower the rate for each measurement beyond a bound, stop at the first, or ship a mixture; see `action`."""
        if self.mixes:
            share = next((entry["share"] for entry in reversed(history) if "share" in entry), 1.0)
            return Decision(share=share, text=described_share(share)) if share < 1 else GO_ON
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


def compared(start: Mapping[str, Measured], present: Mapping[str, Measured]) -> dict[str, float]:
    """Return the figures of encoders beside those of the start, on the same data."""
    figures: dict[str, float] = {}
    for prefix, now in present.items():
        then = start[prefix]
        if len(now.features) >= FEWEST:
            figures[f"{prefix}cka"] = linear_cka(then.features, now.features)
        if now.knn is not None and then.knn is not None:
            figures |= {f"{prefix}knn": now.knn, f"{prefix}knn_start": then.knn}
    return figures


def described_share(share: float) -> str:
    """Return what a run says of the share of its training that it ships."""
    return f"{share:.0%} of the training is shipped, and {1 - share:.0%} of the start, by drift: more is beyond a bound"


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
