"""One update by hand: the rate of every layer, and LARS's trust ratio (arXiv 1708.03888) of the decayed gradient."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoder, Encoders
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.lars import LARS, TorchLARS

SPEC = StreamSpec(kind="grid", shape=(3, 8, 8), patch=(4, 4), num_tokens=4)
START = Progress(step=0, total=10)


class Headed(Objective):
    """What the optimizer sees of an objective: parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(8, 3)

    def plans(self) -> Plans:
        return {}

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        raise AssertionError("an optimizer asks for no loss: gradients are set by hand here")


class Matrix(Encoder):
    """One weight, whose gradient is set by hand."""

    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        raise AssertionError("an optimizer encodes nothing: gradients are set by hand here")


def read_rates(cfg: AdamW.Config) -> dict[str, float]:
    """The learning rate of every parameter in the first step; the layers' encoder has two blocks."""
    net = TransformerEncoder.Config(dim=8, depth=2, heads=2, registers=1, layerscale=0.1).build(SPEC)
    learner = Learner(Encoders({"image": net}), Headed())
    optimizer = cfg.build(learner, [], 1)
    optimizer.step(START)
    by_id = {id(p): group["lr"] for group in optimizer.torch.param_groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in learner.named_parameters()}


def test_a_layer_learns_slower_by_one_factor_than_the_next() -> None:
    rates = read_rates(AdamW.Config(lr=1.0, final_lr=1.0, layer_decay=0.5))
    layers = {
        "encoders.image.tokenizer.": 0.5**3, "encoders.image.trunk.blocks.0.": 0.5**2,
        "encoders.image.trunk.blocks.1.": 0.5, "encoders.image.trunk.norm.": 1.0, "objective.": 1.0,
    }  # fmt: skip
    for name, rate in rates.items():
        (expected,) = [factor for start, factor in layers.items() if name.startswith(start)]
        assert rate == pytest.approx(expected), name
    assert {start for start in layers if any(name.startswith(start) for name in rates)} == layers.keys()


def test_the_patch_projection_alone_has_the_factor_of_patches() -> None:
    slow = {
        n for n, rate in read_rates(AdamW.Config(lr=1.0, final_lr=1.0, patch_lr=0.2)).items() if rate != 1.0
    }
    assert slow == {f"encoders.image.tokenizer.patch_embed.proj.{kind}" for kind in ("weight", "bias")}
    both = read_rates(AdamW.Config(lr=1.0, final_lr=1.0, patch_lr=0.2, layer_decay=0.5))
    assert both["encoders.image.tokenizer.patch_embed.proj.weight"] == pytest.approx(0.2 * 0.5**3)
    assert both["encoders.image.tokenizer.cls_token"] == pytest.approx(0.5**3)


def test_lars_of_torch_s_kind_decays_nothing_unless_it_is_told_to() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    weight.grad = torch.tensor([[0.0, 0.5]])
    TorchLARS([weight], lr=2.0).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 4.0 - 2.0 * 0.001 * 5.0]]))


def test_lars_divides_by_the_norm_of_the_decayed_gradient() -> None:
    encoder = Matrix()
    weight = encoder.linear.weight
    weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))  # norm 5
    weight.grad = torch.tensor([[0.0, 0.6], [0.8, 0.0]])
    cfg = LARS.Config(lr=2.0, final_lr=2.0, weight_decay=0.5, momentum=0.9, trust=0.01)
    optimizer = cfg.build(Learner(Encoders({"rows": encoder}), Headed()), [], 1)
    decayed = torch.tensor([[1.5, 0.6], [0.8, 2.0]])  # g + 0.5 p, norm sqrt(2.25 + 0.36 + 0.64 + 4)
    update = 0.01 * 5 / 7.25**0.5 * decayed
    expected = weight.detach() - 2.0 * update
    optimizer.step(START)
    torch.testing.assert_close(weight.detach(), expected)
    weight.grad = torch.zeros(2, 2)  # decay and momentum are left
    size = expected.norm()
    second = 0.9 * update + 0.01 * size / (0.5 * size) * 0.5 * expected
    optimizer.step(Progress(step=1, total=10))
    torch.testing.assert_close(weight.detach(), expected - 2.0 * second)
