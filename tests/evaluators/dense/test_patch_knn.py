"""Segmentation by nearest patches, beside a slow loop over pixels."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from multissl.contract.abilities import IGNORED
from multissl.evaluators.classified import validation_mask
from multissl.evaluators.dense.patch_knn import PatchKNN, from_patches, to_patches, voted
from tests.evaluators.clusters import START
from tests.evaluators.dense.scenes import PATCH, SIDE, Scenes, blind, patches, seeing
from tests.evaluators.pairs import Facts

Pixels = dict[tuple[int, int], int]


def slow_miou(
    bank: list[tuple[torch.Tensor, Pixels]], scenes: Scenes, split: str, keep: list[int], k: int, metric: str
) -> float:
    """MIoU in percent by loops: every pixel of every picture by itself."""
    both, either = Counter[int](), Counter[int]()
    data = scenes.dataset(split)
    mean = torch.stack([x for x, _ in bank]).mean(0)
    std = torch.stack([x for x, _ in bank]).std(0, correction=0)
    for place in keep:
        labels = scenes.pixel_labels(data[place], "classes")
        tokens = patches(data[place].data[2][None, None])[0]
        for t, token in enumerate(tokens):
            query = (token - mean) / std
            ranked = []
            for n, (x, pixels) in enumerate(bank):
                other = (x - mean) / std
                near = (
                    float(query @ other / query.norm() / other.norm())
                    if metric == "cosine"
                    else -float((query - other).square().sum())
                )
                ranked.append((near, -n, pixels))
            voters = [pixels for _, _, pixels in sorted(ranked, key=lambda e: e[:2], reverse=True)[:k]]
            for r in range(PATCH):
                for c in range(PATCH):
                    truth = int(labels[t // 4 * PATCH + r, t % 4 * PATCH + c])
                    votes = Counter(v[r, c] for v in voters if v[r, c] != IGNORED)
                    if not votes:
                        votes = Counter(x for v in voters for x in v.values() if x != IGNORED)
                    guess = min(votes, key=lambda each: (-votes[each], each))
                    if truth == IGNORED:
                        continue
                    both[truth] += truth == guess
                    either[truth] += 1
                    either[guess] += truth != guess
    return 100 * sum(both[c] / either[c] for c in either) / len(either)


def slow_bank(scenes: Scenes, keep: list[int]) -> list[tuple[torch.Tensor, Pixels]]:
    data, bank = scenes.dataset("train"), []
    for place in keep:
        labels = scenes.pixel_labels(data[place], "classes")
        for t, token in enumerate(patches(data[place].data[2][None, None])[0]):
            top, left = t // 4 * PATCH, t % 4 * PATCH
            bank.append(
                (token, {(r, c): int(labels[top + r, left + c]) for r in range(PATCH) for c in range(PATCH)})
            )
    return bank


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_figure_is_that_of_a_loop_over_pixels(metric: str) -> None:
    scenes = Scenes.Config(noise=0.8, train=4, val=2).build()
    evaluator = PatchKNN.Config(k=(3,), metrics=(metric,)).build()  # type: ignore[arg-type]
    figures = evaluator.run(seeing(), scenes, START)
    assert isinstance(scenes, Scenes)
    slow = slow_miou(slow_bank(scenes, [0, 1, 2, 3]), scenes, "val", [0, 1], 3, metric)
    assert figures["miou"] == pytest.approx(slow)
    assert 20 < slow < 99


def test_neighbors_and_metric_are_those_that_are_best_on_a_tenth_of_training() -> None:
    scenes = Scenes.Config(noise=0.8, train=10, val=2).build()
    assert isinstance(scenes, Scenes)
    figures = PatchKNN.Config(k=(1, 9)).build().run(seeing(), scenes, START)
    tenth = validation_mask(10)
    choosing, rest = tenth.nonzero().flatten().tolist(), (~tenth).nonzero().flatten().tolist()
    bank = slow_bank(scenes, rest)
    scores = {
        (k, metric): slow_miou(bank, scenes, "train", choosing, k, metric)
        for metric in ("cosine", "l2")
        for k in (1, 9)
    }
    best = max(scores, key=lambda each: scores[each])
    assert (figures["k"], figures["cosine"]) == (best[0], best[1] == "cosine")
    assert max(scores.values()) > min(scores.values())


def test_patches_are_cut_and_put_together_again() -> None:
    labels = torch.arange(2 * SIDE * SIDE).reshape(2, SIDE, SIDE)
    cut = to_patches(labels, (4, 4))
    assert cut[1].tolist() == [2, 3, 10, 11]
    assert torch.equal(from_patches(cut, (4, 4), (SIDE, SIDE)), labels)


def test_pixels_of_no_class_do_not_vote_unless_there_are_no_others() -> None:
    labels = torch.tensor([[2, IGNORED], [1, IGNORED], [1, IGNORED]], dtype=torch.uint8)
    assert voted(labels, torch.tensor([[0, 1, 2]]), 3).tolist() == [[1, 1]]
    mixed = torch.tensor([[IGNORED], [IGNORED], [2]], dtype=torch.uint8)
    assert voted(mixed, torch.tensor([[0, 1, 2]]), 3).tolist() == [[2]]


def test_features_that_say_nothing_find_nothing(said: list[str]) -> None:
    scenes = Scenes.Config(noise=0.1).build()
    found = PatchKNN.Config().build().run(seeing(), scenes, START)["miou"]
    nothing = PatchKNN.Config().build().run(blind(), scenes, START)["miou"]
    assert found > 90
    assert nothing < 40
    assert said == []


def test_pictures_that_cannot_be_read_are_counted_and_classes_beyond_training_name_the_picture(
    said: list[str],
) -> None:
    figures = PatchKNN.Config(k=(3,)).build().run(seeing(), Scenes.Config(broken=(1, 2)).build(), START)
    assert figures["miou"].n == 4  # type: ignore[attr-defined]
    assert said == [
        "patch_knn: 2 pictures of the val split cannot be read with their labels: broken on purpose"
    ]
    with pytest.raises(
        ValueError, match="the mask of sample 4 of the val split holds the class 7, beyond the 3 of"
    ):
        PatchKNN.Config().build().run(seeing(), Scenes.Config(beyond=4).build(), START)


def test_data_without_masks_gives_no_figure_and_says_so(said: list[str]) -> None:
    assert PatchKNN.Config().build().run(seeing(), Scenes.Config(labeled=False).build(), START) == {}
    assert "--modality.masks OLD=NEW says where they lie" in said[0]
    evaluator = PatchKNN.Config().build()
    assert evaluator.run(seeing(), Facts.Config().build(), START) == {}
    assert "facts has no masks" in said[1]
