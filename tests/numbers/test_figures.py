"""The figures of an evaluator are those of before: values, intervals, scores, baselines, verdict, under every option.

A new evaluator joins by being registered, through its case in tests/evaluators/every.py; see tests/helpers/known.py for
how numbers are written down.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl import registry
from multissl.contract.abilities import HasTargets
from multissl.contract.data import Sample, Samples, Views
from multissl.contract.estimate import Estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Features, Progress
from multissl.contract.modality import Modality
from tests.evaluators.clusters import frozen
from tests.evaluators.every import CASES, Case, Subject, broken, seeing
from tests.evaluators.pairs import Facts, Knows
from tests.helpers.known import Cases, Numbers, check_known, numbers_of, words_of
from tests.helpers.stubs import Listed
from tests.helpers.turned import turned

LIMIT = 2e-3
"""Solvers end where they do; a figure in percent moves by more."""
LEAVE = ("stream", "split", "every", "classical", "fine_tune_lr", "dropout")
"""What says nothing here; dropout is drawn by MKL, which draws otherwise on processors of other makers."""
UNSTEADY = ("few_labels", "logistic_regression", "bits_per_character", "k_means", "label_free")
"""Slow, or with figures of other features that hang on roundings."""
FEWER: dict[str, dict[str, Any]] = {
    "linear_probe": {"l2": (1e-2, 1.0), "max_steps": 20},
    "few_labels": {"labels": 8},
    "attentive_probe": {"lr": (0.01,), "weight_decay": (0.01,), "steps": 3},
    "mlp_probe": {"lr": (0.03,), "layers": (1,), "steps": 3},
    "k_means": {"starts": 1, "tries": 1},
    "logistic_regression": {"max_iter": 10, "tolerance": 1e-2},
}
"""What is enough where an option takes long."""


def figures(metrics: dict[str, float]) -> dict[str, Tensor]:
    """Return every figure with what is known of it."""
    tensors: dict[str, Tensor] = {}
    for name, value in metrics.items():
        known = {name: float(value)}
        if isinstance(value, Estimate):
            known |= {
                f"{name} n": value.n,
                f"{name} below": value - value.low,
                f"{name} above": value.high - value,
            }
            if value.scores is not None:
                tensors[f"{name} scores"] = torch.as_tensor(value.scores.copy())
        tensors |= {n: torch.tensor(v, dtype=torch.float64) for n, v in known.items()}
    return tensors


def verdict(evaluator: Evaluator, history: list[dict[str, float]]) -> Tensor:
    """Return the words of a verdict as numbers; of none, nothing."""
    told = evaluator.verdict(history)
    text = "" if told is None else f"{told.outcome} {told.text}"
    return words_of(text)


def measured(case: Case, evaluator: Evaluator, modality: Modality) -> Numbers:
    """Return the numbers of what an evaluator measures at two ends of a run."""
    first = evaluator.run(case.encoders(), modality, Progress(step=0, total=10))
    first |= evaluator.baselines(modality)
    last = evaluator.run(case.encoders(), modality, Progress(step=10, total=10))
    tensors = figures(first) | {f"later {name}": value for name, value in figures(last).items()}
    better = {n: as_one_more(v) for n, v in last.items()}
    for name, entries in {"verdict": last, "better": better}.items():
        tensors[name] = verdict(evaluator, [{"step": 0.0, **first}, {"step": 10.0, **entries}])
    return numbers_of(tensors)


def as_one_more(value: float) -> float:
    """Return a figure that is 11 above, with its scores."""
    if not isinstance(value, Estimate):
        return value + 11
    scores = None if value.scores is None else value.scores + 11
    return Estimate(value + 11, value.n, (value.low + 11, value.high + 11), scores, value.groups)


def few(samples: list[Sample]) -> list[Sample]:
    return samples[:7]


def without_labels(samples: list[Sample]) -> list[Sample]:
    return [replace(s, label=-1) for s in samples]


def alone(samples: list[Sample]) -> list[Sample]:
    return [replace(s, group=-1) for s in samples]


def unlabeled(samples: list[Sample]) -> list[Sample]:
    return [replace(s, label=-1) if s.index % 3 else s for s in samples]


def one_class(samples: list[Sample]) -> list[Sample]:
    return [replace(s, label=0) for s in samples]


def data(name: str, case: Case) -> Iterator[tuple[str, Modality]]:
    """Yield the data of a case and its relatives."""
    modality = case.modality()
    yield "as it is", modality
    if isinstance(modality, Subject) and case.encoders in (seeing, CASES[name].encoders):
        for change in (few, alone, unlabeled, without_labels, one_class):
            made: Any = case.modality()
            made.change = change
            yield change.__name__, made
        yield "untaught", Untaught.Config(noise=0.5).build()
        if name == "few_labels":
            yield "quantities", Quantities.Config(noise=0.5).build()
    if isinstance(modality, Facts):
        yield "captions of classes", Facts.Config(told=False).build()
        yield "some lack their text", Facts.Config(without=(3, 8)).build()


class Quantities(Subject, HasTargets):
    """The label is a quantity: the first coordinate of a point."""

    def targets(self, split: str) -> Tensor:
        samples = self.dataset(split)
        return torch.tensor([samples[i].data[0] for i in range(len(samples))])


class Untaught(Subject):
    """No training sample has a label."""

    def dataset(self, split: str) -> Samples:
        data = super().dataset(split)
        return Listed([replace(data[i], label=-1) for i in range(len(data))]) if split == "train" else data


def warnings(case: Case, evaluator: Evaluator, said: list[str]) -> Numbers:
    """Return the words of what is said of rows that are no numbers."""
    texts: dict[str, Tensor] = {}
    for row in (0, 2, 5):
        said.clear()
        evaluator.run(broken(case.encoders(), math.nan, row), case.modality(), Progress(step=0, total=10))
        texts[f"row {row}"] = words_of("; ".join(said))
    return numbers_of(texts)


class Confused(Knows):
    """Takes some samples for others."""

    def features(self, v: Views) -> Features:
        values = super().features(v)
        z = (
            values.pooled
            + 0.4 * values.pooled.roll(1, 1) * (1 + torch.cos(torch.arange(len(v.x)) * 1.0))[:, None]
        )
        return replace(values, pooled=z, tokens=z[:, None], embedding=z)


def wide(width: int) -> Callable[[], FrozenEncoders]:
    """Return encoders of so many features."""

    def encoders() -> FrozenEncoders:
        torch.manual_seed(0)
        return frozen(nn.Sequential(nn.Linear(2, width), nn.Tanh()))

    return encoders


def relatives(name: str) -> Iterator[tuple[str, Case]]:
    """Yield a case with encoders of its own, and with others."""
    case = CASES[name]
    yield "as it is", case
    if case.encoders is Knows:
        yield "confused", replace(case, encoders=Confused)
    if case.encoders is seeing and name not in UNSTEADY:
        yield "narrow", replace(case, encoders=wide(4))
        yield "wide", replace(case, encoders=wide(48))


def cases(name: str, said: list[str]) -> Cases:
    every: Cases = {}
    for label, case in relatives(name):
        every |= {f"{label}, {where}": numbers for where, numbers in cases_of(name, label, case).items()}
    every["broken"] = warnings(CASES[name], CASES[name].build(name), said)
    return every


def cases_of(name: str, label: str, case: Case) -> Cases:
    made = case.build(name).cfg.replace(**FEWER.get(name, {}))
    every: Cases = {}
    for where, modality in data(name, case):
        if where != "as it is" and label in ("narrow", "wide"):
            continue
        some = [("as it is", made)]
        if where in ("as it is", "quantities") and label in ("as it is", "confused"):
            some += turned(made, LEAVE)
        for change, cfg in some:
            try:
                every[f"{where}, {change}"] = measured(case, cfg.build(), modality)
            except ValueError:
                continue
    return every


@pytest.mark.parametrize("name", registry.names("evaluators"))
def test_the_figures_of_an_evaluator_are_those_of_before(name: str, said: list[str]) -> None:
    pytest.importorskip(CASES[name].needs)
    check_known(f"figures_{name}", functools.partial(cases, name, said), LIMIT)
