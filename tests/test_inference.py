"""From data to features: which samples are drawn, in which order, and what stands for none."""

from __future__ import annotations

from dataclasses import replace

import torch

from multissl.contract.data import Batch, Raw, Views
from multissl.contract.plans import Plans
from multissl.inference import (
    clean_streams,
    clean_views,
    drawn,
    featurize_places,
    featurize_split,
    labeled_split,
)
from multissl.random import RowRandom
from tests.evaluators.pairs import Facts
from tests.helpers.stubs import Points


class Gaps(Points):
    """Every third sample lacks the stream."""

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        return Batch(replace(v, present=raw["id"] % 3 > 0) for v in super().views(raw, plans, rng))


def first_column(views: Views) -> torch.Tensor:
    return views.x[:, :1]


def test_samples_are_drawn_in_order_and_always_the_same() -> None:
    assert drawn(10, 0) == list(range(10))
    assert drawn(10, 20) == list(range(10))
    some = drawn(1000, 50)
    assert some == sorted(some) == drawn(1000, 50)
    assert len(set(some)) == 50
    assert max(some) > 900


def test_features_labels_and_positions_are_those_of_the_samples_in_any_batches() -> None:
    modality = Points.Config().build()
    data = modality.dataset("train")
    places = [5, 9, 40, 41, 77]
    for size in (2, 256):
        x, y, kept = featurize_places(first_column, modality, "train", places, batch_size=size)
        assert kept == places
        assert y.tolist() == [data[i].label for i in places]
        torch.testing.assert_close(x[:, 0], torch.stack([data[i].data[0] for i in places]))


def test_unreadable_samples_and_those_that_lack_the_stream_are_left_out() -> None:
    broken = Points.Config(broken=(9, 40)).build()
    _, y, kept = featurize_places(first_column, broken, "train", [5, 9, 40, 41, 77], batch_size=2)
    assert kept == [5, 41, 77]
    assert len(y) == 3
    gaps = Gaps(Points.Config())
    x, y, kept = featurize_places(first_column, gaps, "train", list(range(12)), batch_size=5)
    assert kept == [i for i in range(12) if i % 3]
    data = gaps.dataset("train")
    assert y.tolist() == [data[i].label for i in kept]
    torch.testing.assert_close(x[:, 0], torch.stack([data[i].data[0] for i in kept]))


def test_a_split_without_its_unlabeled_samples() -> None:
    modality = Points.Config().build()
    x, y = featurize_split(first_column, modality, "train", 20)
    assert len(x) == len(y) == 20
    known = labeled_split(first_column, modality, "train", 20)
    assert torch.equal(known[0], x)


def test_clean_views_are_made_of_the_streams_that_are_asked_for() -> None:
    modality = Facts.Config(without=(3,)).build()
    data = modality.dataset("val")
    samples = [data[i] for i in (4, 3, 9)]
    both = clean_streams(modality, samples, ["text", "numbers"])
    assert both.keys() == {"text", "numbers"}
    assert both["text"].present is not None
    assert both["text"].present.tolist() == [True, False, True]
    assert both["numbers"].x.argmax(1).tolist() == [0, 3, 1]  # the class comes before the number
    assert both["numbers"].x[:, 4:].argmax(1).tolist() == [4, 3, 9]
    for stream in ("text", "numbers"):
        assert clean_streams(modality, samples, [stream]).keys() == {stream}
        assert torch.equal(clean_views(modality, samples, stream).x, both[stream].x)
