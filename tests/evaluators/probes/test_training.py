"""Heads trained together beside each alone, the choice among them, and what AdamW does to vectors."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multissl.evaluators.probes.training import Trial, choose, hits, train_trials, trials_of

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 3, generator=DRAW), torch.randint(0, 2, (40,), generator=DRAW)


def logits(head: nn.Module, rows: Tensor) -> Tensor:
    return head(X[rows])


def trials() -> list[Trial]:
    return trials_of(lambda: nn.Linear(3, 2), (0.1, 1.0), (0.0, 0.5), seed=3)


def test_heads_begin_alike_and_end_as_each_would_alone() -> None:
    together, rows = trials(), torch.arange(30)
    assert [(t.lr, t.weight_decay) for t in together] == [(0.1, 0.0), (0.1, 0.5), (1.0, 0.0), (1.0, 0.5)]
    states = [copy.deepcopy(t.head.state_dict()) for t in together]
    assert all(torch.equal(s["weight"], states[0]["weight"]) for s in states)
    train_trials(together, logits, rows, Y, steps=12, batch=8, seed=5)
    for i, alone in enumerate(trials()):
        train_trials([alone], logits, rows, Y, steps=12, batch=8, seed=5)
        for ours, theirs in zip(together[i].head.parameters(), alone.head.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_training_is_adamw_with_warm_up_and_cosine_on_batches_of_one_order() -> None:
    (trial, *_), rows = trials_of(lambda: nn.Linear(3, 2), (2.0,), (0.3,), seed=1), torch.arange(5, 35)
    head = copy.deepcopy(trial.head)
    assert isinstance(head, nn.Linear)
    train_trials([trial], logits, rows, Y, steps=10, batch=12, warmup=0.2, betas=(0.8, 0.9), seed=7)
    solver = torch.optim.AdamW(
        [{"params": [head.weight], "weight_decay": 0.3}, {"params": [head.bias], "weight_decay": 0.0}],
        betas=(0.8, 0.9),
    )
    generator = torch.Generator().manual_seed(7)
    order = torch.cat([torch.randperm(30, generator=generator) for _ in range(4)])
    for step in range(10):
        chosen = rows[order[12 * step : 12 * step + 12]]
        share = (0.5, 1.0)[step] if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 8))
        for group in solver.param_groups:
            group["lr"] = 2.0 * 12 / 256 * share
        solver.zero_grad()
        F.cross_entropy(head(X[chosen]), Y[chosen]).backward()
        solver.step()
    assert isinstance(trial.head, nn.Linear)
    torch.testing.assert_close(trial.head.weight, head.weight)
    torch.testing.assert_close(trial.head.bias, head.bias)


def test_the_best_of_the_rows_that_choose_is_chosen() -> None:
    right, wrong = nn.Linear(3, 2), nn.Linear(3, 2)
    for head, sign in ((right, 1.0), (wrong, -1.0)):
        nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.bias.copy_(torch.tensor([sign, -sign]))
    rows = (Y == 0).nonzero().flatten()
    choice = choose([Trial(wrong, 0.1), Trial(right, 0.2)], logits, rows, Y)
    assert choice.trial.head is right
    assert choice.accuracy == 1.0
    assert not hits(wrong, logits, rows, Y).any()


def test_of_several_classes_the_best_mean_average_precision_is_chosen() -> None:
    truth = torch.stack([X[:, 0] > 0, X[:, 1] > 0], 1)
    right, wrong = nn.Linear(3, 2), nn.Linear(3, 2)
    for head, sign in ((right, 1.0), (wrong, -1.0)):
        with torch.no_grad():
            head.weight.copy_(sign * torch.eye(2, 3))
    choice = choose([Trial(wrong, 0.1), Trial(right, 0.2)], logits, torch.arange(40), truth)
    assert choice.trial.head is right
    assert choice.accuracy == 1.0


def test_scores_that_are_not_finite_are_no_hits() -> None:
    head = nn.Linear(3, 2)
    nn.init.constant_(head.weight, math.nan)
    assert not hits(head, logits, torch.arange(40), Y).any()
