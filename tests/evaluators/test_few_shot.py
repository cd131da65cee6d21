"""Draws of few samples per class, and votes among what was retrieved, beside loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from multissl.evaluators.few_shot import FewShot, draw_per_class, neighbor_counts, shares
from multissl.inference import Pooled, featurize_split
from tests.evaluators.clusters import START, Clusters, frozen
from tests.evaluators.every import expansion

LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1, 0, 2, 0, 5])


def test_each_class_gives_as_many_in_order_of_labels() -> None:
    rows = draw_per_class(LABELS[:-1], 2, draw=3)
    assert LABELS[rows].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(rows.unique()) == 6
    assert not torch.equal(rows, draw_per_class(LABELS[:-1], 2, draw=4))


def test_draws_are_permutations_of_one_generator_seeded_by_their_number() -> None:
    generator = torch.Generator().manual_seed(7)
    places = {c: LABELS.eq(c).nonzero().flatten() for c in (0, 1, 2, 5)}
    expected = torch.cat([p[torch.randperm(len(p), generator=generator)[:1]] for p in places.values()])
    assert torch.equal(draw_per_class(LABELS, 1, draw=7), expected)


def test_a_share_of_a_class_keeps_one_at_least() -> None:
    rows = draw_per_class(LABELS, 0.5, draw=0)
    assert LABELS[rows].tolist() == [0, 0, 1, 2, 2, 5]


def test_a_class_of_too_few_is_named() -> None:
    with pytest.raises(ValueError, match="class 5 has 1 samples, fewer than the 2 of a draw"):
        draw_per_class(LABELS, 2, draw=0)


def test_neighbors_are_no_more_than_a_class_has() -> None:
    assert neighbor_counts((1, 20), 5) == [1, 5]
    assert neighbor_counts((1, 5, 3), 5) == [1, 3, 5]


@pytest.mark.parametrize("skip", [0, 1])
def test_votes_are_softmax_shares_of_all_that_are_retrieved(skip: int) -> None:
    torch.manual_seed(0)
    x = F.normalize(torch.randn(len(LABELS), 4, dtype=torch.float64), dim=1)
    votes = shares(x, LABELS, x, (1, 4), 0.1, 6, skip=skip)
    for query in range(len(x)):
        ranked = sorted(range(len(x)), key=lambda i: -float(x[i] @ x[query]))[skip : skip + 4]
        weights = [math.exp(float(x[i] @ x[query]) / 0.1) for i in ranked]
        for k in (1, 4):
            expected = [0.0] * 6
            for i, weight in [*zip(ranked, weights, strict=True)][:k]:
                expected[int(LABELS[i])] += weight / sum(weights)
            torch.testing.assert_close(votes[k][query], torch.tensor(expected, dtype=torch.float64))
    assert (votes[1].argmax(1) == LABELS).all() == (not skip)


def test_the_evaluator_votes_over_the_same_draws_for_all(said: list[str]) -> None:
    modality, encoders = Clusters.Config(noise=0.4).build(), frozen(expansion())
    figures: Any = FewShot.Config(per_class=(3, 31), k=(1, 9), tries=3).build().run(encoders, modality, START)
    x, y = (
        F.normalize(t, dim=1) if t.ndim > 1 else t
        for t in featurize_split(Pooled(encoders), modality, "train")
    )
    q, truth = featurize_split(Pooled(encoders), modality, "val")
    scores = []
    for draw in range(3):
        rows = draw_per_class(y, 3, draw)
        votes = shares(x[rows], y[rows], F.normalize(q, dim=1), (1, 3), 0.07, 4)
        scores.append(100 * float((votes[3].argmax(1) == truth).double().mean()))
    assert [*figures] == ["n3_k1", "n3"]
    assert figures["n3"] == pytest.approx(sum(scores) / 3)
    assert figures["n3"].n == 3
    assert said == ["few_shot: per_class=31 is left out: a class has 30 training samples"]
