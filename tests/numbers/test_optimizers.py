"""The updates of an optimizer are those of before: weights and rates, under every option, of any registered one."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from multissl import registry
from multissl.contract.encoder import Encoders
from multissl.contract.learning import ParamRule, Progress
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from tests.engine.test_update import SPEC, Headed
from tests.helpers.known import Cases, Numbers, check_known, numbers_of
from tests.helpers.turned import turned

LIMIT = 1e-5
STEPS, TOTAL = 4, 5


def learner() -> Learner:
    torch.manual_seed(0)
    net = TransformerEncoder.Config(dim=8, depth=2, heads=2, registers=1, layerscale=0.1).build(SPEC)
    return Learner(Encoders({"image": net}), Headed()).double()


def updates(cfg: Any, start: Learner, rules: int) -> Numbers:
    """Return the numbers of a few steps on gradients that are drawn: weights, and the rate that each step says."""
    trained = copy.deepcopy(start)
    head: Any = trained.objective.get_submodule("projector")
    every = [
        ParamRule(of=head, lr=0.5, decay=0.3),
        ParamRule(of=head.weight, lr=0.3, frozen_steps=2),
        ParamRule(of=head.bias, constant=True),
    ]
    optimizer = cfg.build(trained, every[:rules], 64)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for step in range(STEPS):
        for parameter in trained.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).double()
        rate = optimizer.step(Progress(step=step, total=TOTAL))
        tensors[f"rate {step}"] = torch.tensor(rate, dtype=torch.float64)
        optimizer.zero_grad()
    moved = {n: p - q for (n, p), q in zip(trained.named_parameters(), start.parameters(), strict=True)}
    return numbers_of(tensors | moved)


def cases(name: str) -> Cases:
    cfg = registry.resolve(name, "optimizers").Config(
        lr=0.1, warmup=2, warmup_lr=0.01, weight_decay=0.1, final_lr=0.02
    )
    start = learner()
    drops = cfg.replace(lr_shape="steps", lr_drops=(3,))
    options = [
        ("as it is", cfg),
        *turned(cfg),
        ("drops", drops),
        ("final decay", cfg.replace(final_weight_decay=0.4)),
    ]
    return {
        f"{change}, {rules} rules": updates(made, start, rules)
        for change, made in options
        for rules in ((3, 0) if change == "as it is" else (3,))
    }


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_the_updates_of_an_optimizer_are_those_of_before(name: str) -> None:
    check_known(f"updates_{name}", functools.partial(cases, name), LIMIT)
