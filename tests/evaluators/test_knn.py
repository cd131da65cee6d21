from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multissl.contract.data import Views
from multissl.contract.estimate import Estimate, estimate
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.modality import Baseline
from multissl.contract.plans import Masking
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN, knn_accuracy, knn_predict
from multissl.evaluators.neighbors import centered, nearest, normalized, whitened
from multissl.inference import featurize_split
from tests.evaluators.clusters import START, Clusters, Pointwise, encoders, frozen
from tests.helpers.stubs import Listed

DATA = Path(os.environ.get("MULTISSL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def knn(**options: object) -> KNN:
    return KNN(KNN.Config(**{"k": (5,), **options}))


def test_votes_are_those_of_a_plain_loop() -> None:
    bank, queries = F.normalize(torch.randn(30, 6), dim=1), F.normalize(torch.randn(7, 6), dim=1)
    labels = torch.arange(30) % 4
    expected = torch.zeros(7, 4, dtype=torch.float64)
    for q in range(7):
        similarity = bank @ queries[q]
        for i in similarity.argsort(descending=True)[:5]:
            expected[q, labels[i]] += (similarity[i].double() / 0.07).exp()
    torch.testing.assert_close(knn_predict(bank, labels, queries, 5, 0.07, 4), expected, rtol=1e-5, atol=0)


def test_queries_in_chunks_find_the_same_neighbors() -> None:
    bank, queries = torch.randn(40, 5), torch.randn(11, 5)
    whole, parts = nearest(bank, queries, 3), nearest(bank, queries, 3, chunk=4)
    assert torch.equal(whole[1], parts[1])


def test_a_figure_knows_its_queries_and_their_groups() -> None:
    class Grouped(Clusters):
        def dataset(self, split: str) -> Any:
            data = super().dataset(split)
            return Listed([replace(data[i], group=i % 6) for i in range(len(data))])

    alone = knn().run(frozen(), Clusters(Clusters.Config(noise=0.6)), START)["top1"]
    grouped = knn().run(frozen(), Grouped(Clusters.Config(noise=0.6)), START)["top1"]
    assert isinstance(alone, Estimate)
    assert isinstance(grouped, Estimate)
    assert alone == grouped
    assert alone.n == grouped.n == 60
    assert alone.groups is None
    assert grouped.groups is not None
    assert grouped.groups.tolist() == [i % 6 for i in range(60)]


def test_more_neighbors_than_samples_means_all_of_them() -> None:
    bank = F.normalize(torch.randn(4, 3), dim=1)
    assert nearest(bank, bank, 20)[1].shape == (4, 4)


def test_a_common_offset_of_all_features_changes_nothing() -> None:
    x, y = torch.randn(200, 8), torch.arange(200) % 3
    plain = knn_accuracy(x[:150], y[:150], x[150:], y[150:])
    moved = knn_accuracy(x[:150] + 7, y[:150], x[150:] + 7, y[150:])
    assert plain == moved


def test_clear_clusters_are_told_apart_and_features_without_information_are_not() -> None:
    modality = Clusters(Clusters.Config())
    assert knn().run(frozen(), modality, START) == {"top1": 100.0}
    blind = nn.Linear(2, 3)
    nn.init.zeros_(blind.weight)
    assert knn().run(frozen(blind), modality, START)["top1"] <= 40


def test_every_k_gets_its_figure_and_the_first_is_top1() -> None:
    found = knn(k=(5, 1)).run(frozen(), Clusters(Clusters.Config(noise=1.0)), START)
    assert found.keys() == {"top1", "top1_k1"}
    assert found["top1"] != found["top1_k1"]


def test_a_grid_of_k_and_temperature_is_reported_and_the_first_k_at_the_temperature_is_top1() -> None:
    modality = Clusters(Clusters.Config(noise=1.0))
    evaluator = knn(k=(3, 20), temperatures=(0.01, 1.0))
    grid = evaluator.run(frozen(), modality, START)
    assert [*grid] == evaluator.metric_names()
    assert [*grid] == ["top1", "top1_k20", "top1_k3_t0.01", "top1_k20_t0.01", "top1_k3_t1", "top1_k20_t1"]
    for name, k, temperature in (("top1", 3, 0.07), ("top1_k20_t1", 20, 1.0), ("top1_k3_t0.01", 3, 0.01)):
        alone = knn(k=(k,), temperature=temperature).run(frozen(), modality, START)
        assert grid[name] == alone["top1"]
    assert grid["top1"] < max(grid.values())  # it is no choice by score
    assert evaluator.baselines(modality)["raw"] == grid["top1"]


def test_whitened_features_are_those_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    bank, queries = (torch.randn(n, 6, generator=torch.Generator().manual_seed(n)).double() for n in (90, 9))
    bank, queries = bank @ mixing + 3, queries @ mixing + 3
    reference = decomposition.PCA(whiten=True).fit(bank.numpy())
    ours = whitened(bank, queries)
    theirs = [F.normalize(torch.from_numpy(reference.transform(x.numpy())), dim=1) for x in (bank, queries)]
    torch.testing.assert_close(ours[1] @ ours[0].T, (theirs[1] @ theirs[0].T).float(), atol=1e-5, rtol=0)


class Drowned(nn.Module):
    """Points beside eight numbers that vary a hundred times as much and tell nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixing = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
        return torch.cat([x, 100 * torch.sin(1000 * x @ mixing)], dim=1)


def test_whitening_brings_out_what_hardly_varies_and_holds_for_baselines_too() -> None:
    class Noisy(Clusters):
        def baselines(self) -> dict[str, Baseline]:
            return {"raw": lambda views: Drowned()(views.x)}

    modality = Noisy(Noisy.Config())
    plain, white = (knn(whiten=w).run(frozen(Drowned()), modality, START)["top1"] for w in (False, True))
    assert plain < 60 < white
    assert knn().baselines(modality)["raw"] == plain
    assert knn(whiten=True).baselines(modality)["raw"] == white


def test_whitening_takes_wide_and_dead_features() -> None:
    x, y = torch.randn(60, 3000, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
    x[:, 0] += 500 * y
    assert knn_accuracy(x[:40], y[:40], x[40:], y[40:], (5,), prepare=whitened) == {5: 100.0}
    dead = torch.zeros(60, 4)
    assert knn_accuracy(dead[:40], y[:40], dead[40:], y[40:], (5,), prepare=whitened)[5] < 70


def test_without_centering_a_common_offset_counts() -> None:
    modality = Clusters(Clusters.Config(noise=0.3))
    bank, queries = torch.randn(30, 4), torch.randn(6, 4)
    assert torch.equal(normalized(bank, queries)[0], F.normalize(bank, dim=1))
    assert torch.equal(normalized(bank, queries)[1], F.normalize(queries, dim=1))
    offset = knn(center=False).run(frozen(), modality, START)["top1"]
    assert offset != knn().run(frozen(), modality, START)["top1"]
    assert knn(center=False).baselines(modality)["raw"] == offset
    with pytest.raises(ValueError, match="leave center on"):
        knn(center=False, whiten=True)
    with pytest.raises(ValueError, match="temperatures"):
        knn(temperatures=(0.001,))


def test_baselines_come_from_the_same_function() -> None:
    modality = Clusters(Clusters.Config(noise=0.6))
    evaluator = knn()
    assert evaluator.baselines(modality) == {
        "raw": evaluator.run(frozen(), modality, START)["top1"], "majority": 25.0,
    }  # fmt: skip


def test_encoders_are_measured_in_evaluation_mode_and_left_as_they_were() -> None:
    measured = encoders(nn.Dropout(0.5)).train()
    knn().run(FrozenEncoders.of(measured), Clusters(Clusters.Config()), START)
    encoder = measured["points"]
    assert isinstance(encoder, Pointwise)
    assert not encoder.seen_training
    assert encoder.training
    assert encoder.inner.training


class Unfinished(nn.Module):
    """Gives an error, and that in evaluation mode alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        raise KeyError


def test_modes_come_back_after_an_error() -> None:
    measured = encoders(Unfinished()).train()
    with pytest.raises(KeyError):
        FrozenEncoders.of(measured).encode([Views(x=torch.zeros(3, 2), stream="points", role="clean")])
    assert all(module.training for module in measured.modules())


def test_evaluators_of_one_moment_share_the_features_of_a_split() -> None:
    class Counting(FrozenEncoders):
        calls = 0

        def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
            self.calls += 1
            return encoders().encode(views, masking, inner)

    measured, modality = Counting(encoders().encode, torch.device("cpu")), Clusters(Clusters.Config())
    first = knn().run(measured, modality, START)
    assert measured.calls == 2  # train and val
    assert knn().run(measured, modality, START) == first
    assert Collapse(Collapse.Config(samples=0)).run(measured, modality, START)["width"] == 2
    assert measured.calls == 2
    knn(queries=10).run(measured, modality, START)  # other samples: encoded
    assert measured.calls == 3


def test_unreadable_samples_are_left_out() -> None:
    modality = Clusters(Clusters.Config(broken=(0, 3)))
    x, y = featurize_split(lambda v: v.x, modality, "val", batch_size=16)
    assert (len(x), len(y)) == (58, 58)
    assert knn().run(frozen(), modality, START)["top1"] == 100.0


def test_a_limit_takes_the_same_samples_of_all_classes_every_time() -> None:
    modality = Clusters(Clusters.Config())  # labels come in turn, so that every fourth sample is of one class
    x, y = featurize_split(lambda v: v.x, modality, "train", limit=30)
    again, _ = featurize_split(lambda v: v.x, modality, "train", limit=30)
    assert len(x) == 30
    assert torch.equal(x, again)
    assert y.bincount().min() >= 3


def test_data_without_labels_is_said_once_and_measured_never(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("multissl"), "warning", lambda text, *values: said.append(text % values)
    )
    evaluator, modality = knn(), Clusters(Clusters.Config(labels=False))
    assert evaluator.run(frozen(), modality, START) == {}
    assert evaluator.baselines(modality) == {}
    assert said == ["knn: the val split has no labels, nothing to measure"]


def test_views_are_encoded_where_the_parameters_lie_or_where_stand_ins_say() -> None:
    assert frozen(nn.Linear(2, 2, device="meta")).device == torch.device("meta")
    assert frozen().device == torch.device("cpu")
    devices = []

    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        devices.append(views[0].x.device)
        raise KeyError

    with pytest.raises(KeyError):
        knn().run(FrozenEncoders(encode, torch.device("meta")), Clusters(Clusters.Config()), START)
    assert devices == [torch.device("meta")]


def test_the_verdict_names_its_gates_and_the_classical_features_beside_them() -> None:
    first = {"step": 0, "top1": right(30), "raw": right(34), "hog": right(50), "majority": right(10)}
    verdict = knn().verdict([first, {"step": 9, "top1": right(81)}])
    assert verdict is not None
    assert verdict.outcome == "learned"
    assert verdict.text == (
        "learned: k-NN 81.0 % (n=100, 72.2 to 87.5) beats the untrained encoder's 30.0 %, the raw input's 34.0 % and "
        "the most frequent class's 10.0 % (hog 50.0 %)"
    )


def right(share: int) -> float:
    """The figure of an encoder that is right on the first so many of a hundred samples."""
    return estimate(100.0 * (np.arange(100) < share))


def test_one_figure_is_no_verdict() -> None:
    assert knn().verdict([{"step": 0, "top1": 3.0, "raw": 1.0}]) is None
    assert knn().verdict([]) is None


@pytest.mark.parametrize(
    "options", [{"k": ()}, {"k": (0,)}, {"temperature": 0.0}, {"bank": -1}, {"queries": -1}, {"every": -1}]
)
def test_options_out_of_range_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        knn(**options)


def test_the_strip_shows_queries_beside_their_neighbors() -> None:
    modality = Clusters(Clusters.Config(pictures=True))
    (figure,) = knn().figures(frozen(), modality)
    tile = 64 + 4 * 3
    assert figure.image.shape == (6 * tile, 6 * tile + 12, 3)
    assert figure.image.dtype == np.uint8
    same, other = (0, 114, 178), (213, 94, 0)
    colors = {tuple(c) for c in figure.image[3].tolist()}  # the frames' row of pixels
    assert same in colors
    assert other not in colors  # clear clusters: all neighbors are of the query's class


def test_samples_that_are_no_pictures_give_no_strip() -> None:
    assert knn().figures(frozen(), Clusters(Clusters.Config())) == []


def test_features_that_are_all_equal_are_at_chance_whatever_the_order_of_the_bank() -> None:
    """The first twenty of a bank sorted by class are of one class, and would win every vote."""
    labels, x = torch.arange(1000) // 250, torch.full((1000, 8), 0.3)
    truth = torch.arange(2000) % 4 * (torch.arange(2000) < 800)  # most are of class 0
    found = knn_accuracy(x, labels, torch.full((2000, 8), 0.3), truth, (20, 1))
    assert found[20] == pytest.approx(25, abs=4)
    assert found[1] == pytest.approx(25, abs=4)


def test_a_vote_that_is_equal_for_all_classes_is_worth_chance() -> None:
    bank, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    queries = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [0.0, 1.0]])
    assert knn_accuracy(bank, labels, queries, torch.tensor([1, 0, 0, 2]), (2,)) == {
        2: 100 * (0.5 + 0.5 + 1 + 0) / 4
    }


