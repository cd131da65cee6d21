from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multissl.parallel.collectives import gather, sum_ranks
from multissl.parallel.ranks import is_main, process_group, rank, world
from tests.helpers.ranks import run_ranks


def both(rank: int, x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mine = x.chunk(world())[rank].clone().requires_grad_()
    everyone = gather(mine)
    total = sum_ranks(mine.pow(2).sum(0))
    loss = (everyone.cos() * probe).sum() + total.pow(2).sum()
    return everyone.detach(), total.detach(), torch.autograd.grad(loss, mine)[0] / world()


@pytest.mark.ranks
def test_gather_and_sum_have_the_values_and_gradients_of_one_rank() -> None:
    x, probe = torch.randn(6, 3), torch.randn(6, 3)
    everyone, total, grad = both(0, x, probe)
    parts = run_ranks(2, both, x, probe)
    for part in parts:
        torch.testing.assert_close(part[0], everyone)
        torch.testing.assert_close(part[1], total)
    torch.testing.assert_close(torch.cat([p[2] for p in parts]), grad)


def test_a_group_of_one_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    with process_group():
        assert (world(), rank(), is_main()) == (1, 0, True)
