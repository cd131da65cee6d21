from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from multissl.contract.data import Sample
from multissl.contract.estimate import Estimate
from multissl.contract.learning import Progress
from multissl.evaluators.retrieval import (
    Retrieval,
    answers,
    chance,
    rank,
    retrieval_figures,
    shuffled_recalls,
    side_by_side,
)
from multissl.evaluators.shared_space import Embedded, permutation_p
from tests.evaluators.pairs import Facts, Knows

DONE = Progress(step=1, total=1)


def run(encoders: Any, modality: Facts.Config | None = None, **options: Any) -> dict[str, float]:
    return Retrieval.Config(**options).build().run(encoders, (modality or Facts.Config()).build(), DONE)


def drawn_pairs(noise: float, rows: int = 60, streams: int = 2) -> Embedded:
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(rows, 8, generator=draw)
    z = {s: points + noise * torch.randn(rows, 8, generator=draw) for s in "abc"[:streams]}
    return Embedded(
        z={s: torch.nn.functional.normalize(x, dim=1) for s, x in z.items()},
        here={s: torch.ones(rows, dtype=torch.bool) for s in z},
        ids=[],
        samples=[Sample(None, i) for i in range(rows)],
    )


def test_encoders_that_know_find_every_partner() -> None:
    found = run(Knows())
    for direction in ("numbers_to_text", "text_to_numbers"):
        assert [found[f"{direction}_{f}"] for f in ("r1", "r5", "r10", "map")] == [100] * 4
    assert found["r1"] == 100
    assert found["chance"] == pytest.approx(100 / 24)
    assert abs(found["shuffled"] - found["chance"]) < 1
    assert found["p"] == 1 / 1000
    assert (found["candidates"], found["distinct"]) == (24, 24)
    assert found["gap_numbers_text"] < 1e-3


def test_all_samples_of_one_caption_are_right_and_chance_says_so() -> None:
    """Four captions for 24 samples: what has the right class is right, and a quarter of random answers is."""
    found = run(Knows(), Facts.Config(told=False))
    assert found["r1"] == 100
    assert found["chance"] == pytest.approx(25)
    assert abs(found["shuffled"] - 25) < 2
    assert found["distinct"] == 4
    one_each = run(Knows(), Facts.Config(told=False), distinct=True)
    assert (one_each["candidates"], one_each["chance"], one_each["r1"]) == (4, 25, 100)


def test_all_captions_equal_is_nothing_learned() -> None:
    same = drawn_pairs(0.1)
    same.ids.append(torch.zeros(60, dtype=torch.long))
    found = retrieval_figures(same)
    assert (found["r1"], found["chance"], found["p"], found["distinct"]) == (100, 100, 1, 1)
    wrong = Estimate(0.0, 120, (0.0, 3.0), np.zeros(120, np.float32))
    verdict = Retrieval.Config().build().verdict([{**found, "r1": wrong}, found])
    assert verdict is not None
    assert verdict.text.startswith("cannot be told: all 120 samples are of one group")


def test_samples_that_lack_a_stream_neither_ask_nor_answer() -> None:
    found = run(Knows(), Facts.Config(without=(0, 5, 6)))
    assert found["r1"] == 100
    assert found["chance"] == pytest.approx(100 / 21)


def test_towers_that_know_nothing_are_at_chance() -> None:
    figures = retrieval_figures(drawn_pairs(1e3, rows=400), shuffles=199)
    assert figures["r1"] < 1.5
    assert figures["p"] > 0.01
    assert abs(figures["chance"] - 0.25) < 1e-6


def test_pairs_dealt_out_anew_fall_to_chance() -> None:
    """The control of a true space: the same embeddings, the partners exchanged."""
    true = drawn_pairs(0.05, rows=200)
    assert retrieval_figures(true)["r1"] > 90
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    true.z["b"] = true.z["b"][order]
    shuffled = retrieval_figures(true)
    assert shuffled["r1"] < 3
    assert shuffled["p"] > 0.01