def test_classes_that_training_lacks_are_named(said: list[str]) -> None:
    class Fewer(Clusters):
        def dataset(self, split: str) -> Any:
            return Clusters(self.cfg.replace(classes=3 if split == "train" else 4)).dataset(split)

    figures = knn().run(frozen(), Fewer(Clusters.Config()), START)
    assert figures["top1"] <= 75
    assert said == [
        "knn: 15 of 60 labeled samples of the val split are of classes that training lacks (3): they count as not found"
    ]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.reference
@pytest.mark.skipif(not (DATA / "image").is_dir(), reason=f"no data folder at {DATA}")
def test_raw_cifar10_gives_the_published_floor() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")

    def read(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        table = parquet.read_table(DATA / "image" / name).to_pydict()
        pixels = [np.asarray(image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table["image"]]
        return torch.from_numpy(np.stack(pixels)).flatten(1).float() / 255, torch.tensor(table["label"])

    (bank, labels), (queries, truth) = read("cifar10-train.parquet"), read("cifar10-test.parquet")
    assert round(knn_accuracy(bank, labels, queries, truth)[20], 1) == 40.8
    guess = knn_predict(F.normalize(bank), labels, F.normalize(queries), 20, 0.07, 10).argmax(1)
    uncentered = 100 * (guess == truth).double().mean().item()
    assert uncentered == pytest.approx(32.8, abs=0.06)  # 32.85 in float32: a query or two either way
    torch.testing.assert_close(centered(bank, queries)[0].norm(dim=1), torch.ones(len(bank)))
