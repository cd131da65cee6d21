"""Fine-tuning: what a whole encoder is worth as the start of a supervised training, beside one from random weights.

A copy of the encoder is trained with a linear head on its pooled feature, for several seeds of the head and of the
batches; a tenth of the training samples chooses the rate and the epoch, the scored split is looked at once. In
`multissl eval` the untrained encoder is fine-tuned in the same way: it is the figure of learning from scratch. Options
that are left open are those of a recipe: `mae_base`, `mae_large` (He et al. 2022, arXiv 2111.06377, `FINETUNE.md`),
`videomae_k400`, `videomae_ssv2` (Tong et al. 2022, arXiv 2203.12602, `FINETUNE.md`), `audiomae` (Huang et al. 2022,
arXiv 2207.06405, `ft_as.sh`), `scarf` (Bahri et al. 2022, arXiv 2106.15147) and `saint` (Somepalli et al. 2021, arXiv
2106.01342, `train.py`), as far as rates, decays, epochs, batch, smoothing and mixup go: views are clean ones, without
random crops, cutmix and erasing, and drop path is the encoder's own. The last two papers keep their rates constant,
which fall by a cosine here, and SCARF's head has a hidden layer more. Labels are a class for each sample, a
quantity, or several classes, which are learned one by one (without smoothing) and scored by mean average precision.
Shapes: S training samples, Q queries, C classes.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl.contract.abilities import HasTargets
from multissl.contract.data import Views
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.finite import NotFinite
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.classified import validation_mask
from multissl.evaluators.probes.fine_tuning import Schedule, Tuned, fine_tune
from multissl.evaluators.probes.trained import nothing
from multissl.evaluators.several_classes import (
    PREVALENCE,
    average_precisions,
    figures_of,
    labels_of,
    mean_precision,
    prevalence,
    scored_by,
)
from multissl.evaluators.unseen import unseen_classes
from multissl.evaluators.verdicts import MAJORITY, learned, majority_accuracy
from multissl.inference import Featurize, Pooled, drawn, featurized, stream_of
from multissl.statistics import LEVEL, r2

FEWEST = 20
"""Training samples, of which a tenth chooses."""
RECIPES: dict[str, Schedule] = {
    "own": Schedule(lr=1e-3, layer_decay=0.75, weight_decay=0.05, epochs=10, warmup=1, batch=64),
    "mae_base": Schedule(
        lr=5e-4, layer_decay=0.65, weight_decay=0.05, epochs=100, warmup=5, batch=1024, smoothing=0.1, mixup=0.8
    ),
    "mae_large": Schedule(
        lr=1e-3, layer_decay=0.75, weight_decay=0.05, epochs=50, warmup=5, batch=1024, smoothing=0.1, mixup=0.8
    ),
    "videomae_k400": Schedule(
        lr=1e-3, layer_decay=0.75, weight_decay=0.05, epochs=100, warmup=5, batch=512, smoothing=0.1, mixup=0.8
    ),
    "videomae_ssv2": Schedule(
        lr=5e-4, layer_decay=0.75, weight_decay=0.05, epochs=50, warmup=5, batch=512, smoothing=0.1, mixup=0.8
    ),
    "audiomae": Schedule(
        lr=1e-3, layer_decay=0.75, weight_decay=5e-4, epochs=60, warmup=4, batch=32, mixup=0.5
    ),
    "scarf": Schedule(lr=2e-3, layer_decay=1.0, weight_decay=0.0, epochs=200, warmup=0, batch=128),
    "saint": Schedule(lr=1e-4, layer_decay=1.0, weight_decay=0.01, epochs=100, warmup=0, batch=256),
}  # fmt: skip
Recipe = Literal[
    "own", "mae_base", "mae_large", "videomae_k400", "videomae_ssv2", "audiomae", "scarf", "saint"
]


class Labeled(NamedTuple):
    """Samples with a class, several classes or a quantity."""

    places: list[int]
    targets: Tensor
    """int64 [S] classes, bool [S, C] where samples have several, or float64 [S] quantities."""
    groups: np.ndarray
    """int64 [S], -1 without one."""
    width: int


class FineTune(Evaluator):
    """Accuracy, mAP of several classes, or R2 of a quantity, of an encoder trained on labels, in percent."""

    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "fine-tuned accuracy, %",
        "map": "fine-tuned, mean average precision over classes, %",
        "r2": "fine-tuned, R2, %",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of fine-tuning; those that are None are the recipe's."""

        recipe: Recipe = "own"
        """Whose values hold where an option is None."""
        lr: tuple[float, ...] = ()
        """Learning rates of the head to choose from, for a batch of 256; empty: the recipe's."""
        layer_decay: float | None = None
        """Factor on the learning rate from one layer down to the next."""
        weight_decay: float | None = None
        """Weight decay; biases, norms and tokens have none."""
        epochs: float | None = None
        """Passes over the training samples."""
        warmup: float | None = None
        """Epochs in which the learning rate rises."""
        batch: int | None = None
        """Samples of a step."""
        smoothing: float | None = None
        """Share of a class's probability that is spread over all of them."""
        mixup: float | None = None
        """Of the Beta distribution that two samples are mixed by; 0: none are."""
        seeds: int = 3
        """Trainings, each with a head and an order of its own."""
        train: int = 2_000
        """Labeled training samples, drawn with a fixed seed, of which a tenth chooses; 0: all."""
        queries: int = 1_000
        """Samples of the split, drawn with a fixed seed; 0: all."""
        split: str = "val"
        """What is scored; training sees the train split alone."""
        margin: float = 2.0
        """Points above learning from scratch that would matter."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("train", "queries")
            if self.seeds < 1:
                raise ValueError(f"seeds={self.seeds}: want 1 or more")
            if any(not lr > 0 for lr in self.lr):
                raise ValueError(f"lr={self.lr}: want learning rates above 0, or none for the recipe's")
            for name, low, high in (
                ("layer_decay", 0.0, 1.0), ("weight_decay", 0.0, math.inf), ("epochs", 0.0, math.inf),
                ("warmup", 0.0, math.inf), ("batch", 2, math.inf), ("smoothing", 0.0, 1.0), ("mixup", 0.0, math.inf),
            ):  # fmt: skip
                value = getattr(self, name)
                if value is not None and not low <= value <= high:
                    raise ValueError(f"{name}={value}: want {low:g} to {high:g}, or None for the recipe's")

        @property
        def schedules(self) -> list[Schedule]:
            """Return a schedule for every learning rate: the recipe's, with what is typed."""
            names = ("layer_decay", "weight_decay", "epochs", "warmup", "batch", "smoothing", "mixup")
            typed = {name: value for name in names if (value := getattr(self, name)) is not None}
            base = replace(RECIPES[self.recipe], **typed)
            return [replace(base, lr=lr) for lr in self.lr or (base.lr,)]

    cfg: Config

    @property
    def selected_on(self) -> str:
        """The rate and the epoch."""
        return "a tenth of training"

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1`, `map` or `r2` in percent, means over seeds, and `over_seeds`, the same with the seeds' interval."""
        if encoders.modules is None:
            self.warn_nothing_to_measure(
                "an encoder in training hands out only its features; multissl eval has it"
            )
            return {}
        train = self._labeled(Pooled(encoders), modality, "train", self.cfg.train, encoders.device)
        scored = self._labeled(Pooled(encoders), modality, self.cfg.split, self.cfg.queries, encoders.device)
        if not self._measurable(train, scored):
            return {}
        self._check_mixup(modality)
        made = [self.predictions(encoders, modality, train, scored, seed) for seed in range(self.cfg.seeds)]
        if train.targets.is_floating_point():
            values = np.array([100 * r2(scores[:, 0], scored.targets.numpy()) for scores in made])
            return {"r2": estimate(values, percent=False)}
        if train.targets.dtype == torch.bool:
            return precisions_over_seeds(made, scored.targets)
        right = np.array([scores.argmax(1) == scored.targets.numpy() for scores in made])  # [seeds, Q]
        right = right & np.array([np.isfinite(scores).all(1) for scores in made])
        if not all(np.isfinite(scores).all() for scores in made):
            return {"top1": math.nan, "over_seeds": math.nan}
        return {
            "top1": estimate(100.0 * right.mean(0), scored.groups),
            "over_seeds": estimate(100.0 * right.mean(1), percent=False),
        }

    def metric_names(self) -> list[str]:
        """Those of classes."""
        return ["top1", "over_seeds"]

    def baselines(self, modality: Modality) -> dict[str, float]:
        """The accuracy of the most frequent class, or how frequent several are; the mean of a quantity has R2 0."""
        train = self._labeled(nothing, modality, "train", self.cfg.train, "cpu")
        scored = self._labeled(nothing, modality, self.cfg.split, self.cfg.queries, "cpu")
        if not self._measurable(train, scored) or train.targets.is_floating_point():
            return {}
        if train.targets.dtype == torch.bool:
            return {PREVALENCE: prevalence(scored.targets)}
        return {MAJORITY: majority_accuracy(train.targets, scored.targets, scored.groups)}

    def baseline_names(self, modality: Modality) -> list[str]:
        """That of the most frequent class."""
        return [MAJORITY]

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last accuracy, or mAP, is above that from scratch and the most frequent class."""
        figure = scored_by(history)
        name = {"map": "fine-tuned mAP", "top1": "fine-tuned accuracy"}[figure]
        return learned(name, figure, history, self.cfg.margin, level)

    def _labeled(
        self, featurize: Featurize, modality: Modality, split: str, limit: int, device: torch.device | str
    ) -> Labeled:
        """Return the labeled samples of a split; features that are not finite end here."""
        places = drawn(len(modality.dataset(split)), limit)
        made = featurized(featurize, modality, split, places, device=device, stream=self.cfg.stream)
        quantity = modality.targets(split) if isinstance(modality, HasTargets) else None
        if quantity is None:
            known, targets = labels_of(modality, split, made)
        else:
            known = quantity[made.places].isfinite()
            targets = quantity[made.places][known].double()
        kept = [place for place, there in zip(made.places, known.tolist(), strict=True) if there]
        return Labeled(kept, targets, made.groups[known].numpy(), made.features.shape[1])

    def _measurable(self, train: Labeled, scored: Labeled) -> bool:
        several = train.targets.dtype == torch.bool
        labels = int(train.targets.any(0).sum()) if several else len(train.targets.unique())
        if len(train.targets) < FEWEST or labels < (1 if several else 2) or not len(scored.targets):
            self.warn_nothing_to_measure(
                f"{len(train.targets)} labeled training samples (want {FEWEST} or more) of {labels} labels and "
                f"{len(scored.targets)} of the split"
            )
            return False
        if train.targets.dtype == torch.int64 and (
            said := unseen_classes(train.targets, scored.targets, self.cfg.split)
        ):
            self.warn(said)
        return True

    def _check_mixup(self, modality: Modality) -> None:
        """Raise a ValueError where samples cannot be mixed, as words cannot."""
        kind = modality.streams()[stream_of(modality, self.cfg.stream)].kind
        if kind == "sequence" and any(schedule.mixup for schedule in self.cfg.schedules):
            raise ValueError("mixup: symbols cannot be mixed; want mixup=0 for a stream of symbols")

    def predictions(
        self, encoders: FrozenEncoders, modality: Modality, train: Labeled, scored: Labeled, seed: int
    ) -> np.ndarray:
        """Return the scores [Q, C] or values [Q, 1] that the model which a tenth of training chooses gives."""
        assert encoders.modules is not None
        tenth = validation_mask(len(train.places))
        quantity = train.targets.is_floating_point()
        learned_from = train.targets[~tenth]
        mean = float(learned_from.mean()) if quantity else 0.0
        std = (float(learned_from.std(correction=0)) or 1.0) if quantity else 1.0
        targets = ((learned_from - mean) / std).float() if quantity else learned_from
        choosing = [place for place, chosen in zip(train.places, tenth.tolist(), strict=True) if chosen]
        best = BestModel()

        def after_epoch(model: Tuned) -> None:
            made = predicted(model, modality, "train", choosing, self.cfg.stream, encoders.device)
            best.offer(model, score(made * std + mean if quantity else made, train.targets[tenth]))

        for schedule in self.cfg.schedules:
            fine_tune(
                encoders.modules, stream_of(modality, self.cfg.stream), train.width, modality,
                [place for place, chosen in zip(train.places, tenth.tolist(), strict=True) if not chosen], targets,
                outputs=outputs_of(train.targets), schedule=schedule, seed=seed,
                device=encoders.device, after_epoch=after_epoch,
            )  # fmt: skip
        if best.model is None:  # every training diverged
            self.warn("fine-tuning diverged: its figures are no numbers; lower lr")
            return np.full((len(scored.places), outputs_of(train.targets)), math.nan)
        made = predicted(
            best.model, modality, self.cfg.split, scored.places, self.cfg.stream, encoders.device
        )
        return made * std + mean if quantity else made


class BestModel:
    """The model that scored best so far; of equals the first."""

    def __init__(self) -> None:
        self.model: Tuned | None = None
        self.score = -math.inf

    def offer(self, model: Tuned, score: float) -> None:
        """Keep a copy of a model that is better."""
        if score > self.score:
            self.model, self.score = copy.deepcopy(model), score


def predicted(
    model: Tuned, modality: Modality, split: str, places: list[int], stream: str, device: torch.device
) -> np.ndarray:
    """Return the scores [n, C] of samples of a split; NaN where the model has diverged."""

    def scores(views: Views) -> Tensor:
        return model(views).float()

    try:
        return (
            featurized(scores, modality, split, places, device=device, stream=stream)
            .features.double()
            .numpy()
        )
    except NotFinite:
        return np.full((len(places), model.head.out_features), math.nan)


def outputs_of(targets: Tensor) -> int:
    """Return the outputs of a head: classes, or 1 for a quantity."""
    if targets.is_floating_point():
        return 1
    return targets.shape[1] if targets.dtype == torch.bool else 1 + int(targets.max())


def precisions_over_seeds(made: list[np.ndarray], truth: Tensor) -> dict[str, float]:
    """Return `map` over classes, its mean over seeds, and over seeds, of scores [Q, C] by each; truth bool [Q, C]."""
    each = torch.stack([average_precisions(torch.from_numpy(scores), truth) for scores in made])  # [seeds, C]
    figures = figures_of(each.mean(0), truth)
    seeds = 100.0 * each[:, truth.any(0)].mean(1).numpy()
    return {**figures, "over_seeds": estimate(seeds, percent=False)}


def score(made: np.ndarray, targets: Tensor) -> float:
    """Return accuracy, mAP or R2 of a quantity; below all others where predictions are not finite."""
    if not np.isfinite(made).all():
        return -math.inf
    if targets.dtype == torch.bool:
        found = mean_precision(torch.from_numpy(made), targets)
        return 0.0 if math.isnan(found) else found
    if targets.is_floating_point():
        return r2(made[:, 0], targets.numpy())
    return float((made.argmax(1) == targets.numpy()).mean())
