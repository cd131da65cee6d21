"""DINO's head by hand: the bottleneck is a unit vector before it is scored, so its length never counts."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from multissl.layers.heads import PrototypeHead


def build_head(gain: Literal["trainable", "fixed", "none"], prototypes: Tensor) -> PrototypeHead:
    """A head whose MLP is the identity."""
    head = PrototypeHead.Config(prototypes=len(prototypes), bottleneck=2, layers=1, gain=gain).build(2)
    assert isinstance(head.mlp, nn.Linear)
    head.mlp.weight.data.copy_(torch.eye(2))
    head.mlp.bias.data.zero_()
    head.last_layer.get_parameter("weight" if gain == "none" else "weight_v").data.copy_(prototypes)
    return head


@pytest.mark.parametrize(
    ("gain", "logits"),
    [("trainable", [0.6, 0.8, -0.28]), ("fixed", [0.6, 0.8, -0.28]), ("none", [0.6, 1.6, -1.4])],
)
def test_logits_are_products_of_the_unit_bottleneck_and_the_prototypes(
    gain: Literal["trainable", "fixed", "none"], logits: list[float]
) -> None:
    head = build_head(gain, torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, -4.0]]))
    x = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.03, 0.04]])  # one direction, (0.6, 0.8), three lengths
    torch.testing.assert_close(head(x), torch.tensor([logits] * 3))


def test_the_gradient_cannot_make_a_bottleneck_longer() -> None:
    head = build_head("fixed", torch.randn(5, 2))
    x = torch.randn(4, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(head(x).cos().sum(), x)
    assert gradient.abs().max() > 1e-2
    torch.testing.assert_close((gradient * x).sum(1), torch.zeros(4), rtol=0, atol=1e-5)
