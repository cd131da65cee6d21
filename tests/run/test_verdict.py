"""From a run's first evaluation to its verdict, its record and `multissl eval`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from multissl import cli
from multissl.contract.data import Batch, Raw, Samples
from multissl.contract.estimate import Estimate
from multissl.contract.plans import Plans
from multissl.evaluators.collapse import Collapse
from multissl.evaluators.knn import KNN
from multissl.evaluators.linear_probe import LinearProbe
from multissl.random import RowRandom
from multissl.recipe import Recipe
from multissl.run import train as run
from multissl.run.evaluate import judge
from multissl.run.folder import RunFolder
from tests.helpers import stubs


def recipe() -> Recipe:
    made = stubs.recipe()
    made.evals = {
        "knn": KNN.Config(every=20), "linear": LinearProbe.Config(), "collapse": Collapse.Config(every=20),
    }  # fmt: skip
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run.train(recipe(), folder)
    return folder


def test_every_figure_of_a_sample_carries_n_and_an_interval(finished: Path) -> None:
    lines = RunFolder(finished).read_metrics()
    by_kind = {kind: [x for x in lines if x["kind"] == kind] for kind in ("eval", "estimates")}
    assert [x["step"] for x in by_kind["eval"]] == [x["step"] for x in by_kind["estimates"]] == [0, 20, 40]
    for figures, known in zip(by_kind["eval"], by_kind["estimates"], strict=True):
        assert figures.keys() - known.keys() <= {"collapse/width"}
        for name in known.keys() - {"kind", "step"}:
            assert known[name]["n"] == 96
            assert known[name]["low"] <= figures[name] <= known[name]["high"]
    scored = ["scores" in x["knn/top1"] for x in by_kind["estimates"]]
    assert scored == [True, False, True]


def test_clear_clusters_leave_nothing_to_learn_and_eval_says_the_same(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["outcome"] == "cannot be told"
    assert summary["verdict"].startswith("cannot be told: no room above")
    assert judge(finished).verdict.text == summary["verdict"]
    assert cli.main(["eval", str(finished)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == summary["verdict"]
    assert any(line.startswith("knn/top1") and line.endswith("n=96)") for line in printed)


def test_a_resumed_run_compares_with_the_first_start(finished: Path, tmp_path: Path) -> None:
    run.train(recipe().replace(steps=20), tmp_path)
    result = run.train(recipe(), tmp_path)
    assert result.verdict == json.loads((finished / "summary.json").read_text())["verdict"]
    assert isinstance(result.metrics["knn/top1"], Estimate)


class Black(stubs.Points):
    """Samples that are all the same, whatever their label."""

    def dataset(self, split: str) -> Samples:
        data = super().dataset(split)
        samples = [data[i] for i in range(len(data))]
        return stubs.Listed([type(s)(torch.zeros(6), s.index, s.label) for s in samples])

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        batch = super().views(raw, plans, rng)
        for v in batch:
            v.x = torch.zeros_like(v.x)
        return batch


def test_black_pictures_are_collapsed(tmp_path: Path) -> None:
    result = run.train(recipe().replace(modality=Black.Config()), tmp_path)
    assert (result.outcome, result.learned) == ("collapsed", False)
    assert result.verdict.startswith("collapsed at step 0: feature std 0.000")


class Unlabeled(stubs.Points):
    def dataset(self, split: str) -> Samples:
        data = super().dataset(split)
        return stubs.Listed([type(s)(s.data, s.index) for s in (data[i] for i in range(len(data)))])


def test_without_labels_nothing_tells_what_was_learned(tmp_path: Path) -> None:
    result = run.train(recipe().replace(modality=Unlabeled.Config()), tmp_path)
    assert (result.outcome, result.learned) == ("cannot be told", False)
    assert result.verdict.startswith("cannot be told: not collapsed (RankMe")
