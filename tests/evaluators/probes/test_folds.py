"""Folds: each is scored by a head that it did not train, beside a loop with scikit-learn's folds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import LabelSets, Samples
from multissl.evaluators.probes import trained
from multissl.evaluators.probes.folds import over_folds
from multissl.evaluators.probes.mlp_probe import MLPProbe
from multissl.evaluators.probes.trained import Labeled
from multissl.evaluators.probes.training import choose
from tests.evaluators.clusters import START, Clusters, frozen
from tests.evaluators.test_several_classes import Quadrants, Sets
from tests.helpers.stubs import Listed

CPU = torch.device("cpu")
PROBE = MLPProbe.Config(folds=True, lr=(0.1, 0.01), hidden=32, layers=(1,), steps=80, batch=32)


class Folded(Clusters):
    """Points of five folds, of which the last is the split that is scored."""

    def dataset(self, split: str) -> Samples:
        base = super().dataset(split)
        return Listed([replace(base[i], group=4 if split == "val" else i // 4 % 4) for i in range(len(base))])


def whole_of(modality: Clusters) -> Labeled:
    probe: Any = PROBE.build()
    sides = [probe.read(frozen(), modality, split, 0) for split in ("train", "val")]
    return Labeled(
        (torch.cat([s.inputs[0] for s in sides]),),
        torch.cat([s.labels for s in sides]),
        np.concatenate([s.groups for s in sides]),
    )


def test_every_fold_is_scored_by_what_the_others_train_and_the_next_one_chooses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    modality: Any = Folded.Config(noise=0.5).build()
    chosen: list[tuple[int, int]] = []

    def spy(trials: Any, read: Any, rows: torch.Tensor, labels: torch.Tensor) -> Any:
        chosen.append((len(rows), len(labels)))
        return choose(trials, read, rows, labels)

    monkeypatch.setattr(trained, "choose", spy)
    figures: Any = PROBE.build().run(frozen(), modality, START)
    whole, probe = whole_of(modality), MLPProbe(PROBE)
    sizes = [int((whole.groups == fold).sum()) for fold in range(5)]
    assert chosen == [(sizes[(i + 1) % 5], sum(sizes) - sizes[i]) for i in range(5)]
    splits = selection.LeaveOneGroupOut().split(whole.inputs[0], whole.labels, whole.groups)
    right = np.zeros(len(whole.labels))
    for fold, (train, test) in enumerate(splits):
        part = Labeled((whole.inputs[0][train],), whole.labels[train], whole.groups[train])
        head = probe.fitted(part, torch.from_numpy(part.groups == (fold + 1) % 5), CPU).head.eval()
        with torch.no_grad():
            right[test] = head(whole.inputs[0][test]).argmax(1).numpy() == whole.labels[test].numpy()
    assert float(figures["top1"]) == pytest.approx(100 * right.mean())
    means = [right[whole.groups == fold].mean() for fold in range(5)]
    assert float(figures["over_folds"]) == pytest.approx(100 * np.mean(means))
    assert (figures["top1"].n, figures["over_folds"].n) == (len(right), 5)
    assert 40 < figures["top1"] < 99
    assert [*figures] == PROBE.build().metric_names()
    assert PROBE.build().selected_on == "the fold after the scored one"
    assert PROBE.build().baselines(modality)["majority"] == pytest.approx(25, abs=1)


class FoldedSets(Quadrants):
    def dataset(self, split: str) -> Samples:
        made = super().dataset(split)
        sets = made.label_sets()
        assert isinstance(sets, LabelSets)
        return Sets([replace(made[i], group=3 if split == "val" else i % 3) for i in range(len(made))], sets)


def test_of_several_classes_the_mean_average_precision_is_that_of_folds() -> None:
    figures: Any = PROBE.build().run(frozen(), FoldedSets.Config().build(), START)
    assert figures["map"] > 90
    assert figures["map"].n == 4
    assert figures["left_out"] == 4  # one class, in each of the folds
    assert [*PROBE.build().baselines(FoldedSets.Config().build())] == ["prevalence"]


def test_a_fold_teaches_nothing_about_itself() -> None:
    """Labels that are turned around in one fold alone are all wrong there."""
    draw = torch.Generator().manual_seed(0)
    x, groups = torch.randn(120, 2, generator=draw), np.arange(120) % 4
    labels = (x[:, 0] > 0).long()
    labels[groups == 2] = 1 - labels[groups == 2]
    probe = MLPProbe(PROBE.replace(lr=(0.1,)))
    figures: Any = over_folds(probe, Labeled((x,), labels, groups), CPU)
    scores = figures["top1"].scores
    assert scores[groups == 2].mean() < 15
    assert scores[groups != 2].mean() > 60


@pytest.mark.parametrize(("groups", "said"), [(1, "got 2 groups"), (-1, "got samples without one")])
def test_too_few_folds_are_refused_with_the_way_out(groups: int, said: str) -> None:
    class Few(Clusters):
        def dataset(self, split: str) -> Samples:
            base = super().dataset(split)
            return Listed([replace(base[i], group=groups if split == "val" else 0) for i in range(len(base))])

    with pytest.raises(ValueError, match=rf"folds=True: want 3 groups or more.*group_pattern.*{said}"):
        PROBE.build().run(frozen(), Few.Config().build(), START)
