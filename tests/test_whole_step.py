"""The whole path, from files to gradients, on one rank and on two: decode, crops, masks, colour, DINOv2's objective."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multissl import distributed
from multissl.configs import image
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.data import Steps
from multissl.recipe import Recipe, build
from multissl.types import Progress
from tests.ranks import run_ranks
from tests.test_grid import shrunk

BATCH = 8


def recipe() -> Recipe:
    """The demo, tiny: real crops and colours, ema or Sinkhorn by default, drop path off (it draws by rank)."""
    made = image.default()
    made.modality = made.modality.replace(size=16, local_size=8, mask_group=4, blur_kernel=3)
    made.encoders["image"] = TransformerEncoder.Config(dim=16, depth=2, heads=2, layerscale=0.5)
    made.objective = shrunk(made.objective).replace(ibot_weight=1.0, koleo_weight=0.1, koleo_group=4)
    return made.replace(batch_size=BATCH, steps=10)


def gradients(rank: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    made = recipe()
    parts = build(made, torch.device("cpu"))
    objective: Any = parts.learner.objective
    ranks = (distributed.rank(), distributed.world())
    steps = Steps(parts.modality, objective.plans(), BATCH, made.seed, *ranks, final=False)
    views = steps.views(steps[3][0], 3)
    parts.learner.train()
    losses = parts.learner(views, Progress(step=3, total=10))
    parts.learner.backward(losses)
    found = {n: distributed.full(p.grad) for n, p in parts.learner.named_parameters() if p.grad is not None}
    return found, [v.x for v in views]


@pytest.mark.ranks
def test_two_ranks_see_the_views_and_take_the_gradient_of_one() -> None:
    (whole, seen), parts = gradients(0), run_ranks(2, gradients)
    for i, x in enumerate(seen):  # the same views, whoever makes them
        views = len(x) // BATCH
        both = [p[1][i].unflatten(0, (views, BATCH // 2)) for p in parts]
        torch.testing.assert_close(torch.cat(both, 1).flatten(0, 1), x, rtol=0, atol=0)
    assert whole.keys() == parts[0][0].keys()
    for name, right in whole.items():
        worst = (parts[0][0][name] - right).abs().max()
        assert worst <= 1e-5 * right.abs().max() + 1e-7, f"{name}: off by {worst:.2g}"
