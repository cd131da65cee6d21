"""What a checkpoint keeps is what a run goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from multissl.engine import checkpoint
from multissl.engine.checkpoint import Save


class Late(nn.Module):
    """Two layers, of which the second is used from some step on."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, late: bool) -> Tensor:
        y = self.early(x)
        return (self.late(y) if late else y).square().mean()


def made(kind: str) -> tuple[Late, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = Late()
    if kind == "adamw":
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)
    return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9 if kind == "momentum" else 0.0)


def trained(module: Late, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        module(x, late=step >= 5).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "momentum", "sgd"])
def test_a_parameter_that_never_had_a_gradient_is_resumed_as_it_was(kind: str, tmp_path: Path) -> None:
    whole = made(kind)
    trained(*whole, range(3))
    checkpoint.save(tmp_path, 3, *whole, Save())
    resumed = made(kind)
    assert checkpoint.load(checkpoint.find(tmp_path)[-1], *resumed) == 3
    for each in (whole, resumed):
        trained(*each, range(3, 8))  # the late layer begins at step 5, with a state of its own
    for name, tensor in whole[0].state_dict().items():
        torch.testing.assert_close(resumed[0].state_dict()[name], tensor, rtol=0, atol=0)
