"""Features that are not finite give no number: of any registered evaluator, asked or unasked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multissl import registry
from multissl.contract.data import Sample, Samples, Views
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.finite import NotFinite, check_finite
from multissl.contract.learning import Features, Progress
from multissl.contract.modality import Modality
from multissl.contract.plans import Masking
from multissl.evaluators.collapse import alpha_req, feature_std, mean_cosine, rankme
from multissl.evaluators.few_labels import FewLabels, area, score
from multissl.evaluators.knn import KNN, knn_accuracy, votes
from multissl.evaluators.linear_probe import LinearProbe, probe_accuracy
from multissl.evaluators.recording_probe import recognized
from multissl.evaluators.retrieval import rank, retrieval_figures
from multissl.evaluators.shared_space import Embedded
from multissl.evaluators.state_probe import StateProbe, r2_of
from multissl.inference import clean_views, featurize_split
from tests.evaluators.clusters import START, Clusters, frozen
from tests.evaluators.every import CASES, Case, Subject, broken, seeing
from tests.helpers.stubs import Listed

NAMES = sorted(registry.GROUPS["evaluators"])
NOT_FINITE = [math.nan, math.inf, -math.inf]


def test_every_registered_evaluator_has_a_case() -> None:
    assert set(CASES) == set(NAMES)


def assert_no_number(evaluator: Evaluator, case: Case, value: float, said: list[str]) -> None:
    """One row that is not finite: every figure is NaN, and one warning says whose row it is, however often it runs."""
    for step in (0, 5):
        progress = Progress(step=step, total=10)
        figures = evaluator.run(broken(case.encoders(), value), case.modality(), progress)
        assert figures, "a figure that is left out is no warning"
        assert all(math.isnan(figure) for figure in figures.values()), figures
    assert evaluator.figures(broken(case.encoders(), value), case.modality()) == []
    (text,) = said
    assert "not a number: " in text
    assert text.endswith((" of the val split", " of the train split", " of the descriptions of classes"))


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", NAMES)
def test_one_row_that_is_not_finite_gives_no_number(name: str, value: float, said: list[str]) -> None:
    case = CASES[name]
    pytest.importorskip(case.needs)
    assert_no_number(case.build(name), case, value, said)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_encoders_without_that_row_give_numbers(name: str, said: list[str]) -> None:
    case = CASES[name]
    pytest.importorskip(case.needs)
    figures = case.build(name).run(case.encoders(), case.modality(), START)
    assert figures
    assert all(math.isfinite(figure) for figure in figures.values()), figures
    assert said == []


class Careless(Evaluator):
    """Takes the largest feature as the class, and knows of no gate."""

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        data = modality.dataset("val")
        views = clean_views(modality, [data[i] for i in range(len(data))], "points")
        pooled = self.encode(encoders, views)
        labels = torch.tensor([data[i].label for i in range(len(data))])
        return {"top1": 100 * float((pooled.argmax(1) == labels).double().mean())}

    def encode(self, encoders: FrozenEncoders, views: Views) -> Tensor:
        return encoders.encode([views])[0].pooled


class Ungated(Careless):
    """The same, past the door."""

    def encode(self, encoders: FrozenEncoders, views: Views) -> Tensor:
        return encoders.function([views], "none", 0)[0].pooled


def test_an_evaluator_that_does_not_ask_for_the_gate_has_it(said: list[str]) -> None:
    case = Case({})
    figures = Careless.Config().build().run(broken(seeing(), math.nan), case.modality(), START)
    assert figures.keys() == {"metric"}
    assert math.isnan(figures["metric"])
    assert said == ["Careless: not a number: row 3"]


def test_a_planted_evaluator_without_the_gate_turns_the_law_red(said: list[str]) -> None:
    with pytest.raises(AssertionError):
        assert_no_number(Ungated.Config().build(), Case({}), math.nan, said)


class Holed(Subject):
    """One training sample has a value that is not finite, in a file of that name."""

    def dataset(self, split: str) -> Samples:
        data = super().dataset(split)
        samples = [data[i] for i in range(len(data))]
        if split == "train":
            samples[7] = Sample(torch.tensor([math.nan, 1.0]), 7, 3)
        return Listed(samples)

    def describe(self, sample: Sample) -> dict[str, str]:
        return {"file": f"points/{sample.index}.npy"}


def test_a_sample_is_named_by_its_file_or_its_index(said: list[str]) -> None:
    KNN.Config().build().run(seeing(), Holed.Config().build(), START)
    KNN.Config().build().run(broken(seeing(), math.nan), Subject.Config().build(), START)
    assert said == [
        "knn: not a number: sample points/7.npy of the train split",
        "knn: not a number: sample 3 of the train split",
    ]


@pytest.mark.parametrize("config", [KNN.Config(), LinearProbe.Config(classical=True), StateProbe.Config()])
def test_baselines_of_features_that_are_not_finite_are_no_numbers(config: Any, said: list[str]) -> None:
    baselines = config.build().baselines(Holed.Config().build())
    assert baselines
    assert all(math.isnan(value) for value in baselines.values())
    assert len(said) == 1


def test_a_verdict_on_no_number_is_not_learned() -> None:
    for name in NAMES:
        evaluator = CASES[name].build(name)
        nothing = dict.fromkeys(evaluator.metric_names(), math.nan)
        verdict = evaluator.verdict([{"step": 0.0, **nothing, "counts": 1.0}, {"step": 9.0, **nothing}])
        assert verdict is None or not verdict.learned, name


def test_samples_that_lack_the_stream_may_have_anything() -> None:
    values, present = torch.ones(4, 3), torch.tensor([True, True, False, True])
    values[2] = math.nan
    check_finite(values, present)
    check_finite(values[:, :2], valid=torch.tensor([[True] * 2, [True] * 2, [False] * 2, [True] * 2]))
    with pytest.raises(NotFinite, match="row 2"):
        check_finite(values)
    values[3, 1] = math.inf
    with pytest.raises(NotFinite, match="row 3"):
        check_finite(values, present)


def test_the_door_looks_at_tokens_but_not_at_padding() -> None:
    def encode(views: Sequence[Views], masking: Masking, inner: int) -> list[Features]:
        tokens = torch.ones(3, 2, 4)
        tokens[1, 1] = math.nan
        return [Features(pooled=torch.ones(3, 4), tokens=tokens)]

    door = FrozenEncoders(encode, torch.device("cpu"))
    views = Views(x=torch.zeros(3, 2), stream="points", role="clean")
    with pytest.raises(NotFinite, match="row 1"):
        door.encode([views])
    views.valid = torch.tensor([[True, True], [True, False], [True, True]])
    assert len(door.encode([views])) == 1


def test_fine_tuning_that_diverges_is_no_number_and_leaves_the_others(said: list[str]) -> None:
    pytest.importorskip("sklearn")
    evaluator = FewLabels.Config(labels=16, draws=2, classical=False, fine_tune=3, fine_tune_lr=3e37).build()
    figures = evaluator.run(frozen(nn.Linear(2, 8)), Clusters.Config().build(), START)
    assert math.isnan(figures["fine_tuned"])
    assert figures["score"] > 0
    assert len(said) == 1


# ------------------------------------------------------------------- the functions themselves


def spoilt(rows: int, width: int = 8, value: float = math.nan) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    x[min(3, rows - 1), 2] = value
    return x


@pytest.mark.parametrize("value", NOT_FINITE)
def test_functions_of_features_give_nan(value: float) -> None:
    y, truth = torch.arange(50) % 4, torch.arange(20) % 4
    fine, fine_queries = torch.randn(50, 8), torch.randn(20, 8)
    bad, bad_queries = spoilt(50, value=value), spoilt(20, value=value)
    for x, queries in ((bad, fine_queries), (fine, bad_queries)):
        assert all(math.isnan(v) for v in knn_accuracy(x, y, queries, truth, (5, 20)).values())
        assert math.isnan(probe_accuracy(x, y, queries, truth, (1e-3, 1.0)))
        r2 = r2_of(x, fine[:, :2], y, queries, fine_queries[:, :2], (1e-3, 1.0))
        assert r2.shape == (2,)
        assert r2.isnan().all()
        ranks = rank(x[:20], queries, torch.eye(20, dtype=torch.bool))
        assert math.isnan(ranks.recall(1))
        assert math.isnan(ranks.recall(10))
        assert ranks.precision.isnan().all()
        assert math.isnan(recognized(x[:20], queries))
    for measure in (rankme, feature_std, mean_cosine, lambda x: alpha_req(x, 1, 4)):
        assert math.isnan(measure(bad))
    assert (
        votes(bad.nan_to_num(math.nan, math.nan, math.nan)[:, :3], y[:, None].expand(50, 3), 1.0, 4)[3]
        .isnan()
        .all()
    )


def test_scores_that_are_not_finite_have_no_area() -> None:
    scores, truth = np.array([[0.1, 0.9], [math.nan, 0.2]]), np.array([0, 1])
    for metric in ("area", "accuracy"):
        assert math.isnan(score(scores, truth, metric))
    assert math.isnan(score(np.array([1.0, math.nan]), np.array([1.0, 2.0])))
    assert math.isnan(area(scores[:, 0], truth == 1))


def test_retrieval_of_nan_has_no_p() -> None:
    z = {s: spoilt(20) for s in "ab"}
    here = {s: torch.ones(20, dtype=torch.bool) for s in "ab"}
    figures = retrieval_figures(
        Embedded(z=z, here=here, ids=[], samples=[Sample(None, i) for i in range(20)])
    )
    for name in ("r1", "shuffled", "p", "a_to_b_r1", "a_to_b_map"):
        assert math.isnan(figures[name]), name


def test_features_of_a_split_are_refused_with_the_sample() -> None:
    modality = Clusters.Config(broken=(0,)).build()
    first = modality.dataset("val")[5].data

    def featurize(views: Views) -> Tensor:
        hit = (views.x == first).all(1, keepdim=True)
        return views.x.masked_fill(hit, math.inf)

    with pytest.raises(NotFinite, match="sample 5 of the val split"):
        featurize_split(featurize, modality, "val", batch_size=4)
