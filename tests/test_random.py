from __future__ import annotations

import pytest
import torch

from multissl.random import RowRandom


def test_a_rank_draws_its_rows_of_the_global_draw() -> None:
    whole = RowRandom((3, 14), 0, 8, 8)
    halves = [RowRandom((3, 14), first, 4, 8) for first in (0, 4)]
    for draw in (lambda r: r.rand(3), lambda r: r.randn(2, 2), lambda r: r.integers(5), lambda r: r.hit(0.3)):
        torch.testing.assert_close(torch.cat([draw(r) for r in halves]), draw(whole), rtol=0, atol=0)


def test_keys_and_forks_are_independent_and_repeatable() -> None:
    a = RowRandom((1, 2), 0, 4, 4)
    assert torch.equal(a.rand(), RowRandom((1, 2), 0, 4, 4).rand())
    assert not torch.equal(RowRandom((1, 2), 0, 4, 4).rand(), RowRandom((1, 3), 0, 4, 4).rand())
    assert not torch.equal(a.fork(0).rand(), a.fork(1).rand())


def test_groups_are_numbered_by_the_global_row() -> None:
    whole = [g.random() for g in RowRandom((1, 2), 0, 8, 8).group(2)]
    second = [g.random() for g in RowRandom((1, 2), 4, 4, 8).group(2)]
    assert whole[2:] == second
    with pytest.raises(ValueError, match="not whole groups of 3"):
        RowRandom((1, 2), 0, 4, 8).group(3)
