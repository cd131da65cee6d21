"""Regression between classical features of two streams: what it finds, what it cannot, and how retrieval shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.evaluators.regression import predicted
from multissl.evaluators.retrieval import Retrieval
from tests.evaluators.clusters import START
from tests.evaluators.pairs import Facts, Knows


class Worded(Facts):
    """Facts whose classical features tell which word of a text is there."""

    def baselines(self) -> dict[str, Callable[[Views], Tensor]]:
        return {"raw": lambda v: v.x if v.stream == "numbers" else F.one_hot(v.x[:, 0], 100).float()}


def test_a_linear_map_is_found_and_noise_is_not() -> None:
    torch.manual_seed(0)
    x, questions, map_ = torch.randn(200, 6) + 3, torch.randn(50, 6) + 3, torch.randn(6, 4)
    y, truth = x @ map_ + 7, questions @ map_ + 7
    found = predicted(x, y, questions)
    assert F.cosine_similarity(found, (truth - y.mean(0)).double()).mean() > 0.999
    torch.testing.assert_close(found, (truth - y.mean(0)).double(), rtol=0.05, atol=0.05)
    noise = predicted(x, torch.randn(200, 4), questions)
    assert abs(float(F.cosine_similarity(noise, (truth - y.mean(0)).double()).mean())) < 0.3


def test_more_features_than_pairs_and_constant_features_are_no_trouble() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(30, 100), torch.ones(30, 5)], 1)
    assert bool(predicted(x, x[:, :3], x).isfinite().all())
    assert bool(predicted(torch.ones(30, 4), torch.randn(30, 3), torch.ones(2, 4)).isfinite().all())


def test_captions_of_few_kinds_are_found_by_regression_and_the_verdict_names_it() -> None:
    few = Worded.Config(told=False).build()
    evaluator = Retrieval.Config(shuffles=99).build()
    baseline = evaluator.baselines(few)
    assert baseline["regression"] > 95
    before, after = ({"step": float(i), **evaluator.run(Knows(wrong=i == 0), few, START)} for i in (0, 1))
    said: Any = evaluator.verdict([before | baseline, after])
    assert said.outcome == "learned"  # the regression finds no more than the towers do
    assert "regression's on classical features 100.0 %" in said.text


def test_towers_below_the_regression_are_said_to_be_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Worded.Config(told=False, count=200).build()
    evaluator = Retrieval.Config(shuffles=99).build()
    before = {"step": 0.0, **evaluator.run(Knows(count=200, wrong=True), few, START)} | evaluator.baselines(
        few
    )
    knows = Knows(count=200)
    read = knows.read

    def half(views: Any, masking: Any, inner: int) -> Any:
        """A third of the samples are embedded at random."""
        made = read(views, masking, inner)
        for features in made:
            assert features.embedding is not None
            features.embedding[::3] = torch.randn_like(features.embedding[::3])
        return made

    monkeypatch.setattr(knows, "function", half)
    after = {"step": 1.0, **evaluator.run(knows, few, START)}
    assert 40 < after["r1"] < 90 < before["regression"]
    said: Any = evaluator.verdict([before, after])
    assert said.outcome == "learned, but below"
    assert "regression's on classical features" in said.text


@pytest.mark.parametrize("options", [{"train": 0}, {"train": 19}])
def test_regression_can_be_left_out_and_wants_some_pairs(options: dict[str, Any]) -> None:
    if options["train"]:
        with pytest.raises(ValueError, match=r"train=19: want 0 \(no regression\) or 20 and more"):
            Retrieval.Config(**options)
    else:
        assert Retrieval.Config(**options).build().baselines(Facts.Config().build()) == {}
