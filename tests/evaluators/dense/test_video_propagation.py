"""Masks carried through films of a square that moves, and the scores of DAVIS beside loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from multissl.contract.abilities import PixelLabel
from multissl.contract.data import Sample, Samples
from multissl.evaluators.dense.video_propagation import (
    VideoPropagation,
    boundary,
    boundary_score,
    followed,
    overlap,
    widened,
)
from tests.evaluators.clusters import START
from tests.evaluators.dense.scenes import SIDE, Scenes, blind, seeing
from tests.helpers.stubs import Listed


class Moving(Scenes):
    """Two films of five frames: a bright square of 4 x 4 pixels that moves by a patch, on dark noise."""

    def dataset(self, split: str) -> Samples:
        draw = torch.Generator().manual_seed(3)
        samples = []
        for film in range(2):
            for frame in range(5):
                mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
                left = min(2 * frame, 4)
                mask[2 * film : 2 * film + 4, left : left + 4] = 1
                light = 3 * mask - 1 + 0.1 * torch.randn(SIDE, SIDE, generator=draw)
                samples.append(Sample(data=(split, mask, light), index=len(samples)))
        return Listed(samples)

    def pixel_labels(self, sample: Sample, kind: PixelLabel, size: tuple[int, ...] = ()) -> Tensor:
        return sample.data[1].to(torch.uint8)

    def films(self, split: str) -> list[list[int]]:
        return [[*range(5)], [*range(5, 10)]]


def test_a_square_is_followed_by_features_that_tell_it() -> None:
    films = Moving(Moving.Config())
    evaluator = VideoPropagation.Config(radius=2).build()
    figures = evaluator.run(seeing(), films, START)
    assert figures["j"] > 90
    assert figures["j_and_f"] == pytest.approx((figures["j"] + figures["f"]) / 2)
    assert figures["j_and_f"].n == 2  # type: ignore[attr-defined]
    assert evaluator.run(blind(), films, START)["j"] < 60
    floors = evaluator.baselines(films)
    # of three scored frames the first mask covers a half, and no pixel, no pixel: it stands still
    assert floors["first_mask"] < floors["raw"] == pytest.approx(figures["j_and_f"])
    frames = [(films.pixel_labels(films.dataset("val")[0], "classes"), films.pixel_labels(s, "classes"))
              for s in (films.dataset("val")[i] for i in (1, 2, 3))]  # fmt: skip
    assert followed(frames[0][0], frames)[0].j == pytest.approx(100 * (1 / 3 + 0 + 0) / 3)


def slow_boundary(mask: Tensor) -> set[tuple[int, int]]:
    """DAVIS's map, a pixel at a time."""
    high, wide = mask.shape
    edge = set()
    for r in range(high):
        for c in range(wide):
            right = mask[r, c] != mask[r, c + 1] if c + 1 < wide else False
            below = mask[r, c] != mask[r + 1, c] if r + 1 < high else False
            across = mask[r, c] != mask[r + 1, c + 1] if r + 1 < high and c + 1 < wide else False
            if right or below or across:
                edge.add((r, c))
    return edge


def near(place: tuple[int, int], others: set[tuple[int, int]]) -> bool:
    return any(math.dist(place, other) <= math.ceil(0.008 * math.hypot(9, 13)) for other in others)


def test_boundaries_and_their_score_are_those_of_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        masks = [torch.rand(9, 13, generator=draw) > 0.6 for _ in range(2)]
        ours, theirs = (slow_boundary(m) for m in masks)
        assert {tuple(p) for p in boundary(masks[0]).nonzero().tolist()} == ours
        precision = sum(near(p, theirs) for p in ours) / len(ours)
        recall = sum(near(p, ours) for p in theirs) / len(theirs)
        assert boundary_score(*masks) == pytest.approx(2 * precision * recall / (precision + recall))


def test_an_edge_is_widened_by_a_disk() -> None:
    edge = torch.zeros(7, 7, dtype=torch.bool)
    edge[3, 3] = True
    assert int(widened(edge, 2).sum()) == 13
    assert not bool(widened(edge, 2)[1, 1])


def test_masks_that_are_empty_agree_where_both_are() -> None:
    nothing, some = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    some[1:3, 1:3] = True
    assert (overlap(nothing, nothing), boundary_score(nothing, nothing)) == (1.0, 1.0)
    assert (overlap(some, nothing), boundary_score(some, nothing)) == (0.0, 0.0)


def test_films_without_masks_are_counted(said: list[str]) -> None:
    class Bare(Moving):
        def with_pixel_labels(self, split: str, kind: PixelLabel) -> list[int]:
            return [0, 1, 2, 3, 4, 5, 6]

    figures = VideoPropagation.Config(radius=0).build().run(seeing(), Bare(Bare.Config()), START)
    assert figures["j"].n == 1  # type: ignore[attr-defined]
    assert said == [
        "video_propagation: 1 films of the val split have fewer than three frames with a mask, or none first"
    ]
