import pytest
import torch

from multissl.layers.positions import Position, resample, sincos


def test_a_table_keeps_its_own_grid_unchanged() -> None:
    table = torch.randn(1, 1 + 12, 4)
    assert resample(table, (3, 4), (3, 4)) is table


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize(("old", "new"), [((8,), (5,)), ((6, 4), (3, 9)), ((2, 4, 4), (3, 2, 6))])
def test_resampling_works_in_one_to_three_axes(
    old: tuple[int, ...], new: tuple[int, ...], offset: float
) -> None:
    table = torch.zeros(1, 1 + torch.Size(old).numel(), 4)
    table[:, 1:] = 2.0
    table[:, 0] = -1.0
    out = resample(table, old, new, offset)
    assert out.shape == (1, 1 + torch.Size(new).numel(), 4)
    torch.testing.assert_close(out[:, 1:], torch.full_like(out[:, 1:], 2.0))
    assert (out[:, 0] == -1).all()


def test_both_conventions_differ_as_published() -> None:
    smooth = sincos((16, 16), 8)
    with_offset = resample(smooth, (16, 16), (7, 7), 0.1)
    plain = resample(smooth, (16, 16), (7, 7), 0.0)
    antialiased = resample(smooth, (16, 16), (7, 7), 0.0, antialias=True)
    assert (with_offset - plain).abs().max() > 1e-3
    assert (plain - antialiased).abs().max() > 1e-3


def test_gradients_reach_a_resampled_table() -> None:
    table = torch.randn(1, 10, 4, requires_grad=True)
    resample(table, (3, 3), (2, 2), 0.1).sum().backward()
    assert table.grad is not None
    assert (table.grad.abs().sum(-1) > 0).sum() > 4


def test_a_half_precision_table_stays_so() -> None:
    table = torch.randn(1, 10, 4).bfloat16()
    assert resample(table, (3, 3), (2, 2)).dtype == torch.bfloat16


def test_refuses_what_it_cannot_resample() -> None:
    with pytest.raises(ValueError, match="antialias"):
        resample(torch.zeros(1, 5, 2), (4,), (3,), antialias=True)
    with pytest.raises(ValueError, match="cannot be resampled"):
        resample(torch.zeros(1, 5, 2), (4,), (2, 2))
    with pytest.raises(ValueError, match=r"position\.offset"):
        Position(offset=-1)


def test_sincos_tells_every_place_apart() -> None:
    for grid in [(7,), (3, 4), (2, 3, 4)]:
        table = sincos(grid, 24)[0]
        assert not table[0].any()
        distance = torch.cdist(table[1:], table[1:]) + torch.eye(len(table) - 1)
        assert distance.min() > 0.01


def test_sincos_refuses_a_width_it_cannot_split() -> None:
    with pytest.raises(ValueError, match="dim=6"):
        sincos((2, 2), 6)


def test_uniform_positions_give_every_axis_a_third() -> None:
    uniform, usual = (sincos((2, 3, 4), 24, uniform=u)[0, 1:].unflatten(0, (2, 3, 4)) for u in (True, False))
    for table, widths in ((uniform, (8, 8, 8)), (usual, (12, 6, 6))):
        changed = [
            int(
                (table.movedim(axis, 0)[0] - table.movedim(axis, 0)[1])
                .abs()
                .flatten(0, -2)
                .amax(0)
                .gt(0)
                .sum()
            )
            for axis in range(3)
        ]
        assert changed == [*widths]
