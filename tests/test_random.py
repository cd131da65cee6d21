from __future__ import annotations

import pytest
import torch

from multissl.random import RowRandom, number_of


def test_a_rank_draws_its_rows_of_the_global_draw() -> None:
    whole = RowRandom((3, 14), 0, 8, 8)
    halves = [RowRandom((3, 14), first, 4, 8) for first in (0, 4)]
    for draw in (lambda r: r.rand(3), lambda r: r.randn(2, 2), lambda r: r.integers(5), lambda r: r.hit(0.3)):
        torch.testing.assert_close(torch.cat([draw(r) for r in halves]), draw(whole), rtol=0, atol=0)


def test_keys_and_forks_are_independent_and_repeatable() -> None:
    a = RowRandom((1, 2), 0, 4, 4)
    assert torch.equal(a.rand(), RowRandom((1, 2), 0, 4, 4).rand())
    assert not torch.equal(RowRandom((1, 2), 0, 4, 4).rand(), RowRandom((1, 3), 0, 4, 4).rand())
    assert not torch.equal(a.fork("a").rand(), a.fork("b").rand())


def test_a_stream_depends_on_its_tag_and_on_no_earlier_draw() -> None:
    fresh, used = RowRandom((1, 2), 0, 4, 4), RowRandom((1, 2), 0, 4, 4)
    used.rand(7)
    used.fork("roles").rand()
    assert torch.equal(fresh.fork("masks").rand(3), used.fork("masks").rand(3))
    assert not torch.equal(fresh.fork("a").fork("b").rand(), fresh.fork("b").fork("a").rand())
    assert not torch.equal(fresh.fork("").rand(), fresh.rand())
    assert fresh.fork("masks").to("cpu").fork("a").key == fresh.fork("masks").fork("a").key


def test_a_tag_is_the_same_number_in_every_process() -> None:
    assert number_of("masks") == 17854064204615774843
    assert len({number_of(tag) for tag in ("clean", "global", "local", "masks", "Masks", "")}) == 6


def test_what_a_step_has_in_common_is_the_same_on_every_rank() -> None:
    draws = [RowRandom((1, 2), first, 4, 8).fork("sizes").common().random() for first in (0, 4)]
    assert draws[0] == draws[1] != RowRandom((1, 3), 0, 4, 8).fork("sizes").common().random()


def test_groups_are_numbered_by_the_global_row() -> None:
    whole = [g.random() for g in RowRandom((1, 2), 0, 8, 8).group(2)]
    second = [g.random() for g in RowRandom((1, 2), 4, 4, 8).group(2)]
    assert whole[2:] == second
    with pytest.raises(ValueError, match="not whole groups of 3"):
        RowRandom((1, 2), 0, 4, 8).group(3)
