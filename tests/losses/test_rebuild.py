"""Rebuilding: what constants cost, columns that count alike, half precision, ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.plans import StreamSpec
from multissl.layers.readout import Readout
from multissl.losses.rebuild import mean_of_columns, normalize, values_loss
from tests.helpers.ranks import run_ranks

TABLE = StreamSpec(
    kind="columns", shape=(4,), num_tokens=4, cardinalities=(0, 3, 0, 2), target_dim=1, target_kind="cells"
)
PICTURE = StreamSpec(kind="grid", shape=(3, 8, 8), patch=(4, 4), num_tokens=4, target_dim=48)
WORDS = StreamSpec(kind="sequence", shape=(6,), num_tokens=6, vocab=5, target_dim=5, target_kind="classes")


def test_predicting_zero_for_normalized_patches_costs_what_is_known() -> None:
    target = normalize(torch.randn(4, 8, 768, dtype=torch.float64) * 3 + 1, "token")
    loss = values_loss(torch.zeros_like(target), target, "mse")
    assert loss.item() == pytest.approx(767 / 768, abs=1e-5)
    assert round(767 / 768, 4) == 0.9987


def test_channels_are_normalized_apart() -> None:
    target = normalize(torch.randn(5, 48) * torch.tensor([1.0, 10.0, 0.1]).repeat(16), "channel", 3)
    cut = target.unflatten(1, (16, 3))
    torch.testing.assert_close(cut.mean(1), torch.zeros(5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(cut.std(1), torch.ones(5, 3), atol=1e-3, rtol=0)


def everywhere(rows: int, tokens: int) -> Tensor:
    return torch.arange(tokens).expand(rows, tokens)


def test_the_constant_of_classes_is_their_entropy_and_chance_is_its_limit() -> None:
    readout, target = Readout(4, WORDS), torch.arange(5).repeat(6)[:30].reshape(5, 6)
    torch.nn.init.zeros_(readout.linear.weight)
    loss, constant = readout.loss(torch.randn(5, 6, 4), everywhere(5, 6), target)
    assert loss.item() == pytest.approx(math.log(5), rel=1e-6)
    assert constant.item() == pytest.approx(math.log(5), rel=1e-6)


def brute_force(readout: Readout, tokens: Tensor, at: Tensor, target: Tensor) -> Tensor:
    """Column by column, cell by cell."""
    starts = {0: 0, 2: 1, 1: 2, 3: 5}  # numbers first, then the levels of each category
    by_column: dict[int, list[Tensor]] = {}
    for r in range(len(at)):
        for q in range(at.shape[1]):
            c = int(at[r, q])
            size = max(TABLE.cardinalities[c], 1)
            out = readout.linear(tokens[r, q])[starts[c] : starts[c] + size]
            truth = target[r, c]
            error = (out[0] - truth) ** 2 if size == 1 else -out.log_softmax(0)[int(truth)]
            by_column.setdefault(c, []).append(error)
    return torch.stack([torch.stack(e).mean() for e in by_column.values()]).mean()


def test_cells_equal_brute_force_and_only_hidden_ones_count() -> None:
    target = torch.tensor([[0.5, 2, -1.0, 1], [1.5, 0, 0.3, 0], [-0.2, 1, 2.0, 1]])
    at = torch.tensor([[0, 1], [1, 2], [0, 1]])  # column 3 is never hidden
    readout, tokens = Readout(5, TABLE), torch.randn(3, 2, 5, requires_grad=True)
    loss, constant = readout.loss(tokens, at, target)
    torch.testing.assert_close(loss, brute_force(readout, tokens, at, target))
    loss.backward()
    assert readout.linear.weight.grad is not None
    assert not readout.linear.weight.grad[5:].any()
    assert readout.linear.weight.grad[:5].any(1).all()
    shown = target.clone()
    shown[:, 3] = 1 - shown[:, 3]
    assert torch.equal(readout.loss(tokens, at, shown)[0], loss)
    variance = [torch.tensor([0.5, -0.2]).var(correction=0), torch.tensor(math.log(3)), torch.tensor(0.0)]
    torch.testing.assert_close(constant, torch.stack(variance).mean())


@pytest.mark.parametrize("metric", ["mse", "l1", "smooth_l1"])
def test_half_precision_predictions_keep_the_stated_tolerance(metric: Any) -> None:
    pred, target = torch.randn(64, 48), torch.randn(64, 48)
    right = values_loss(pred, target, metric)
    half = values_loss(pred.bfloat16(), target, metric)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(right.item(), rel=1e-2)


def test_targets_that_cannot_be_rebuilt_are_refused() -> None:
    with pytest.raises(ValueError, match="no target to rebuild"):
        Readout(4, StreamSpec(kind="columns", shape=(4,), num_tokens=4))
    other = StreamSpec(kind="sequence", shape=(6,), num_tokens=6, target_dim=5, target_tokens=3, vocab=5)
    with pytest.raises(ValueError, match="a target of 3 tokens for views of 6"):
        Readout(4, other)


def gradient(rank: int, errors: Tensor, hidden: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    mine = errors.chunk(ranks)[rank].clone().requires_grad_()
    loss = mean_of_columns(mine, hidden.chunk(ranks)[rank])
    return loss.detach(), torch.autograd.grad(loss, mine)[0] / ranks


@pytest.mark.ranks
def test_columns_hidden_unequally_on_two_ranks_count_as_on_one() -> None:
    errors = torch.rand(6, 3, dtype=torch.float64)
    hidden = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]]).bool()
    loss, right = gradient(0, errors, hidden, 1)
    parts = run_ranks(2, gradient, errors, hidden, 2)
    torch.testing.assert_close(torch.stack([p[0] for p in parts]).mean(), loss)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), right)
    by_hand = (errors[:, 0][hidden[:, 0]].mean() + errors[:, 1][hidden[:, 1]].mean()) / 2
    torch.testing.assert_close(loss, by_hand)


def test_columns_count_alike_and_one_that_hides_nothing_does_not() -> None:
    errors = torch.tensor([[1.0, 10.0, 7.0], [3.0, 20.0, 8.0]])
    one = torch.tensor([[True, False, False], [True, False, False]])
    assert mean_of_columns(errors, one) == 2.0
    two = torch.tensor([[True, True, False], [True, False, False]])
    assert mean_of_columns(errors, two) == (2.0 + 10.0) / 2