def test_every_ordered_pair_of_three_streams_is_told() -> None:
    found = retrieval_figures(drawn_pairs(0.05, streams=3), shuffles=99)
    assert len([n for n in found if n.endswith("_r1")]) == 6
    assert len([n for n in found if n.startswith("gap_")]) == 3
    assert found["p"] == 0.01


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_the_figures_of_every_direction_are_those_of_a_plain_loop(noise: float) -> None:
    """Of embeddings that find some of their partners; pairs 0 to 19 are told thrice, so that three are right."""
    found = drawn_pairs(noise)
    found.ids.append(torch.arange(60) % 20)
    figures = retrieval_figures(found, (1, 4), shuffles=99)
    for a, b in permutations("ab"):
        precisions, firsts = [], []
        for query in range(60):
            order = (found.z[b] @ found.z[a][query]).argsort(descending=True).tolist()
            places = [n for n, answer in enumerate(order) if answer % 20 == query % 20]
            precisions.append(np.mean([(k + 1) / (place + 1) for k, place in enumerate(places)]))
            firsts.append(places[0])
        assert 5 < figures[f"{a}_to_{b}_map"] < 99
        assert figures[f"{a}_to_{b}_map"] == pytest.approx(100 * np.mean(precisions))
        for k in (1, 4):
            assert figures[f"{a}_to_{b}_r{k}"] == pytest.approx(100 * np.mean(np.array(firsts) < k))
    r1 = [figures[f"{a}_to_{b}_r1"] for a, b in permutations("ab")]
    assert figures["r1"] == pytest.approx(np.mean(r1))
    assert (figures["candidates"], figures["distinct"]) == (60, 20)


def test_the_gap_is_the_distance_of_the_centers() -> None:
    moved = drawn_pairs(0.0)
    moved.z["b"] = moved.z["b"] + 2.0
    assert retrieval_figures(moved)["gap_a_b"] == pytest.approx(2 * math.sqrt(8), rel=1e-5)


def test_chance_is_the_recall_of_random_rankings() -> None:
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(30, 12, generator=draw) < 0.2
    right[:, 0] = True
    times = [
        rank(torch.randn(30, 5, generator=draw), torch.randn(12, 5, generator=draw), right)
        for _ in range(300)
    ]
    for k in (1, 3):
        mean = sum(t.recall(k) for t in times) / len(times)
        assert mean == pytest.approx(chance(right, k), abs=0.02)
    assert chance(right, 12) == chance(right, 50) == 1


def test_a_ranking_in_parts_is_the_ranking() -> None:
    z, right = torch.randn(50, 6), torch.eye(50, dtype=torch.bool)
    whole, parts = rank(z, z + 0.5, right), rank(z, z + 0.5, right, chunk=7)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


def test_p_counts_the_true_pairing_among_the_dealings() -> None:
    assert permutation_p(0.5, torch.tensor([0.1, 0.5, 0.6])) == 3 / 4
    nearest, right = torch.arange(20), torch.eye(20, dtype=torch.bool)
    dealt = shuffled_recalls(nearest, right, 500)
    assert float(dealt.mean()) == pytest.approx(0.05, abs=0.01)


def test_without_a_shared_space_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator: Any = Retrieval.Config().build()
    said: list[str] = []
    monkeypatch.setattr(
        "multissl.contract.evaluator.log.warning", lambda text, *given: said.append(text % given)
    )
    for _ in range(2):
        assert evaluator.run(Knows(blind=True), Facts.Config().build(), DONE) == {}
    assert len(said) == 1
    assert "share no space" in said[0]


def test_the_verdict_tells_candidates_chance_and_p() -> None:
    evaluator: Any = Retrieval.Config().build()
    before, after = run(Knows(wrong=True)), run(Knows())
    assert evaluator.verdict([after]) is None
    verdict = evaluator.verdict([before, after])
    assert verdict is not None
    assert verdict.outcome == "learned"
    assert verdict.text.startswith("learned: recall@1 of 24 candidates, 24 distinct, 100.0 % (n=48, ")
    assert verdict.text.endswith("beats the untrained towers' 0.0 % and chance's 4.2 %")
    again = evaluator.verdict([after, after])
    assert again is not None
    assert again.outcome == "cannot be told"
    by_chance = evaluator.verdict([before, {**after, "p": 0.3}])
    assert by_chance is not None
    assert by_chance.outcome == "not learned"
    assert "no better than with shuffled answers (p 0.3)" in by_chance.text


