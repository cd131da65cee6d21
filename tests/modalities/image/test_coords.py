"""Where tokens lie in the picture: an image whose colors are its coordinates tells the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multissl.contract.data import Batch, Sample
from multissl.contract.plans import ViewPlan
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.crops import share_of, token_centers
from multissl.random import RowRandom

PLAN = ViewPlan(num_global=2, num_local=3, coords=True)


def drawn(flip: float, plan: ViewPlan = PLAN) -> Batch:
    """Views of two pictures, one wide and one tall, whose red is the row and whose green is the column."""
    modality = Image.Config(
        size=64, local_size=32, patch=16, flip=flip, jitter=0, grayscale=0, blur="none", solarize=0,
        mean=(0, 0, 0), std=(1, 1, 1),
    ).build()  # fmt: skip
    samples = []
    for i, (height, width) in enumerate(((200, 300), (260, 180))):
        rows = np.broadcast_to((np.arange(height) + 0.5)[:, None] / height, (height, width))
        columns = np.broadcast_to((np.arange(width) + 0.5)[None] / width, (height, width))
        picture = np.stack([rows, columns, rows], -1) * 255
        samples.append(Sample(picture.round().astype(np.uint8), i))
    plans = {"image": plan}
    rng = RowRandom((0,), 0, 2, 2)
    return modality.views(modality.collate(samples, plans, rng.fork("worker")), plans, rng.fork("device"))


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_coordinates_are_where_the_pixels_came_from(flip: float) -> None:
    batch = drawn(flip)
    assert [v.role for v in batch] == ["global", "local"]
    for views in batch:
        assert views.coords is not None
        seen = torch.nn.functional.avg_pool2d(views.x[:, :2], 16).flatten(2).mT  # [R, N, 2]
        assert views.coords.shape == seen.shape
        torch.testing.assert_close(views.coords, seen, rtol=0, atol=0.02)  # bytes and edges
        rising = views.coords.unflatten(1, (views.x.shape[-1] // 16, -1))[:, 0, :, 1].diff() > 0
        if flip != 0.5:
            assert rising.all() == (flip == 0)


def test_nobody_pays_for_coordinates_that_are_not_asked_for() -> None:
    assert all(v.coords is None for v in drawn(0.5, ViewPlan(num_global=2)))


def test_centers_by_hand() -> None:
    box = share_of((10, 40, 20, 20), 40, 80)[None]
    expected = torch.tensor([[0.375, 0.5625], [0.375, 0.6875], [0.625, 0.5625], [0.625, 0.6875]])
    torch.testing.assert_close(token_centers(box, (2, 2), torch.tensor([False]))[0], expected)
    mirrored = token_centers(box, (2, 2), torch.tensor([True]))[0]
    torch.testing.assert_close(mirrored, expected[[1, 0, 3, 2]])
