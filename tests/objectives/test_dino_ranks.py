"""The whole DINOv2 objective on two ranks with different data against one rank with all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.data import Batch
from multissl.contract.encoder import build_encoders
from multissl.contract.learning import Losses, Progress
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.layers.gram import GramAnchor
from multissl.layers.heads import PrototypeHead
from multissl.layers.teacher import Teacher
from multissl.losses import koleo as koleo_module
from multissl.losses import sinkhorn as sinkhorn_module
from multissl.modalities.views import pack_masks
from multissl.objectives.dino import DINO
from multissl.parallel.gradients import clip_gradients
from multissl.parallel.ranks import world
from multissl.parallel.sharding import Parallel, full, parallelize
from tests.helpers.ranks import run_ranks
from tests.objectives.test_dino import HEAD, SPEC, START, batch_of, build

SMALL = PrototypeHead.Config(prototypes=16, bottleneck=8, hidden=16)
STEPS = 2
CASES = {
    "sinkhorn": {},
    "ema": {"centering": "ema", "tied_heads": True},
    "norm": {"head": HEAD.replace(norm="batch"), "koleo_group": 2},
    "gram": {"gram": GramAnchor.Config(weight=3.0, every=1)},
}


def part_of(batch: Batch, rank: int) -> Batch:
    """This rank's samples of a global batch, with an index of its own."""
    b = batch[0].batch // world()
    parts = []
    for v in batch:
        mine = v.samples(torch.arange(rank * b, (rank + 1) * b))
        if (
            v.mask is not None and mine.mask is not None
        ):  # an index of this rank's rows, of one length on all ranks
            mine = mine.with_mask(pack_masks(mine.mask.hidden, len(v.mask.index)))
        parts.append(mine)
    return Batch(parts)


def gradients(rank: int, options: dict[str, Any]) -> list[Tensor]:
    encoders, objective = build(**options)
    found: list[Tensor] = []
    for step in range(2):  # the second step sees a center and a teacher that moved
        losses: Losses = objective(encoders, part_of(batch_of(8, 2), rank), START)
        trained = [p for m in (encoders, objective) for p in m.parameters() if p.requires_grad]
        found += [g / world() for g in torch.autograd.grad(losses.total, trained)]
        if step == 0:
            objective.after_step(encoders, START)
    return [*found, objective.teacher["encoders"]["rows"].embed.weight, *objective.centers.buffers()]


PLANTS = {
    "koleo": (koleo_module, "gather", lambda x: sinkhorn_module.gather(x).detach()),
    "sinkhorn": (sinkhorn_module, "gather", lambda x: x),
}


def all_gradients(rank: int) -> dict[str, list[Tensor]]:
    found = {name: gradients(rank, options) for name, options in CASES.items()}
    for name, (place, attribute, broken) in PLANTS.items():
        right = getattr(place, attribute)
        setattr(place, attribute, broken)
        found[f"planted in {name}"] = gradients(rank, {"koleo_group": 8, "koleo_weight": 1.0})
        setattr(place, attribute, right)
    found["unplanted"] = gradients(rank, {"koleo_group": 8, "koleo_weight": 1.0})
    return found


@pytest.mark.ranks
def test_two_ranks_with_different_data_give_the_gradients_of_one_and_a_missing_reduction_does_not() -> None:
    parts = run_ranks(2, all_gradients)
    expected = {name: gradients(0, options) for name, options in CASES.items()}
    expected["unplanted"] = gradients(0, {"koleo_group": 8, "koleo_weight": 1.0})
    for name, right in expected.items():
        count = len(right) - len([*build(**CASES.get(name, {}))[1].centers.buffers()]) - 1
        for i, value in enumerate(right):
            found = parts[0][name][i] + parts[1][name][i] if i < count else parts[0][name][i]
            torch.testing.assert_close(found, value, msg=f"{name}, tensor {i}")
    for name in PLANTS:
        planted = [a + b for a, b in zip(*(p[f"planted in {name}"] for p in parts), strict=True)][:-1]
        worst = max(
            (a - b).abs().max().item() for a, b in zip(planted, expected["unplanted"][:-1], strict=True)
        )
        assert worst > 1e-3, f"a missing reduction in {name} went unnoticed"


# FSDP2, the teacher sharded like the student, on a transformer


def train(rank: int, shard: int) -> list[Tensor]:
    """Losses of some steps, then the teacher's weights, whole."""
    torch.manual_seed(0)
    encoder = TransformerEncoder.Config(dim=16, depth=2, heads=2, layerscale=0.5)
    encoders = build_encoders({"rows": encoder}, SPEC)
    teacher = Teacher.Config(ema=0.5, final_ema=0.5)
    anchor = GramAnchor.Config(weight=1.0, every=1)
    cfg = DINO.Config(head=SMALL, ibot_head=SMALL, num_local=0, koleo_group=8, teacher=teacher, gram=anchor)
    objective = DINO(cfg, encoders, SPEC)
    learner = Learner(encoders, objective)
    if shard:
        parallelize(learner, Parallel(shard=shard, precision="fp32"), torch.device("cpu"))
    # eps above the rounding of a key's bias, whose gradient is zero: Adam would make steps of it
    optimizer = AdamW(AdamW.Config(lr=1e-2, final_lr=1e-2, eps=1e-5), learner, objective.param_rules(), 8)
    found = []
    for step in range(STEPS):
        progress = Progress(step=step, total=STEPS)
        batch = part_of(batch_of(8, 0), rank)
        for views in batch:
            views.x = views.x.float()
        losses = learner(batch, progress)
        learner.backward(losses)
        clip_gradients(learner.clip_groups("module"), 3.0)
        optimizer.step(progress)
        optimizer.zero_grad()
        objective.after_step(learner.encoders, progress)
        found.append(losses.total.detach() / world())
    sharded = [p for p in objective.teacher.parameters() if hasattr(p, "to_local")]
    assert len(sharded) == (len([*objective.teacher.parameters()]) if shard else 0)
    return [*found, *(full(p).detach() for p in objective.teacher.parameters())]


@pytest.mark.ranks
def test_a_sharded_teacher_gives_the_losses_and_weights_of_one_rank() -> None:
    parts, expected = run_ranks(2, train, 2), train(0, 0)
    for step in range(STEPS):
        torch.testing.assert_close(parts[0][step] + parts[1][step], expected[step], atol=1e-5, rtol=1e-5)
    for found, weight in zip(parts[0][STEPS:], expected[STEPS:], strict=True):
        torch.testing.assert_close(found, weight, atol=1e-4, rtol=1e-4)
