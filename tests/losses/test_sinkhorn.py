from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multissl.layers.center import Center
from multissl.losses import targets as module
from multissl.losses.sinkhorn import Weighting, centered, sinkhorn
from tests.helpers.ranks import run_ranks


def matrix_form(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Sinkhorn-Knopp as it is printed, on the whole matrix in fp64."""
    q = (logits.double() / temperature).exp().T  # [K, M]
    q = q / q.sum()
    for _ in range(rounds):
        q = q / q.sum(1, keepdim=True) / len(q)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def logits_like_a_heads(rows: int, prototypes: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, prototypes), dim=1) * 3  # |cosine| well below 1


def mean_of(logits: Tensor, real: Tensor | None = None, weighting: Weighting = "count") -> Tensor:
    center = Center(logits.shape[1], momentum=0.0, weighting=weighting)
    center.observe(logits, real)
    center.after_step()
    return center.center


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_potentials_give_the_matrix_form(temperature: float) -> None:
    logits = logits_like_a_heads(100, 512)
    found = sinkhorn(logits, temperature).probabilities()
    expected = matrix_form(logits, temperature)
    assert (found - expected).abs().max() < 1e-6
    exact = sinkhorn(logits.double(), temperature).probabilities()
    assert (exact - expected).abs().max() < 1e-14


def test_every_sample_sums_to_one_and_prototypes_are_used_more_evenly() -> None:
    logits = 0.1 * torch.randn(64, 16) + torch.linspace(0, 1, 16)  # the last prototypes are favored
    found = sinkhorn(logits, 0.1).probabilities()
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    plain = (logits / 0.1).softmax(1).sum(0)
    assert found.sum(0).std() < 0.2 * plain.std()


def test_a_shift_of_all_logits_changes_nothing_and_large_logits_do_not_overflow() -> None:
    logits = logits_like_a_heads(20, 30)
    found = sinkhorn(logits, 0.04).probabilities()
    torch.testing.assert_close(sinkhorn(logits + 2, 0.04).probabilities(), found, atol=1e-4, rtol=0)
    huge = sinkhorn(logits + 50, 0.04).probabilities()  # exp(1250) is inf
    torch.testing.assert_close(huge, found, atol=1e-3, rtol=0)


def test_padding_rows_have_no_say_and_no_target() -> None:
    logits, padding = torch.randn(10, 6), torch.randn(4, 6) * 100
    real = torch.arange(14) < 10
    padded = sinkhorn(torch.cat([logits, padding]), 0.07, real).probabilities()
    torch.testing.assert_close(padded[:10], sinkhorn(logits, 0.07).probabilities())
    assert not padded[10:].any()
    nothing = sinkhorn(padding, 0.07, torch.zeros(4, dtype=torch.bool)).probabilities()
    assert torch.equal(nothing, torch.zeros(4, 6))
    assert sinkhorn(logits[:0], 0.07).probabilities().shape == (0, 6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(11, 6)
    whole = sinkhorn(logits, 0.1).probabilities(), centered(logits, 0.1, logits[0]).probabilities()
    mean = mean_of(logits)
    monkeypatch.setattr(module, "CHUNK", 13)  # two rows at a time
    torch.testing.assert_close(sinkhorn(logits, 0.1).probabilities(), whole[0])
    torch.testing.assert_close(centered(logits, 0.1, logits[0]).probabilities(), whole[1])
    torch.testing.assert_close(mean_of(logits), mean)


def test_half_precision_logits_get_fp32_targets() -> None:
    logits = torch.randn(12, 40).to(torch.bfloat16)
    found = sinkhorn(logits, 0.07)
    assert found.logits.dtype == torch.bfloat16
    assert found.a.dtype == found.probabilities().dtype == torch.float32
    torch.testing.assert_close(found.probabilities(), sinkhorn(logits.float(), 0.07).probabilities())


def test_the_center_shifts_the_softmax_and_follows_the_batches() -> None:
    center = Center(5, 0.9, "count", lazy=False)
    first, second = torch.randn(4, 5), torch.randn(4, 5)
    torch.testing.assert_close(center.targets(first, 0.1).probabilities(), (first / 0.1).softmax(1))
    center.observe(first)
    center.after_step()
    torch.testing.assert_close(center.center, 0.1 * first.mean(0))
    expected = ((second - 0.1 * first.mean(0)) / 0.1).softmax(1)
    torch.testing.assert_close(center.targets(second, 0.1).probabilities(), expected)


def test_a_lazy_center_moves_one_step_later_with_the_same_targets() -> None:
    prompt, lazy = Center(5, 0.9, "count", lazy=False), Center(5, 0.9, "count", lazy=True)
    before = torch.zeros(5)
    for _ in range(3):
        logits = torch.randn(4, 5)
        targets = [c.targets(logits, 0.1).probabilities() for c in (prompt, lazy)]
        torch.testing.assert_close(targets[0], targets[1])
        for c in (prompt, lazy):
            c.observe(logits)
            c.after_step()
        torch.testing.assert_close(lazy.center, before)
        assert not torch.equal(lazy.center, prompt.center)
        before = prompt.center.clone()


def test_a_lazy_center_survives_a_checkpoint() -> None:
    lazy, logits = Center(5, 0.9, "count", lazy=True), torch.randn(4, 5)
    lazy.observe(logits)
    again = Center(5, 0.9, "count", lazy=True)
    again.load_state_dict(lazy.state_dict())
    again.targets(logits, 0.1)
    torch.testing.assert_close(again.center, 0.1 * logits.mean(0))


def test_without_a_row_the_center_stays() -> None:
    center, logits = Center(5), torch.randn(4, 5)
    center.observe(logits)
    center.after_step()
    before = center.center.clone()
    center.observe(logits, torch.zeros(4, dtype=torch.bool))
    center.after_step()
    center.after_step()  # without a new mean
    assert torch.equal(center.center, before)


def on_two_ranks(rank: int, logits: Tensor, real: Tensor) -> list[Tensor]:
    mine, some = logits.chunk(2)[rank], real.chunk(2)[rank]
    nothing = some & bool(rank)  # the first rank has no real row
    return [
        sinkhorn(mine, 0.05, some).probabilities(),
        mean_of(mine, some),
        mean_of(mine, some, "equal"),
        sinkhorn(mine, 0.05, nothing).probabilities(),
        mean_of(mine, nothing, "equal"),
    ]


@pytest.mark.ranks
def test_two_ranks_with_unequally_many_rows_give_the_targets_of_one() -> None:
    logits, real = torch.randn(16, 6), torch.arange(16) < 11  # 8 real rows and 3
    parts = run_ranks(2, on_two_ranks, logits, real)
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), sinkhorn(logits, 0.05, real).probabilities())
    for p in parts:
        torch.testing.assert_close(p[1], logits[:11].mean(0))
        torch.testing.assert_close(p[2], (logits[:8].mean(0) + logits[8:11].mean(0)) / 2)
        torch.testing.assert_close(p[4], logits[8:11].mean(0))
    assert not parts[0][3].any()
    torch.testing.assert_close(parts[1][3][:3], sinkhorn(logits[8:11], 0.05).probabilities())
