"""A step that is skipped leaves nothing behind, and encoders that are not finite are not written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multissl.build import build
from multissl.contract.data import Batch, Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Features, Progress
from multissl.contract.plans import Masking, StreamSpec
from multissl.engine import checkpoint
from multissl.engine.batches import StepBatches
from multissl.engine.buffers import Buffers, grouped
from multissl.engine.checkpoint import NonFinite
from multissl.engine.learner import Learner
from multissl.layers.heads import RankBatchNorm
from multissl.parallel.sharding import Parallel, full, local
from multissl.recipe import Recipe
from multissl.run import train as run
from multissl.run.folder import RunFolder
from multissl.verify.cases import doubled
from tests.helpers.ranks import run_ranks
from tests.helpers.stubs import Net, Spread, recipe
from tests.test_exact import BATCH, Case, alone, cases, make, named

CPU = torch.device("cpu")


class Normed(Net):
    """Torch's batch norm, then batch norm over the ranks, before the layers of `Net`."""

    @dataclass(kw_only=True, slots=True)
    class Config(Net.Config):
        pass

    def __init__(self, cfg: Any, spec: StreamSpec) -> None:
        super().__init__(cfg, spec)
        self.norms = nn.Sequential(nn.BatchNorm1d(spec.shape[0]), RankBatchNorm(spec.shape[0]))

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        return super().forward([replace(v, x=self.norms(v.x)) for v in views], masking, inner)


def made(spoil: int = -1, shard: int = 1) -> Recipe:
    return recipe().replace(
        steps=12, parallel=Parallel(shard=shard), chunk=0, encoders={"points": Normed.Config()},
        objective=Spread.Config(spoil=(spoil,)),
    )  # fmt: skip


def net_of(encoders: Encoders) -> Net:
    """The encoder of points."""
    net = encoders["points"]
    assert isinstance(net, Net)
    return net


def with_nan(views: Callable[..., Batch], step: int) -> Callable[..., Batch]:
    """`StepBatches.views` that hands out one NaN at a step."""

    def spoilt(self: StepBatches, raw: Any, number: int, device: Any = "cpu") -> Batch:
        batch = views(self, raw, number, device)
        if number == step:
            batch[0].x[0, 0] = torch.nan
        return batch

    return spoilt


def shipped(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "encoder.safetensors")


def test_a_nan_in_one_batch_leaves_what_a_skipped_step_without_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(made(spoil=5), tmp_path / "loss")
    monkeypatch.setattr(StepBatches, "views", with_nan(StepBatches.views, 5))
    run.train(made(), tmp_path / "data")
    expected, found = shipped(tmp_path / "loss"), shipped(tmp_path / "data")
    assert found["points.norms.0.num_batches_tracked"] == 11
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def one_rank_has_a_nan(rank: int, folder: str, shard: int) -> tuple[dict[str, Tensor], int]:
    if rank == 1:
        StepBatches.views = with_nan(StepBatches.views, 5)  # this process ends with the test
    run.train(made(shard=shard), folder)
    parts = build(made(shard=shard), CPU)
    checkpoint.load(
        checkpoint.find(RunFolder(Path(folder)).checkpoints)[-1], parts.learner, parts.optimizer.torch
    )
    return {n: full(t).clone() for n, t in parts.learner.state_dict().items()}, len(
        [*(Path(folder) / "nonfinite").glob("*.json")]
    )


@pytest.mark.ranks
@pytest.mark.parametrize("shard", [1, 2])
def test_a_nan_of_one_rank_stays_on_none(tmp_path: Path, shard: int) -> None:
    for state, dumps in run_ranks(2, one_rank_has_a_nan, str(tmp_path), shard):
        assert dumps == 2
        assert all(t.isfinite().all() for t in state.values())
        assert state["encoders.points.norms.1.num_batches_tracked"] == 11


def ruined(x: Tensor, spec: StreamSpec) -> Tensor:
    """x without a finite number; symbols and categories, which have to be some, stay."""
    if not x.is_floating_point():
        return x
    number = torch.tensor([not n for n in spec.cardinalities or (0,)])
    return torch.where(number, torch.nan, x) if spec.kind == "columns" else x * torch.nan


def states(case: Case, bad: bool) -> dict[str, Tensor]:
    """Everything a learner holds after two good steps, with or without a skipped one between them."""
    learner, modality = make(case)
    objective = learner.objective
    data = StepBatches(modality, objective.plans(), BATCH, 0, 0, 1, final=True)
    buffers = Buffers(learner)
    losses: dict[str, Tensor] = {}
    specs = modality.streams()
    for step in (0, 1, 2) if bad else (0, 2):
        torch.manual_seed(step)
        learner.train()
        progress, batch = Progress(step=step, total=10, epoch_steps=1), doubled(data[step][0])
        if step == 1:
            batch = Batch(replace(v, x=ruined(v.x, specs[v.stream])) for v in batch)
        buffers.keep()
        total = learner(batch, progress)
        learner.backward(total)
        if step == 1:
            buffers.restore()
        else:
            for parameter in learner.parameters():
                if parameter.grad is not None:
                    parameter.data.sub_(parameter.grad, alpha=0.1)
            objective.after_step(learner.encoders, progress)
            losses[f"loss {step}"] = total.total.detach()
        for parameter in learner.parameters():
            parameter.grad = None
    return losses | {n: t.clone() for n, t in learner.state_dict().items()}


