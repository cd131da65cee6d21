"""What DINO says of its targets: views and hidden tokens apart, each computed once, and the alarms that read it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from multissl.contract.learning import Progress
from multissl.losses.targets import Targets, describe
from tests.objectives.test_dino import START, batch_of, build


def test_views_and_hidden_tokens_are_described_apart_and_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def counted(targets: Targets, ce: Tensor) -> dict[str, Tensor]:
        seen.append(len(targets.logits))
        return describe(targets, ce)

    monkeypatch.setattr("multissl.objectives.dino.describe", counted)
    encoders, objective = build(koleo_weight=0.0)
    assert objective.ibot_head is not None
    for parameter in objective.ibot_head.mlp.parameters():
        nn.init.zeros_(parameter)
    for parameter in objective.teacher["ibot_head"].mlp.parameters():
        nn.init.zeros_(parameter)
    batch = batch_of(4, 2)
    losses = objective(encoders, batch, START)
    assert len(seen) == 2
    assert batch[0].mask is not None
    assert (
        8 <= seen[0] < 16
    )  # of hidden tokens about as many as there are global views, spread over all of them
    assert len(batch[0].mask.index) >= seen[0]
    torch.testing.assert_close(losses.stats["ibot_teacher_entropy"].item(), math.log(9))
    assert abs(losses.stats["ibot_teacher_kl"].item()) < 1e-9
    assert losses.stats["teacher_entropy"] < 0.99 * math.log(12)


def test_hidden_tokens_that_collapse_alone_raise_the_alarm() -> None:
    _, objective = build()
    fine = {
        "stats/teacher_entropy": 1.0,
        "stats/teacher_kl": 0.5,
        "stats/prototype_use": 0.9,
        "stats/std": 0.9,
    }
    uniform = {"stats/ibot_teacher_entropy": math.log(9), "stats/ibot_teacher_kl": 0.0}
    one = {"stats/ibot_prototype_use": 0.01}
    progress = Progress(step=399, total=1000)
    for figures, said in (({}, None), (uniform, "targets of the hidden tokens are uniform"),
                          (one, "every sample of the hidden tokens")):  # fmt: skip
        history = [{"step": 50.0 * (i + 1), **fine, **figures} for i in range(8)]
        alarm = objective.alarm(history, progress)
        assert alarm is None if said is None else said in str(alarm)
