"""The whole DINOv2 objective on a transformer: two ranks with FSDP2 and a sharded teacher against one rank without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multissl.distributed import Parallel, clip_gradients, full, parallelize, world
from multissl.encoders.base import build_encoders
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.engine.optim import AdamW
from multissl.layers.ema import Teacher
from multissl.layers.heads import PrototypeHead
from multissl.objectives.dino import DINO
from multissl.types import Progress, StreamSpec
from tests.objectives.test_dino import batch_of, part_of
from tests.ranks import run_ranks

SPEC = {"rows": StreamSpec(kind="columns", shape=(6,), num_tokens=6)}
HEAD = PrototypeHead.Config(prototypes=16, bottleneck=8, hidden=16)
STEPS = 2


def train(rank: int, shard: int) -> list[Tensor]:
    """Losses of some steps, then the teacher's weights, whole."""
    torch.manual_seed(0)
    encoder = TransformerEncoder.Config(dim=16, depth=2, heads=2, layerscale=0.5)
    encoders = build_encoders({"rows": encoder}, SPEC)
    teacher = Teacher.Config(ema=0.5, final_ema=0.5)
    cfg = DINO.Config(head=HEAD, ibot_head=HEAD, num_local=0, koleo_group=8, teacher=teacher)
    objective = cfg.build(encoders, SPEC)
    learner = Learner(encoders, objective)
    if shard:
        parallelize(learner, Parallel(shard=shard, precision="fp32"), torch.device("cpu"))
    optimizer = AdamW.Config(lr=1e-2, final_lr=1e-2).build(learner, objective.param_rules(), 8)
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
