"""An objective in a loop of one's own: no recipe, no trainer, no files."""

from __future__ import annotations

import torch

from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.encoders.transformer import TransformerEncoder
from multissl.layers.heads import MLPHead
from multissl.objectives.vicreg import VICReg
from multissl.random import RowRandom
from tests.helpers.stubs import Points


def test_an_objective_works_in_a_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    points: Modality = Points.Config().build()
    data = points.dataset("train")
    specs = points.streams()
    encoder = TransformerEncoder.Config(dim=16, depth=1, heads=2, pooling="mean").build(specs["points"])
    encoders = Encoders({"points": encoder})
    objective = VICReg.Config(projector=MLPHead.Config(hidden=32, out=16)).build(encoders, specs)
    plans = objective.plans()
    optimizer = torch.optim.AdamW([*encoders.parameters(), *objective.parameters()], lr=3e-3)
    losses = []
    for step in range(30):
        rng = RowRandom((0, step), 0, 32, 32)
        raw = points.collate([data[(step * 32 + i) % 96] for i in range(32)], plans, rng)
        progress = Progress(step=step, total=30)
        found = objective(encoders, points.views(raw, plans, rng), progress)
        found.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(encoders, progress)
        losses.append(found.total.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
