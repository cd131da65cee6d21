"""DINO's heads take the statistics of their batch norms over the samples that are there, as centers do."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from multissl.contract.data import Batch
from multissl.layers.teacher import Teacher
from tests.helpers.rows import only_present, other_stand_ins
from tests.objectives.test_dino import HEAD, OTHER, START, batch_of, build


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "centering",
    [{"centering": "sinkhorn"}, {"centering": "ema"}, {"centering": "ema", "center_tokens": "all"}],
)
def test_samples_that_are_not_there_have_no_part_in_heads(tied: bool, centering: dict[str, Any]) -> None:
    """Losses and slow state are those of the other samples alone, whatever the stand-ins show."""
    heads = {"head": HEAD.replace(norm="batch"), "ibot_head": OTHER.replace(norm="batch")}
    teacher = Teacher.Config(batch_norm="batch")  # its heads take statistics too
    encoders, objective = build(**heads, **centering, teacher=teacher, tied_heads=tied, koleo_weight=0.0)
    objective.train()
    present = torch.tensor([True, False, True, True, False, True])
    batch = Batch([replace(v, present=present) for v in batch_of(6, 2)])
    stepped = [copy.deepcopy(objective) for _ in range(3)]
    batches = (batch, only_present(batch), other_stand_ins(batch))
    losses, *others = (o(encoders, b, START) for o, b in zip(stepped, batches, strict=True))
    for each in stepped:
        each.after_step(encoders, START)
    state = stepped[0].state_dict()
    assert losses.terms.keys() == {"dino_local", "dino_global", "ibot"}
    for other, changed in zip(others, stepped[1:], strict=True):
        torch.testing.assert_close(losses.terms, other.terms)
        torch.testing.assert_close(state, changed.state_dict(), equal_nan=True)  # NaN: nothing waits
