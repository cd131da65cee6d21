"""Rules of objectives reach the parameters they name, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multissl.engine.optim import SGD, treatment
from multissl.types import ParamRule, Progress


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.objective = nn.ModuleDict({"predictor": nn.Linear(2, 2), "projector": nn.Linear(2, 2)})


def rates(rules: list[ParamRule], steps: int = 40) -> tuple[list[float], list[float]]:
    """The learning rates of the predictor and of the projector over a run."""
    learner, found = Pair(), ([], [])
    cfg = SGD.Config(lr=0.5, warmup=10, final_lr=0.0, lr_scaling="linear")
    optimizer = cfg.build(learner, rules, 512)
    for step in range(steps):
        optimizer.step(Progress(step=step, total=steps))
        for name, list_ in zip(("predictor", "projector"), found, strict=True):
            parameter = learner.objective[name].weight
            (group,) = [g for g in optimizer.torch.param_groups if any(p is parameter for p in g["params"])]
            list_.append(group["lr"])
    return found


def test_a_constant_rate_has_no_warm_up_and_no_decay_and_leaves_others_alone() -> None:
    predictor, projector = rates([ParamRule(match="predictor.", constant=True)])
    assert predictor == [1.0] * 40  # 0.5 * 512 / 256
    assert projector == rates([])[1] == rates([])[0]
    assert projector[0] < 0.2
    assert projector[-1] < 0.02
    assert max(projector) == pytest.approx(1.0)


def test_a_constant_rate_is_still_scaled_and_frozen_by_rules() -> None:
    rules = [
        ParamRule(match="predictor.", constant=True),
        ParamRule(match="predictor", lr=0.1, frozen_steps=3),
    ]
    predictor, _ = rates(rules)
    assert predictor == [0.0] * 3 + [pytest.approx(0.1)] * 37


def test_treatments_of_older_checkpoints_still_read() -> None:
    name = "objective.projector.weight"
    now = treatment(name, 1, 0, SGD.Config(), [])
    assert now == (1.0, 1.0, 0, False)
    assert type(now)(*torch.tensor([1.0, 1.0, 0]).tolist()).constant is False
