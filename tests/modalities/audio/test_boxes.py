"""Boxes that are cut from spectrograms: where they begin and how long they are, by their draws."""

from __future__ import annotations

import pytest
import torch

from multissl.modalities.audio import spectrogram as ops


def test_boxes_of_byol_a_go_over_the_ends_of_time_by_a_quarter_and_never_of_frequency() -> None:
    draws = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.25, 0.5, 0.5]])
    boxes = ops.stretch_box(draws, (0.6, 1.5))
    assert boxes[0].tolist() == pytest.approx([-0.25, 0.6, 0.0, 0.6])
    assert boxes[1].tolist() == pytest.approx([-0.25, 1.5, 0.0, 1.0])
    assert boxes[2].tolist() == pytest.approx([0.5 * 0.45 - 0.25, 1.05, 0.5 * (1 - 0.825), 0.825])


def test_a_warped_box_lies_around_the_whole_sound() -> None:
    draws = torch.tensor(
        [[0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 0.0], [0.75, 1.0, 0.0, 1.0]]
    )
    boxes = ops.warp_box(draws, 0.2)
    assert boxes[0].tolist() == pytest.approx([0.0, 1.0, 0.0, 1.0])
    assert boxes[1].tolist() == pytest.approx(
        [-0.1, 1.2, 0.1, 0.8]
    )  # longer in time, shorter in frequency, centered
    assert boxes[2].tolist() == pytest.approx([0.1, 1.0, -0.1, 1.0])  # moved alone
    assert boxes[3].tolist() == pytest.approx([-0.15, 1.1, 0.0, 1.2])


@pytest.mark.parametrize("edges", ["zeros", "border"])
def test_a_box_is_resized_to_the_whole(edges: str) -> None:
    x = torch.arange(8.0)[None, :, None] + 100 * torch.arange(4.0)[None, None]  # [1, T, F]
    same = ops.stretch(x, torch.tensor([[0.0, 1.0, 0.0, 1.0]]), edges)  # type: ignore[arg-type]
    torch.testing.assert_close(same, x)
    half = ops.stretch(x, torch.tensor([[0.25, 0.5, 0.0, 1.0]]), edges)  # type: ignore[arg-type]
    torch.testing.assert_close(half[0, :, 0], 1.75 + 0.5 * torch.arange(8.0))
    bins = ops.stretch(x, torch.tensor([[0.0, 1.0, 0.25, 0.5]]), edges)  # type: ignore[arg-type]
    torch.testing.assert_close(bins[0, 0], 75 + 50 * torch.arange(4.0))
    early = ops.stretch(x, torch.tensor([[-1.0, 1.0, 0.0, 1.0]]), edges)[0, :-1, 3]  # type: ignore[arg-type]
    assert (early == (0.0 if edges == "zeros" else 300.0)).all()
