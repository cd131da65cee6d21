"""The drift guard: CKA by its definition, k-NN against the start, bounds, and what they ask of a run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multissl.contract.decision import GO_ON
from multissl.contract.learning import Progress
from multissl.engine import checkpoint
from multissl.engine.checkpoint import Save
from multissl.evaluators.drift import Drift, linear_cka
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.train import train
from tests.evaluators.clusters import START, Clusters, frozen
from tests.helpers import stubs
from tests.helpers.stubs import Listed

LATER = Progress(step=5, total=10)


def hsic_cka(x: Tensor, y: Tensor) -> float:
    """Return CKA as the paper defines it, by centered Gram matrices of S x S."""
    centering = torch.eye(len(x), dtype=torch.double) - 1 / len(x)
    first, second = (centering @ z.double() @ z.double().T @ centering for z in (x, y))
    return ((first * second).sum() / (first.norm() * second.norm())).item()


def test_cka_is_that_of_the_paper_and_blind_to_rotation_shift_and_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 5, generator=draw), torch.randn(30, 7, generator=draw)
    assert linear_cka(x, y) == pytest.approx(hsic_cka(x, y), abs=1e-9)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=draw))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, x @ torch.diag(torch.tensor([5.0, 1, 1, 1, 0.1]))) < 0.95
    assert math.isnan(linear_cka(x, torch.ones(30, 2)))


class Forgetful(nn.Module):
    """Features that have nothing to do with where a point lies."""

    def forward(self, x: Tensor) -> Tensor:
        return (1e5 * x).sin()


def measured(now: nn.Module | None, labels: bool = True, **options: Any) -> dict[str, float]:
    modality = Clusters(Clusters.Config(labels=labels, noise=0.02))
    evaluator = Drift.Config(**options).build()
    evaluator.begin(frozen(), modality)
    return evaluator.run(frozen(now), modality, LATER)


def test_an_encoder_that_has_not_moved_is_as_it_was() -> None:
    assert measured(None) == {"cka": pytest.approx(1), "knn": 100.0, "knn_start": 100.0}
    assert measured(None, labels=False) == {"cka": pytest.approx(1)}


def test_what_was_forgotten_shows() -> None:
    figures = measured(Forgetful())
    assert figures["knn"] < 60
    assert figures["knn_start"] == 100
    assert figures["cka"] < 0.5


def test_outside_of_a_run_there_is_nothing_to_compare_with(said: list[str]) -> None:
    evaluator, modality = Drift.Config().build(), Clusters(Clusters.Config())
    assert evaluator.run(frozen(), modality, LATER) == {}
    assert said == ["drift: outside of a run there is no start to compare with, nothing to measure"]
    assert evaluator.run(frozen(), modality, START)["cka"] == pytest.approx(1)


def entry(step: float, **figures: float) -> dict[str, float]:
    return {"step": step, **figures}


def test_bounds_are_those_of_the_reference_where_there_is_one() -> None:
    fallen = {"cka": 0.2, "knn": 50.0, "knn_start": 90.0}
    kept = {"reference_cka": 0.9, "reference_knn": 70.0, "reference_knn_start": 71.0}
    here = Drift.Config(every=1, action="stop", min_cka=0.5).build()
    there = Drift.Config(every=1, action="stop", min_cka=0.5, reference="x").build()
    history = [entry(0, **fallen, **kept)]
    assert here.decision(history).stop
    assert "CKA with the start is 0.200 on this data, below min_cka=0.5" in here.alarm(history)
    assert there.decision(history) == GO_ON
    history[0]["reference_knn"] = 68.0
    assert "k-NN on the reference is 3.0 points below the start" in there.decision(history).text
    history[0]["reference_knn"] = math.nan  # features that are not finite
    assert there.decision(history).stop


def test_every_measurement_beyond_a_bound_lowers_the_rate_once() -> None:
    guard = Drift.Config(every=1, action="lower", factor=0.5, max_loss=2.0).build()
    losses = (0, 3, 1, 4)
    history = [entry(i, cka=1.0, knn=80.0 - n, knn_start=80.0) for i, n in enumerate(losses)]
    assert [guard.decision(history[: i + 1]).lr for i in range(4)] == [1.0, 0.5, 0.5, 0.25]
    assert "learning rate times 0.25 by drift: step 3" in guard.decision(history).text
    assert Drift.Config(every=1).build().decision(history) == GO_ON
    assert Drift.Config(every=1).build().alarm(history)


class Between(nn.Module):
    """Points as they lie, and ever more that has nothing to do with them."""

    share = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x - 5 + 3 * self.share**2 * Forgetful()(x)

    @contextmanager
    def mixed(self, share: float) -> Iterator[None]:
        self.share, before = share, self.share
        yield
        self.share = before


def mixture(**options: Any) -> tuple[Drift, dict[str, float]]:
    """Return a guard that mixes, and what it measures."""
    module, modality = Between(), Clusters(Clusters.Config(noise=0.02))
    guard = Drift(Drift.Config(action="mix", **options))
    with module.mixed(0):
        guard.begin(frozen(module), modality)
    encoders = frozen(module)
    encoders.mixed = module.mixed
    return guard, guard.run(encoders, modality, LATER)


def test_the_largest_share_within_the_bound_is_shipped_with_its_figures() -> None:
    modality, module = Clusters(Clusters.Config(noise=0.02)), Between()
    accuracies = []
    for tenths in range(11):
        module.share = tenths / 10
        guard = Drift.Config().build()
        guard.begin(frozen(module), modality)
        accuracies.append(guard.run(frozen(module), modality, START)["knn"])
    assert accuracies[0] == 100
    for bound in (1.0, 10.0, 30.0):
        within = [value >= 100 - bound for value in accuracies]
        assert within == sorted(within, reverse=True)
        largest = sum(within) - 1
        assert 0 < largest < 10
        guard, figures = mixture(max_loss=bound)
        assert figures["share"] == largest / 10
        assert figures["knn"] == accuracies[largest]
        history = [entry(0, knn=100.0, knn_start=100.0), {"step": 5, **figures}]
        assert guard.decision(history).share == largest / 10
        assert guard.decision(history[:1]) == GO_ON
        assert guard.alarm(history) == ""


def test_all_of_the_training_is_shipped_where_it_is_within_the_bound_and_nothing_where_none_is() -> None:
    guard, figures = mixture(max_loss=100.0)
    assert figures["share"] == 1
    assert guard.decision([{"step": 5, **figures}]) == GO_ON
    guard, figures = mixture(min_cka=1.0, max_loss=0.0)
    assert (figures["share"], figures["cka"]) == (0, pytest.approx(1))
    assert "would ship its start" in guard.alarm([{"step": 5, **figures}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_cka": 2.0}, "min_cka=2.0: want 0"),
        ({"max_loss": -1.0}, "max_loss=-1.0: want 0 or more"),
        ({"factor": 1.0}, "factor=1.0: want at least 0 and below 1"),
        ({"k": 0}, "k=0: want 1 or more"),
        ({"samples": -1}, "samples=-1"),
        ({"action": "lower"}, "action=lower with every=0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Drift.Config(**options)


class Placed(stubs.Points):
    """Points of which `data` says where they lie."""

    @dataclass(kw_only=True, slots=True)
    class Config(stubs.Points.Config):
        data: str = ""

    def dataset(self, split: str) -> Any:
        samples = super().dataset(split)
        shift = float(self.cfg.data or 0)
        for i in range(len(samples)):
            samples[i].data.add_(shift * torch.arange(6.0))
        return samples


def recipe(start: str = "", **options: Any) -> Recipe:
    made = stubs.recipe().replace(steps=20, save=Save(every=5), init=start, modality=Placed.Config())
    guard = {"drift": Drift.Config(every=5, reference="2", max_loss=100.0, **options)}
    return made.replace(evals=guard if start else {}, frozen=5 if start else 0)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()


def ckas(folder: Path) -> list[float]:
    lines = [x for x in RunFolder(folder).read_metrics() if x["kind"] == "eval"]
    return [x["drift/reference_cka"] for x in lines]


@pytest.mark.usefixtures("lean")
def test_a_guarded_run_rests_first_then_drifts_and_compares_with_the_same_start_after_a_kill(
    tmp_path: Path,
) -> None:
    train(recipe(), tmp_path / "start")
    guarded, run = recipe(str(tmp_path / "start"), action="lower", min_cka=1.0), tmp_path / "run"
    train(guarded, run)
    first, before = ckas(run), digest(run)
    np.testing.assert_allclose(first[:2], 1, atol=1e-6)  # the encoder was frozen for 5 steps
    assert first[2] < 1 - 1e-4
    for path in checkpoint.find(RunFolder(run).checkpoints):
        if checkpoint.step_of(path) > 15:
            (path / checkpoint.META).unlink()
    (run / "summary.json").unlink()
    train(guarded, run)
    assert ckas(run) == first
    assert digest(run) == before


@pytest.mark.usefixtures("lean")
def test_a_start_that_has_changed_is_noticed_when_the_run_goes_on(tmp_path: Path) -> None:
    train(recipe().replace(steps=5), tmp_path / "start")
    guarded = recipe(str(tmp_path / "start")).replace(steps=10)
    train(guarded, tmp_path / "run")
    train(recipe().replace(steps=10), tmp_path / "start")
    longer = guarded.replace(steps=15)
    with pytest.raises(
        ValueError, match="the weights of --init are others than those that the run started from"
    ):
        train(longer, tmp_path / "run")
    train(longer, tmp_path / "run", accept_data=True)


def test_encoders_that_rest_at_random_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"frozen=5 keeps .* random weights: give --init PLACE .* --frozen 0"
    ):
        train(recipe().replace(frozen=5), tmp_path)
    with pytest.raises(ValueError, match="frozen=20 of steps=20: encoders would never learn"):
        train(recipe("start").replace(frozen=20), tmp_path)


class FewPlaced(Placed):
    """Points, and two of them where `data` is given."""

    def dataset(self, split: str) -> Any:
        samples = super().dataset(split)
        return Listed([samples[i] for i in range(2)]) if self.cfg.data else samples


def test_a_reference_that_can_tell_nothing_is_refused_before_anything_is_trained() -> None:
    own = Placed.Config(data="2").build()
    with pytest.raises(ValueError, match="reference=2 is what the run trains on"):
        Drift.Config(reference="2").build().begin(frozen(), own)
    with pytest.raises(ValueError, match=r"val split of reference=3 has 2 samples, .* on 3 or more"):
        Drift.Config(reference="3").build().begin(frozen(), FewPlaced.Config().build())
    with pytest.raises(ValueError, match="reference=far cannot be read: could not convert"):
        Drift.Config(reference="far").build().begin(frozen(), own)


class Few(Clusters):
    """Two points of the split that is scored."""

    def dataset(self, split: str) -> Any:
        samples = super().dataset(split)
        return samples if split == "train" else Listed([samples[i] for i in range(2)])


def test_samples_too_few_for_cka_lower_no_rate(said: list[str]) -> None:
    evaluator, modality = Drift.Config(action="lower", every=5).build(), Few(Few.Config(labels=False))
    evaluator.begin(frozen(), modality)
    figures = evaluator.run(frozen(), modality, LATER)
    assert figures == {}
    assert evaluator.decision([{"step": 5.0, **figures}]) == GO_ON
    assert said[0] == "drift: the val split has 2 samples, and CKA takes 3 or more: it is left out"


def test_a_reference_is_read_as_the_data_is() -> None:
    evaluator = Drift.Config(reference="1").build()
    with pytest.raises(ValueError, match=r"reference=1: .* reads no data"):
        evaluator.begin(frozen(), Clusters(Clusters.Config()))
