"""Every registered objective: how its linear layers begin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multissl import registry
from multissl.layers.heads import MLPHead
from multissl.layers.teacher import Teacher
from tests.test_exact import Case, fitting, make

DEVIATIONS = (0.02, None)
"""Of weights: a number, or one over the root of the inputs."""


def own_linears(objective: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers outside copies of the student, and outside perceptrons, which begin as torch's do."""
    others = {
        id(inner) for m in objective.modules() if isinstance(m, MLPHead | Teacher) for inner in m.modules()
    }
    return {n: m for n, m in objective.named_modules() if isinstance(m, nn.Linear) and id(m) not in others}


@pytest.mark.parametrize("name", registry.names("objectives"))
def test_linear_layers_begin_truncated_normal_with_biases_of_zero(name: str) -> None:
    seen = 0
    for modality in fitting(name):
        try:
            learner, _ = make(Case(name, modality))
        except ValueError:  # the pair has no meaning
            continue
        seen += 1
        for path, linear in own_linears(learner.objective).items():
            if linear.bias is None:  # prototypes, which have no scale
                continue
            assert not linear.bias.any(), path
            if linear.weight.numel() >= 200:
                expected = [d or linear.in_features**-0.5 for d in DEVIATIONS]
                assert min(abs(linear.weight.std() / e - 1) for e in expected) < 0.2, path
    assert seen


def test_a_layer_that_begins_as_torch_s_would_be_seen() -> None:
    torch.manual_seed(0)
    linear = own_linears(nn.Sequential(nn.Linear(32, 32)))["0"]
    assert linear.bias.any()
    assert min(abs(linear.weight.std() / e - 1) for e in (0.02, 32**-0.5)) > 0.2
