"""The Gram loss at points worked out by hand; `tests/golden` compares it with DINOv3's code."""

from __future__ import annotations

import math

import pytest
import torch

from multissl.losses.gram import Negatives, gram_loss, shrink

ACROSS = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])  # cosine 0
ALIKE = torch.tensor([[[2.0, 0.0], [1.0, 1.0]]])  # cosine sqrt(1/2)
AGAINST = torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])  # cosine -1


def test_it_is_the_mean_square_of_differences_between_cosines() -> None:
    assert gram_loss(ACROSS, ALIKE).item() == pytest.approx(2 * 0.5 / 4)
    assert gram_loss(ALIKE, 7 * ALIKE).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("negatives", "loss"), [("kept", 1.0), ("clipped", 0.0), ("clipped_teacher", 0.0)])
def test_negative_cosines_of_the_teacher_can_count_as_0(negatives: Negatives, loss: float) -> None:
    assert gram_loss(ACROSS, AGAINST, negatives).item() == pytest.approx(2 * loss / 4)


def test_negative_cosines_of_the_student_count_as_0_on_both_sides_alone() -> None:
    assert gram_loss(AGAINST, ACROSS, "clipped").item() == 0
    assert gram_loss(AGAINST, ACROSS, "clipped_teacher").item() == pytest.approx(2 / 4)


def test_tokens_that_are_left_out_move_nothing() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    keep = torch.tensor([[True] * 3 + [False] * 2, [False] * 5])
    assert torch.allclose(gram_loss(student, teacher, keep=keep), gram_loss(student[:1, :3], teacher[:1, :3]))


def test_a_finer_grid_of_a_plane_is_the_plane_on_the_coarser_one() -> None:
    def plane(side: int) -> torch.Tensor:
        places = (torch.arange(side) + 0.5) / side
        return torch.stack([places[:, None].expand(side, side), places.expand(side, side)], -1).flatten(0, 1)[
            None
        ]

    found = shrink(plane(8), (8, 8), (4, 4)).view(4, 4, 2)
    assert torch.allclose(found[1:3, 1:3], plane(4).view(4, 4, 2)[1:3, 1:3], atol=1e-5)
    assert math.prod(found.shape[:2]) == 16
