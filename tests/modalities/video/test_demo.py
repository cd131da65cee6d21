"""The demo videos: frozen bytes, classes that are each other's reverse, and motion that all shots share."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from multissl.modalities.video import demo

HASHES = {
    "train": "b1e78fd3928d2bd7f54f4e915bc12ad62276158384cd77bdb1e06c79a0c6a6c6",
    "val": "bed609c8ae595edfa547ef1b0bc4dee99388db81a03409c9fe9bfd4e21d5a0fa",
    "test": "6749770fa2ff6d5a21b0e4890538cddc3f8ebba5da4e412c4c4f5c19f8e58984",
}


@pytest.mark.parametrize("split", demo.SPLITS)
def test_the_bytes_are_frozen(split: str) -> None:
    scenes, found = demo.scenes(split), hashlib.sha256()
    found.update(scenes.labels.astype("<i8").tobytes())
    for i in range(0, len(scenes), len(scenes) // 20):
        found.update(scenes[i].read(range(24)).tobytes())
    assert found.hexdigest() == HASHES[split]


def test_a_frame_is_the_same_whatever_is_read_with_it() -> None:
    scene = demo.scenes("val")[3]
    assert np.array_equal(scene.read([4, 9, 20]), scene.read(range(24))[[4, 9, 20]])


def test_classes_are_equally_frequent_and_each_is_another_one_played_backwards() -> None:
    for split in demo.SPLITS:
        assert len(set(np.bincount(demo.scenes(split).labels).tolist())) == 1
    grid = np.arange(-1000, 1001, 250)
    x, y = np.broadcast_to(grid[None, None, :], (1, 9, 9)), np.broadcast_to(grid[None, :, None], (1, 9, 9))
    t = np.array([-3.5, -0.5, 0.5, 3.5])[:, None, None]
    moved = [demo._moved(kind, 500, x, y, t) for kind in range(8)]
    back = [demo._moved(kind, 500, x, y, -t) for kind in range(8)]
    for kind in range(8):
        for one, other in zip(moved[kind], back[kind ^ 1], strict=True):
            assert np.abs(one - other).max() <= 4  # of 64 units a pixel: rounding
        others = [k for k in range(8) if k != kind]
        assert all(
            max(np.abs(a - b).max() for a, b in zip(moved[kind], moved[k], strict=True)) > 64 for k in others
        )


def test_shots_differ_in_everything_but_motion() -> None:
    first, second, third = demo.scenes("train")[0].read([3, 11, 19]).astype(int)
    assert min(np.abs(first - second).mean(), np.abs(second - third).mean()) > 20
