"""A split without labels is told by its name, whichever evaluator needs it, and gives no figure of labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from multissl.contract.data import Sample, Samples
from tests.evaluators.clusters import START
from tests.evaluators.every import CASES, Subject
from tests.evaluators.pairs import Facts, Knows
from tests.helpers.stubs import Listed

NEEDY = ("knn", "linear_probe", "linear_grid", "logistic_regression", "patches", "few_labels")
"""Evaluators that need labels of the train split and of the scored one."""


class Unlabeled(Subject):
    """One split has no labels."""

    without = "train"

    def dataset(self, split: str) -> Samples:
        return _unlabeled(super().dataset(split)) if split == self.without else super().dataset(split)


class UnlabeledFacts(Facts):
    """One split has no labels."""

    without = "val"

    def dataset(self, split: str) -> Samples:
        return _unlabeled(super().dataset(split)) if split == self.without else super().dataset(split)


def _unlabeled(data: Samples) -> Samples:
    samples: list[Sample] = [data[i] for i in range(len(data))]
    return Listed([replace(s, label=-1) for s in samples])


def build(name: str, **options: Any) -> Any:
    case = CASES[name]
    pytest.importorskip(case.needs)
    return replace(case, options={**case.options, **options}).build(name)


@pytest.mark.parametrize("without", ["train", "test"])
@pytest.mark.parametrize("name", NEEDY)
def test_the_split_that_lacks_labels_is_named(name: str, without: str, said: list[str]) -> None:
    """Of three splits one lacks labels, and the scored one is not that of the defaults."""
    modality = Unlabeled(Unlabeled.Config(noise=0.5))
    modality.without = without
    figures = build(name, split="test").run(CASES[name].encoders(), modality, START)
    assert not figures.keys() - {"similarity"}  # of patches, which takes no label
    assert said == [f"{name}: the {without} split has no labels, nothing to measure"]


@pytest.mark.parametrize("name", NEEDY)
def test_a_split_that_is_not_read_needs_no_labels(name: str, said: list[str]) -> None:
    modality = Unlabeled(Unlabeled.Config(noise=0.5))
    modality.without = "val"
    assert build(name, split="test").run(CASES[name].encoders(), modality, START)
    assert said == []


@pytest.mark.parametrize("without", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "options"), [("knn", {}), ("linear_probe", {}), ("few_labels", {"classical": True})]
)
def test_classical_features_name_the_split_that_lacks_labels(
    name: str, options: dict[str, Any], without: str, said: list[str]
) -> None:
    modality = Unlabeled(Unlabeled.Config(noise=0.5))
    modality.without = without
    assert build(name, split="test", **options).baselines(modality) == {}
    assert said == [f"{name}: the {without} split has no labels, nothing to measure"]


def test_names_of_classes_are_asked_of_labeled_samples(said: list[str]) -> None:
    modality = UnlabeledFacts(UnlabeledFacts.Config())
    assert build("zero_shot").run(Knows(), modality, START) == {}
    modality.without = "train"
    assert build("zero_shot").run(Knows(), modality, START)
    assert said == ["zero_shot: the val split has no labels, nothing to measure"]
