"""LayerScale (arXiv 2103.17239): gamma multiplies what its branch adds, channel by channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from multissl.layers.transformer import Block, Trunk


def build_block() -> tuple[Trunk, Block]:
    torch.manual_seed(0)
    trunk = Trunk(8, 1, 2, layerscale=0.5)
    for parameter in trunk.parameters():  # away from the special values of an initialization
        parameter.data += 0.1 * torch.randn_like(parameter)
    (block,) = trunk.blocks
    assert isinstance(block, Block)
    return trunk, block


def run_branches(trunk: Trunk, x: Tensor) -> Tensor:
    """What the block adds to its input."""
    return trunk([x], inner=1)[1][0][0] - x


def test_gammas_of_zero_switch_both_branches_off() -> None:
    trunk, block = build_block()
    for scale in (block.ls1, block.ls2):
        nn.init.zeros_(scale.get_parameter("gamma"))
    assert not run_branches(trunk, torch.randn(3, 5, 8)).any()


@pytest.mark.parametrize("alone", ["ls1", "ls2"])
def test_a_branch_is_multiplied_by_its_own_gamma_in_every_channel(alone: str) -> None:
    trunk, block = build_block()
    for name, scale in (("ls1", block.ls1), ("ls2", block.ls2)):
        nn.init.constant_(scale.get_parameter("gamma"), float(name == alone))
    x, factors = torch.randn(3, 5, 8), torch.linspace(-2, 3, 8)
    branch = run_branches(trunk, x)
    assert branch.abs().min() > 0
    block.get_submodule(alone).get_parameter("gamma").data.copy_(factors)
    torch.testing.assert_close(run_branches(trunk, x), branch * factors)


def test_gamma_starts_where_the_option_says() -> None:
    trunk = Trunk(8, 2, 2, layerscale=1e-5)
    gammas = [p for name, p in trunk.named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 4
    assert all(torch.equal(g, torch.full((8,), 1e-5)) for g in gammas)
