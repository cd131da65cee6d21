"""VIME against a plain reading of its losses, and its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders, build_encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.mlp import MLPEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.losses.vime import auc
from multissl.objectives.vime import VIME

SPEC = StreamSpec(
    kind="columns", shape=(3,), num_tokens=3, cardinalities=(0, 4, 0), target_dim=1, target_kind="cells"
)
START = Progress(step=0, total=1)


def rows() -> tuple[Tensor, Tensor]:
    """Originals and corrupted rows [12, 3]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator)
    x[:, 1] = torch.randint(4, (12,), generator=generator).float()
    return x, torch.where(torch.rand(12, 3, generator=generator) < 0.4, x.roll(1, 0), x)


def parts(encoder: Any = None, **options: Any) -> tuple[Encoders, VIME]:
    torch.manual_seed(0)
    encoders = build_encoders({"t": encoder or MLPEncoder.Config(dims=(8,))}, {"t": SPEC})
    return encoders, VIME(VIME.Config(**options), encoders, {"t": SPEC})


def test_the_losses_are_those_of_the_paper_by_column() -> None:
    encoders, objective = parts()
    x, corrupted = rows()
    batch = Batch([Views(x=corrupted, target=x, stream="t", role="global")])
    found = objective(encoders, batch, START)
    (features,) = encoders.encode(batch)
    assert objective.mask is not None
    mask = F.binary_cross_entropy_with_logits(objective.mask(features.pooled), (x != corrupted).float())
    out = objective.cells.linear(features.pooled)  # two numbers, then the four levels
    cells = (
        F.mse_loss(out[:, 0], x[:, 0])
        + F.mse_loss(out[:, 1], x[:, 2])
        + F.cross_entropy(out[:, 2:], x[:, 1].long())
    )
    torch.testing.assert_close(found.terms["mask"], mask)
    torch.testing.assert_close(found.terms["cells"], cells / 3)
    torch.testing.assert_close(found.total, mask + 2 * cells / 3)
    torch.testing.assert_close(found.stats["changed"], (x != corrupted).float().mean())


def test_left_out_cells_are_rebuilt_and_no_mask_is_asked_of_them() -> None:
    encoders, objective = parts(corrupt=0.0)
    assert objective.plans()["t"].mask_ratio is None
    x, _ = rows()
    valid = torch.tensor([True, True, False]).expand(12, 3)
    batch = Batch([Views(x=x * valid, target=x, valid=valid, stream="t", role="global")])
    found = objective(encoders, batch, START)
    assert found.stats["changed"] == 0
    assert found.terms["cells"] > 0
    assert objective.mask is not None
    found.terms["mask"] = found.terms["mask"].clone()
    grad = torch.autograd.grad(found.total, objective.mask.weight)[0]
    assert not grad[2].any()
    assert grad[0].any()


def test_tokens_are_read_column_by_column() -> None:
    encoders, objective = parts(TransformerEncoder.Config(dim=8, depth=1, heads=2), reads="tokens", hidden=6)
    x, corrupted = rows()
    found = objective(encoders, Batch([Views(x=corrupted, target=x, stream="t", role="global")]), START)
    found.total.backward()
    assert objective.mask is not None
    assert objective.mask.weight.shape == (1, 6)
    encoders, objective = parts(reads="tokens")
    with pytest.raises(
        ValueError, match=r"objective\.reads=tokens wants one token per column \(3\), the encoder gives 1"
    ):
        objective(encoders, Batch([Views(x=corrupted, target=x, stream="t", role="global")]), START)


def test_a_constant_output_costs_the_constant_loss() -> None:
    encoders, objective = parts()
    x, corrupted = rows()
    x = x.repeat(400, 1)
    corrupted = corrupted.repeat(400, 1)
    with torch.no_grad():
        for p in objective.parameters():
            p.zero_()
        share = (x != corrupted).float().mean(0)
        assert objective.mask is not None
        objective.mask.bias.copy_(torch.logit(share))
        levels = torch.bincount(x[:, 1].long(), minlength=4) / len(x)
        objective.cells.linear.bias.copy_(torch.cat([x[:, [0, 2]].mean(0), levels.log()]))
        found = objective(encoders, Batch([Views(x=corrupted, target=x, stream="t", role="global")]), START)
    torch.testing.assert_close(found.total, found.stats["constant"], rtol=1e-4, atol=1e-5)


def test_the_area_counts_pairs() -> None:
    logits, truth = torch.tensor([[0.1, 0.9, 0.4, 0.3]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    seen = torch.ones(1, 4)
    assert auc(logits, truth, seen) == pytest.approx(0.75)
    assert auc(logits, truth, torch.tensor([[1.0, 1.0, 0.0, 1.0]])) == pytest.approx(1.0)
    assert auc(logits, torch.zeros(1, 4), seen) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrupt": 1.0}, r"objective\.corrupt=1\.0: want a share of 0 to less than 1"),
        ({"num_views": 0}, r"objective\.num_views=0: want 1 or more"),
        ({"cells_weight": 0.0}, r"objective\.cells_weight=0\.0: want more than 0"),
    ],
)
def test_limits_are_named(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VIME.Config(**options)


def test_other_streams_are_refused() -> None:
    spec = StreamSpec(kind="grid", shape=(3, 8, 8), num_tokens=4, patch=(4, 4), target_dim=48)
    encoders = build_encoders({"t": TransformerEncoder.Config(dim=8, depth=1, heads=2)}, {"t": spec})
    with pytest.raises(ValueError, match="this stream is of kind grid: take mae instead"):
        VIME(VIME.Config(), encoders, {"t": spec})