def test_tiles_of_any_sizes_stand_side_by_side_at_the_top_on_white() -> None:
    tiles = [
        np.full((high, wide, 3), shade, np.uint8)
        for high, wide, shade in ((2, 3, 10), (4, 1, 20), (1, 2, 30))
    ]
    row = side_by_side(tiles)
    assert row.shape == (4, 6, 3)
    assert row[:, :, 0].tolist() == [
        [10, 10, 10, 20, 30, 30],
        [10, 10, 10, 20, 255, 255],
        [255, 255, 255, 20, 255, 255],
        [255, 255, 255, 20, 255, 255],
    ]


def test_both_directions_have_a_figure() -> None:
    evaluator: Any = Retrieval.Config().build()
    figures = evaluator.figures(Knows(), Facts.Config().build())
    assert [p.title for p in figures] == ["Nearest pairs, numbers to text", "Nearest pairs, text to numbers"]
    assert all(p.image.ndim == 3 and p.image.shape[2] == 3 for p in figures)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": ()}, "k="),
        ({"candidates": 1}, "candidates=1"),
        ({"shuffles": 50}, "shuffles=50"),
        ({"stream": "text"}, "leave it empty"),
    ],
)
def test_bad_options_say_what_they_want(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Retrieval.Config(**options)


def test_equal_embeddings_are_at_chance() -> None:
    """A space that has collapsed: k of S candidates are as good as any other, whatever their order."""
    right, harmonic = torch.eye(50, dtype=torch.bool), sum(1 / j for j in range(1, 51))
    for width in (8, 37):
        point = torch.randn(2, width, generator=torch.Generator().manual_seed(width))
        ranks = rank(point[:1].expand(50, -1), point[1:].expand(50, -1), right, chunk=7)
        for k in (1, 10, 50, 90):
            assert ranks.recall(k) == pytest.approx(min(k, 50) / 50)
        assert float(ranks.precision.mean()) == pytest.approx(harmonic / 50)
        assert len(ranks.nearest.unique()) > 10  # drawn, not the first of all
    collapsed = drawn_pairs(0.1)
    collapsed.z = {s: z[:1].expand(60, -1) for s, z in collapsed.z.items()}
    figures = retrieval_figures(collapsed)
    assert figures["a_to_b_r10"] == pytest.approx(100 * 10 / 60)
    assert figures["r1"] == pytest.approx(figures["chance"])
    assert figures["p"] > 0.01


def test_ties_are_worth_the_mean_over_their_orders() -> None:
    """Two queries by hand: all 24 orders of a tie of four, two of them right, below and above single candidates."""
    scores = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    for right in ([0, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0]):
        hit = torch.tensor([right], dtype=torch.bool)
        ranks = answers(scores[None].double(), torch.arange(6)[None], hit, torch.zeros(1))
        orders = [[0, *middle, 5] for middle in permutations(range(1, 5))]
        hits = [[right[i] for i in order] for order in orders]
        for k in (1, 2, 3, 4, 6):
            assert ranks.recall(k) == pytest.approx(sum(any(h[:k]) for h in hits) / 24)
        at = [[sum(h[: j + 1]) / (j + 1) * h[j] for j in range(6)] for h in hits]
        assert float(ranks.precision) == pytest.approx(sum(map(sum, at)) / 24 / 3)
        assert float(ranks.precision_at_r) == pytest.approx(sum(sum(a[:3]) for a in at) / 24 / 3)


def test_scores_without_ties_rank_as_ever() -> None:
    draw = torch.Generator().manual_seed(1)
    z, right = torch.randn(40, 6, generator=draw), torch.rand(40, 40, generator=draw) < 0.1
    right |= torch.eye(40, dtype=torch.bool)
    ranks = rank(z, z.flip(1), right)
    cosine = torch.nn.functional.normalize(z.double()) @ torch.nn.functional.normalize(z.flip(1).double()).T
    order = cosine.argsort(1, descending=True)
    hit = right.gather(1, order)
    assert torch.equal(ranks.first, hit.double().argmax(1).double())
    assert torch.equal(ranks.nearest, order[:, 0])
    assert ranks.recall(3) == float(hit[:, :3].any(1).double().mean())


def test_embeddings_that_are_no_numbers_have_no_ranks() -> None:
    z = torch.eye(3)
    z[1, 1] = torch.nan
    answers = rank(z, torch.eye(3), torch.eye(3, dtype=torch.bool))
    assert answers.nearest.tolist() == [-1, -1, -1]
    assert answers.first.isnan().all()
    assert answers.precision.isnan().all()