@pytest.mark.parametrize("case", cases(), ids=named)
def test_every_objective_goes_on_as_if_a_skipped_step_had_not_been(case: Case) -> None:
    refusal = alone(case)
    if isinstance(refusal, str):
        pytest.skip(refusal)
    expected, found = states(case, bad=False), states(case, bad=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].nan_to_num(1e9), value.nan_to_num(1e9)), name


class Held(nn.Module):
    """Buffers that a forward pass writes in place, replaces, or makes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: Tensor
        self.replaced: Tensor
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("replaced", torch.ones(2))
        self.register_buffer("absent", None, persistent=False)
        self.register_buffer("constant", torch.ones(1).expand(4))

    def forward(self) -> None:
        self.written += 1
        self.count += 1
        self.replaced = torch.full((5,), torch.nan)
        self.absent = torch.ones(1)


def test_buffers_are_what_and_where_they_were() -> None:
    held = Held()
    first, buffers = held.replaced, Buffers(held)
    for _ in range(2):  # once with fresh copies, once into those of the step before
        buffers.keep()
        held()
        buffers.restore()
        assert held.written.tolist() == [0, 0, 0]
        assert held.count == 0
        assert held.replaced is first
        assert first.tolist() == [1, 1]
        assert held.absent is None
    held()
    buffers.keep()
    held()
    buffers.restore()
    assert held.written.tolist() == [1, 1, 1]
    assert held.replaced.shape == (5,)


def test_an_encoder_that_is_not_finite_is_neither_saved_nor_written_over_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(recipe().replace(steps=20), tmp_path)
    before, after_step = (tmp_path / "encoder.safetensors").read_bytes(), Spread.after_step

    def spoil(self: Spread, encoders: Encoders, progress: Progress) -> None:
        after_step(self, encoders, progress)
        if progress.step == 39:
            net_of(encoders).out.weight.data[0, 0] = torch.inf

    monkeypatch.setattr(Spread, "after_step", spoil)
    with pytest.raises(
        NonFinite, match=r"1 tensors .*\(points\.out\.weight\).* checkpoint of step 30; .*--optim\.lr .*--out"
    ):
        run.train(recipe().replace(steps=40), tmp_path)
    assert checkpoint.step_of(checkpoint.find(RunFolder(tmp_path).checkpoints)[-1]) == 30
    assert (tmp_path / "encoder.safetensors").read_bytes() == before


def test_statistics_count_and_masks_of_attention_do_not(tmp_path: Path) -> None:
    parts = build(made(), CPU)
    encoder = net_of(parts.learner.encoders)
    assert isinstance(encoder, Normed)
    encoder.register_buffer("mask", torch.full((2, 2), -torch.inf))
    run.write_model(RunFolder(tmp_path), parts)
    good = (tmp_path / "encoder.safetensors").read_bytes()
    encoder.norms[0].get_buffer("running_var").fill_(torch.inf)
    encoder.norms[1].get_buffer("running_mean").fill_(torch.nan)
    names = r"points\.norms\.0\.running_var, points\.norms\.1\.running_mean"
    with pytest.raises(NonFinite, match=rf"2 tensors .*\({names}\).* start of the run"):
        run.write_model(RunFolder(tmp_path), parts)
    assert (tmp_path / "encoder.safetensors").read_bytes() == good


def one_rank_is_not_finite(rank: int, folder: str) -> str:
    parts = build(made(shard=2), CPU)
    if rank == 1:
        local(net_of(parts.learner.encoders).out.weight).data.fill_(torch.nan)
    try:
        run.write_model(RunFolder(folder), parts)
    except NonFinite as error:
        return str(error)
    return ""


@pytest.mark.ranks
def test_all_ranks_stop_for_the_shard_of_one(tmp_path: Path) -> None:
    first, second = run_ranks(2, one_rank_is_not_finite, str(tmp_path))
    assert first == second
    assert "points.out.weight" in first
    assert not [*tmp_path.glob("encoder*")]


def test_the_learner_ships_what_its_objective_exports() -> None:
    parts = build(made(), CPU)
    learner: Learner = parts.learner
    assert learner.shipped() is learner.encoders


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 5), (2, 1)])
def test_buffers_that_show_one_number_in_several_places_are_not_written(shape: tuple[int, ...]) -> None:
    whole, expanded = torch.zeros(shape), torch.zeros(()).expand(shape)
    lone = torch.zeros(()).expand(1, 1)  # one place, however it is told
    (group,) = grouped([whole, expanded, lone])
    assert [b is whole for b in group.buffers] == [True, False]
    assert group.buffers[1] is lone
    assert [c.shape for c in group.parts(group.kept)] == [b.shape for b in group.buffers]
