from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction, Encoder, Encoders
from multissl.contract.learning import Features, Losses, Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, ViewPlan
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.lars import LARS, TorchLARS
from multissl.engine.optim.treatment import kinds_of, treatment
from multissl.layers.scale import Scale
from multissl.parallel.ranks import world
from multissl.parallel.sharding import Parallel, full, parallelize
from tests.helpers.ranks import run_ranks


def stepped(p: torch.Tensor, g: torch.Tensor, lr: float, decay: float, **options: Any) -> torch.Tensor:
    parameter = nn.Parameter(p.clone())
    parameter.grad = g.clone()
    groups = [{"params": [parameter], "weight_decay": decay}]
    TorchLARS(groups, lr, 0.0, **options).step()
    return parameter.detach()


def test_a_clipped_ratio_is_capped_at_the_learning_rate() -> None:
    p, g = torch.full((2, 2), 2.0), torch.full((2, 2), 0.5)  # norms 4 and 1
    ratio = 0.02 * 4 / (1 + 0.1 * 4 + 1e-8)
    decayed = g + 0.1 * p
    for lr, scale in ((0.4, ratio / 0.4), (0.01, 1.0), (0.0, 1.0)):
        found = stepped(p, g, lr, 0.1, trust=0.02, norms="separate", clip=True)
        torch.testing.assert_close(found, p - lr * scale * decayed)
    unclipped = stepped(p, g, 0.4, 0.1, trust=0.02, norms="separate")
    torch.testing.assert_close(unclipped, p - 0.4 * ratio * decayed)


def test_zero_norms_are_not_adapted() -> None:
    zero, g = torch.zeros(2, 2), torch.ones(2, 2)
    for norms in ("joint", "separate"):
        assert torch.equal(stepped(zero, g, 0.5, 0.1, norms=norms), zero - 0.5)
    assert torch.equal(stepped(g, zero, 0.5, 0.1, norms="separate", clip=True), g)


def test_vectors_are_plain_sgd_unless_asked() -> None:
    p, g = torch.ones(3), torch.ones(3)
    assert torch.equal(stepped(p, g, 0.5, 0.1), p - 0.5)
    assert stepped(p, g, 0.5, 0.1, exclude_vectors=False).min() > 0.99


def test_vectors_without_a_telling_name_have_no_decay() -> None:
    cfg = AdamW.Config(decay_tokens=True)
    norm, convolution, scale = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), Scale(0.1)
    kinds = kinds_of(nn.ModuleList([norm, convolution, scale]))
    assert treatment(kinds[id(norm.weight)], 0, 4, cfg).decay == 0
    assert treatment(kinds[id(convolution.weight)], 0, 4, cfg).decay == 1
    assert treatment(kinds[id(scale.logit_scale)], 1, 0, cfg).decay == 0


@pytest.mark.parametrize(("name", "value"), [("trust", 0.0), ("momentum", 1.0), ("lr", -1.0)])
def test_limits_are_named(name: str, value: float) -> None:
    options: Any = {name: value}
    with pytest.raises(ValueError, match=rf"optim\.{name}={value}: want"):
        LARS.Config(**options)


class Linears(Encoder):
    """Two linears, the first of them a block."""

    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        outputs = [self.net(v.x) for v in views]
        return [Features(pooled=y, tokens=y[:, None]) for y in outputs]

    def shard_units(self) -> list[nn.Module]:
        return [self.net[0]]


class Squares(Objective):
    """The sum of the squared features."""

    def plans(self) -> Plans:
        return {"rows": ViewPlan(num_clean=1)}

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        return Losses(total=encoders.encode(batch)[0].pooled.pow(2).sum())


def lars_run(_rank: int, sharded: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    learner = Learner(Encoders({"rows": Linears()}), Squares())
    if sharded:
        parallelize(learner, Parallel(shard=world()), torch.device("cpu"))
    optimizer = LARS.Config(lr=1.0, weight_decay=0.1, trust=0.01).build(learner, [], 4)
    for step in range(3):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        progress = Progress(step=step, total=3)
        learner.backward(learner(Batch([Views(x=x, stream="rows", role="clean")]), progress))
        optimizer.step(progress)
        optimizer.zero_grad()
    return {name: full(p.detach()).clone() for name, p in learner.named_parameters()}


@pytest.mark.ranks
def test_norms_of_lars_span_the_shards_of_a_parameter() -> None:
    torch.testing.assert_close(run_ranks(2, lars_run, True)[0], lars_run(0, False), rtol=1e-5, atol=1e-7)


def test_vectors_have_a_rate_of_their_own_and_decay_only_where_asked() -> None:
    linear = nn.Linear(2, 2)
    kinds = kinds_of(linear)
    plain, asked = AdamW.Config(), AdamW.Config(decay_vectors=True, vector_lr=0.024)
    assert treatment(kinds[id(linear.bias)], 0, 4, plain)[:2] == (1, 0)
    assert treatment(kinds[id(linear.bias)], 0, 4, asked)[:2] == (0.024, 1)
    assert treatment(kinds[id(linear.weight)], 0, 4, asked)[:2] == (1, 1)


@pytest.mark.parametrize("options", [{"lr_shape": "steps"}, {"lr_drops": (5,)}, {"stretch": 0.5}])
def test_schedules_that_contradict_themselves_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="optim"):
        AdamW.Config(**options)
