from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.config import from_dict, to_dict
from multissl.layers import heads as module
from multissl.layers.heads import MLPHead, PrototypeHead, RankBatchNorm, WeightNormLinear
from tests.helpers.ranks import run_ranks

SMALL = PrototypeHead.Config(prototypes=11, bottleneck=5, hidden=7)


def test_batch_norm_is_torchs_on_one_rank() -> None:
    ours, theirs = RankBatchNorm(4), nn.BatchNorm1d(4)
    x = torch.empty(0)
    for step in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step)) * 3 + 100
        y = x.clone()
        x.requires_grad_()
        y.requires_grad_()
        torch.testing.assert_close(ours(x), theirs(y), atol=1e-4, rtol=1e-4)
        ours(x).cos().sum().backward()
        theirs(y).cos().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_batch_norm_takes_its_statistics_over_the_rows_that_count() -> None:
    x, keep = torch.randn(6, 4) * 3 + 100, torch.tensor([True, False, True, True, False, True])
    ours, theirs = RankBatchNorm(4), RankBatchNorm(4)
    torch.testing.assert_close(ours(x, keep)[keep], theirs(x[keep]))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    before = {name: value.clone() for name, value in ours.state_dict().items() if "running" in name}
    assert ours(x, torch.zeros(6, dtype=torch.bool)).isfinite().all()
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("head", [MLPHead.Config(hidden=5, out=3), PrototypeHead.Config(norm="batch")])
def test_heads_tell_their_batch_norms_which_rows_count(head: Any) -> None:
    net = head.build(4)
    x, keep = torch.randn(6, 4), torch.tensor([True, False, True, True, False, True])
    torch.testing.assert_close(net(x, keep)[keep], net(x[keep]))
    assert not torch.allclose(net(x)[keep], net(x[keep]), atol=1e-4)


def test_batch_norm_computes_in_fp32_and_answers_in_the_inputs_precision() -> None:
    norm = RankBatchNorm(3).to(torch.bfloat16)
    norm.running_mean, norm.running_var = norm.running_mean.float(), norm.running_var.float()
    x = (torch.randn(64, 3) + 30).to(torch.bfloat16)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    expected = F.batch_norm(x.float(), None, None, training=True)
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.01)
    with pytest.raises(ValueError, match="got 1: raise batch_size"):
        norm(x[:1])


def stats_and_grads(rank: int, x: Tensor, ranks: int) -> list[Tensor]:
    norm = RankBatchNorm(4)
    mine = x.tensor_split([6])[rank] if ranks == 2 else x  # 6 rows and 2
    mine = mine.clone().requires_grad_()
    norm(mine).cos().sum().backward()
    assert mine.grad is not None
    return [mine.grad, norm.running_mean, norm.running_var]


def right_and_planted(rank: int, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    right, total = stats_and_grads(rank, x, 2), module.sum_ranks
    module.sum_ranks = lambda x: total(x.detach())
    try:
        return right, stats_and_grads(rank, x, 2)
    finally:
        module.sum_ranks = total


@pytest.mark.ranks
def test_batch_norm_of_two_ranks_is_that_of_one_and_sums_without_gradient_are_not() -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    parts = run_ranks(2, right_and_planted, x)
    expected = stats_and_grads(0, x, 1)
    torch.testing.assert_close(torch.cat([p[0][0] for p in parts]), expected[0])
    for p in parts:
        torch.testing.assert_close(p[0][1:], expected[1:])
    assert (torch.cat([p[1][0] for p in parts]) - expected[0]).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("last_norm", [False, True])
def test_an_mlp_head_has_the_layers_it_is_asked_for(norm: str, layers: int, last_norm: bool) -> None:
    options: dict[str, Any] = {"hidden": 8, "out": 5, "layers": layers, "norm": norm, "last_norm": last_norm}
    if norm == "none" and last_norm:
        with pytest.raises(ValueError, match="choose batch or layer"):
            MLPHead.Config(**options)
        return
    head = MLPHead.Config(**options).build(6)
    assert sum(isinstance(m, nn.Linear) for m in head.modules()) == layers
    norms = sum(isinstance(m, RankBatchNorm | nn.LayerNorm) for m in head.modules())
    assert norms == (0 if norm == "none" else layers - 1 + last_norm)
    out = head(torch.randn(16, 6))
    assert out.shape == (16, 5)
    if last_norm and norm == "batch":
        torch.testing.assert_close(out.mean(0), torch.zeros(5), atol=1e-5, rtol=0)


def test_prototypes_are_unit_vectors_times_a_gain() -> None:
    linear = WeightNormLinear(4, 3, trainable_gain=True)
    x = F.normalize(torch.randn(5, 4), dim=1)
    expected = F.cosine_similarity(x[:, None], linear.weight_v[None], dim=2)
    torch.testing.assert_close(linear(x), expected)
    with torch.no_grad():
        linear.weight_g.mul_(3)
    torch.testing.assert_close(linear(x), 3 * expected)


@pytest.mark.parametrize(("gain", "trained"), [("trainable", True), ("fixed", False), ("none", None)])
def test_the_gain_is_trained_fixed_or_absent(gain: str, trained: bool | None) -> None:
    head = SMALL.replace(gain=gain).build(6)
    names = dict(head.named_parameters())
    assert ("last_layer.weight_g" in names) == (trained is not None)
    assert ("last_layer.weight" in names) == (trained is None)
    if trained is not None:
        assert names["last_layer.weight_g"].requires_grad == trained
    head(torch.randn(3, 6)).cos().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in names.values())


def test_parameter_names_are_the_official_ones() -> None:
    names = set(SMALL.build(6).state_dict())
    mlp = {f"mlp.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}
    assert names == mlp | {"last_layer.weight_g", "last_layer.weight_v"}
    single = SMALL.replace(layers=1, bias=False).build(6)
    assert set(single.state_dict()) == {"mlp.weight", "last_layer.weight_g", "last_layer.weight_v"}
    with_norm = SMALL.replace(norm="batch").build(6)
    assert {"mlp.1.running_mean", "mlp.3.weight", "mlp.4.running_var", "mlp.6.weight"} < set(
        with_norm.state_dict()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_in_half_precision_stays_near_the_exact_one_even_at_zero(dtype: torch.dtype) -> None:
    head, x = SMALL.build(6), torch.randn(9, 6)
    nn.init.normal_(head.mlp[0].weight)
    exact = head(x)
    half = head.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.03, rtol=0)
    assert torch.equal(head(torch.zeros(2, 6, dtype=dtype)), torch.zeros(2, 11, dtype=dtype))


def test_limits_are_named_and_configs_come_back_from_json() -> None:
    with pytest.raises(ValueError, match=r"head\.prototypes=0: want 1 or more"):
        PrototypeHead.Config(prototypes=0)
    with pytest.raises(ValueError, match=r"projector\.layers=0: want 1 or more"):
        MLPHead.Config(layers=0)
    cfg = SMALL.replace(gain="none")
    assert from_dict(PrototypeHead.Config, to_dict(cfg)) == cfg
