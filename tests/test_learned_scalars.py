"""Learned temperatures and biases keep their fp32 value in a bf16 run, in every objective that has one."""

from __future__ import annotations

import pytest
import torch

from multissl import registry
from multissl.contract.learning import Progress
from multissl.engine.batches import StepBatches
from multissl.parallel.ranks import rank, world
from multissl.parallel.sharding import Parallel, local, parallelize
from tests.helpers.ranks import run_ranks
from tests.test_exact import BATCH, VARIANTS, Case, fitting, make

VALUES = (4.500, 4.505, 4.510, 4.515)
"""Logarithms of a scale. The bf16 numbers near them are 4.5 and 4.53125."""


def scalars_of(case: Case) -> list[str]:
    """The trained parameters of a case that have one entry."""
    try:
        learner, _ = make(case)
    except ValueError:  # the objective has no meaning on this modality
        return []
    return [name for name, p in learner.named_parameters() if p.numel() == 1 and p.requires_grad]


def cases() -> list[Case]:
    """Every objective, and variant of one, that learns such a parameter."""
    variants = [
        Case(name, modality, variant)
        for name in registry.names("objectives")
        for modality in fitting(name)
        for variant in range(-1, len(VARIANTS.get(name, [])))
    ]
    return [case for case in variants if scalars_of(case)]


def steps(_: int, case: Case) -> tuple[list[dict[str, float]], list[torch.dtype]]:
    """What a bf16 step reports at scalars a little apart, and the precision of their gradients."""
    learner, modality = make(case)
    learner.float()
    parallelize(learner, Parallel(precision="bf16"), torch.device("cpu"))
    data = StepBatches(modality, learner.objective.plans(), BATCH, 0, rank(), world(), final=True)
    scalars = [p for name, p in learner.named_parameters() if name in scalars_of(case)]
    reported: list[dict[str, float]] = []
    for value in VALUES:
        for parameter in scalars:
            local(parameter.detach()).fill_(value)
        losses = learner(data[0][0], Progress(step=0, total=10, epoch_steps=1))
        reported.append(
            {n: v.item() for n, v in losses.stats.items() if n in ("scale", "temperature", "bias")}
        )
        learner.backward(losses)
    grads = [p.grad for p in scalars]
    assert all(g is not None and local(g).isfinite().all() for g in grads)
    return reported, [g.dtype for g in grads if g is not None]


def test_clip_siglip_and_infonce_learn_scalars() -> None:
    assert {case.objective for case in cases()} >= {"clip", "siglip", "infonce"}


@pytest.mark.ranks
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.objective}-{c.modality}-{c.variant}")
def test_a_bf16_step_reads_learned_scalars_in_fp32(case: Case, count: int) -> None:
    results = run_ranks(count, steps, case)
    for reported, dtypes in results:
        exact = torch.tensor(VALUES)
        for name, values in {n: torch.tensor([r[n] for r in reported]) for n in reported[0]}.items():
            right = {"scale": exact.exp(), "temperature": (-exact).exp(), "bias": exact}[name]
            torch.testing.assert_close(values, right, rtol=1e-6, atol=0)
        assert reported[0]
        assert set(dtypes) == {torch.float32}
