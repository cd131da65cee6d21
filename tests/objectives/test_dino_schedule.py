"""What of DINO depends on the step: the teacher's temperature in the loss, and prototypes that rest at the start."""

from __future__ import annotations

import pytest
import torch

from multissl.contract.learning import Progress
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from tests.objectives.test_dino import batch_of, build


def compute_loss(step: int, **options: float) -> torch.Tensor:
    encoders, objective = build(koleo_weight=0.0, **options)
    return objective(encoders, batch_of(4, 2), Progress(step=step, total=10)).total


@pytest.mark.parametrize(("step", "temperature"), [(0, 0.04), (1, 0.055), (2, 0.07), (3, 0.07), (9, 0.07)])
def test_targets_are_sharpened_by_the_temperature_of_the_step(step: int, temperature: float) -> None:
    rising = compute_loss(
        step, teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_steps=3
    )
    torch.testing.assert_close(rising, compute_loss(step, teacher_temperature=temperature))
    assert (rising - compute_loss(step, teacher_temperature=0.1)).abs() > 1e-3


def test_a_rising_temperature_is_logged_under_a_title_that_says_what_it_does_to_the_loss() -> None:
    rising = {"teacher_temperature_start": 0.04, "teacher_temperature": 0.07, "teacher_temperature_steps": 3}
    encoders, objective = build(**rising)
    stats = [objective(encoders, batch_of(4, 2), Progress(step=s, total=10)).stats for s in (0, 1, 5)]
    assert [each["teacher_temperature"].item() for each in stats] == pytest.approx([0.04, 0.055, 0.07])
    assert "as it rises, so may the loss" in objective.titles["stats/teacher_temperature"]
    assert {name.removeprefix("stats/") for name in objective.titles} <= stats[0].keys()
    encoders, objective = build()
    assert "teacher_temperature" not in objective(encoders, batch_of(4, 2), Progress(step=0, total=10)).stats


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_prototypes_rest_for_exactly_the_steps_asked_for(frozen: int) -> None:
    encoders, objective = build(freeze_last_layer=frozen)
    learner = Learner(encoders, objective)
    optimizer = AdamW.Config(lr=1e-2).build(learner, objective.param_rules(), 4)
    assert objective.dino_head is not None
    prototypes = objective.dino_head.last_layer.get_parameter("weight_v")
    others = objective.dino_head.get_parameter("mlp.0.weight")
    for step in range(5):
        before = prototypes.clone(), others.clone()
        progress = Progress(step=step, total=10)
        learner.backward(learner(batch_of(4, 2), progress))
        optimizer.step(progress)
        optimizer.zero_grad()
        assert not torch.equal(others, before[1])
        assert torch.equal(prototypes, before[0]) == (step < frozen), f"step {step}"
