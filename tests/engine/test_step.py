"""A step waits for nothing, and one that does not count moves nothing, for every objective and optimizer."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.dinov2_step import HostReads
from multissl.contract.data import Batch
from multissl.contract.learning import Losses, Progress
from multissl.devices import ToHost
from multissl.engine import trainer
from multissl.engine.batches import StepBatches
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.base import Optimizer
from multissl.engine.optim.lars import LARS
from multissl.engine.optim.sgd import SGD
from multissl.engine.step import Step
from multissl.engine.trainer import Interrupted, NonFinite
from multissl.layers.teacher import move
from multissl.recipe import Recipe
from multissl.run import train as run
from multissl.run.folder import RunFolder
from multissl.verify.cases import doubled
from tests.engine.test_skipped_steps import made, ruined
from tests.helpers.stubs import Spread
from tests.test_exact import BATCH, Case, alone, cases, make, named

OPTIMIZERS: dict[str, Optimizer.Config] = {
    "adamw": AdamW.Config(lr=1e-2),
    "sgd": SGD.Config(lr=1e-2),
    "nesterov": SGD.Config(lr=1e-2, nesterov=True),
    "plain": SGD.Config(lr=1e-2, momentum=0.0),
    "lars": LARS.Config(lr=1e-2),
}


WAITING = {"wmse": 1}
"""Objectives that wait, and how often: W-MSE, as a Cholesky decomposition that fails is told with the way out."""


def stepper(case: Case, optim: Optimizer.Config | None = None) -> tuple[Step, list[Batch], list[Batch]]:
    """A step of a case's learner, its batches, and the same without a finite number."""
    learner, modality = make(case)
    optimizer = (optim or AdamW.Config(lr=1e-2)).build(learner, learner.objective.param_rules(), BATCH)
    data = StepBatches(modality, learner.objective.plans(), BATCH, 0, 0, 1, final=True)
    specs = modality.streams()
    good = [doubled(data[i][0]) for i in range(3)]
    bad = [Batch(dataclasses.replace(v, x=ruined(v.x, specs[v.stream])) for v in batch) for batch in good]
    return Step(learner, optimizer), good, bad


def state_of(step: Step) -> dict[str, Tensor]:
    """Everything that a step may move."""
    state = {n: t.clone() for n, t in step.learner.state_dict().items()}
    names = {p: n for n, p in step.learner.named_parameters()}
    for parameter, values in step.optimizer.torch.state.items():
        assert isinstance(parameter, nn.Parameter)
        state |= {f"{names[parameter]}/{n}": v.clone() for n, v in values.items()}
    return state


def take(step: Step, batch: Batch, number: int, spoil: bool = False) -> bool:
    """Make a step, with a loss that is not a number if it is to be spoilt; whether it counted."""
    torch.manual_seed(number)
    hook = step.learner.register_forward_hook(functools.partial(spoilt, spoil))
    result = step(batch, Progress(step=number, total=10, epoch_steps=1))
    hook.remove()
    step.optimizer.zero_grad()
    return bool(result.answer.read()[0])


def spoilt(spoil: bool, _learner: nn.Module, _inputs: Any, losses: Any) -> Losses:
    """Losses of whose total there is no gradient; symbols and categories cannot spoil it."""
    return dataclasses.replace(losses, total=losses.total * torch.nan) if spoil else losses


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name].nan_to_num(1e9), value.nan_to_num(1e9)), name


@pytest.mark.parametrize("case", cases(), ids=named)
def test_a_step_that_does_not_count_moves_nothing(case: Case) -> None:
    if isinstance(reason := alone(case), str):
        pytest.skip(reason)
    step, good, bad = stepper(case)
    assert take(step, good[0], 0)
    before = state_of(step)
    assert not take(step, bad[1], 1, spoil=True)
    after = state_of(step)
    assert after.keys() == before.keys()
    assert_same(after, before)
    assert take(step, good[2], 2)
    assert any(not torch.equal(t, before[n]) for n, t in state_of(step).items())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("first", [True, False])
def test_every_optimizer_goes_on_as_if_a_skipped_step_had_not_been(name: str, first: bool) -> None:
    case = Case("byol", "lone")
    (skipping, good, bad), (plain, *_) = stepper(case, OPTIMIZERS[name]), stepper(case, OPTIMIZERS[name])
    for number in (0, 1, 2):
        if number == (0 if first else 1):
            assert not take(skipping, bad[number], number)
        else:
            assert take(skipping, good[number], number)
            take(plain, good[number], number)
    actual = state_of(skipping)
    assert_same({n: t for n, t in actual.items() if t.isfinite().all()}, state_of(plain))


def test_an_optimizer_that_cannot_read_the_device_waits_and_skips() -> None:
    class Plain(SGD):
        def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return torch.optim.SGD(groups, lr=self.lr)

    step, good, bad = stepper(Case("vicreg", "lone"))
    step.optimizer = Plain(SGD.Config(lr=0.1), step.learner, [], BATCH)
    before = state_of(step)
    assert not take(step, bad[0], 0)
    assert_same(state_of(step), before)
    assert take(step, good[0], 0)
    assert any(not torch.equal(t, before[n]) for n, t in state_of(step).items() if n in before)


@pytest.mark.parametrize("case", cases(), ids=named)
def test_a_step_waits_for_nothing(case: Case) -> None:
    """Of the objective, its statistics and its slow state: an unlogged step as it is most of the time."""
    if isinstance(reason := alone(case), str):
        pytest.skip(reason)
    step, good, _ = stepper(case)
    take(step, good[0], 0)
    waits = HostReads()
    torch.manual_seed(1)
    with waits:
        step(good[1], Progress(step=1, total=10, epoch_steps=1, described=False))
    assert waits.count == WAITING.get(case.objective, 0)


# -------------------------------------------------------------------- read one step late, at the right step


def recipe_of(*spoil: int, **changes: Any) -> Recipe:
    from tests.engine.test_spy_trainer import Looks

    base = made().replace(
        objective=Spread.Config(spoil=spoil), log_every=3, evals={"looks": Looks.Config(every=5)}, patience=4,
    )  # fmt: skip
    return base.replace(save=base.save.replace(every=4, keep_last=9), **changes)


def left_by(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str], bytes]:
    """The record without what was timed, the descriptions of skipped steps, and the encoder."""
    timed = ("samples_per_s", "waiting_percent", "tflops", "nominal_tflops", "memory_gib")
    lines = [{k: v for k, v in line.items() if k not in timed} for line in RunFolder(folder).read_metrics()]
    lines = [
        line | {"text": line["text"].replace(str(folder), "")} if "text" in line else line for line in lines
    ]
    dumps = {p.name: p.read_text() for p in (folder / "nonfinite").glob("*")}
    return lines, dumps, (folder / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize("spoil", [*((s,) for s in range(12)), (2, 3), (4, 5, 6), (0, 2, 4, 8, 11), (10, 11)])
def test_a_skipped_step_is_told_and_undone_as_if_it_were_read_at_once(
    tmp_path: Path, spoil: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(recipe_of(*spoil), tmp_path / "late")
    read = trainer.Trainer._read
    monkeypatch.setattr(trainer.Trainer, "_read", lambda self, unread, left: read(self, unread, 0))
    run.train(recipe_of(*spoil), tmp_path / "once")
    late, once = left_by(tmp_path / "late"), left_by(tmp_path / "once")
    assert late == once
    lines, dumps, _ = late
    assert sorted(dumps) == sorted(f"step_{s}_rank_0.json" for s in spoil)
    notes = [line for line in lines if line["kind"] == "note" and "skipped" in line["text"]]
    assert [line["step"] for line in notes] == [s + 1 for s in spoil]


@pytest.mark.parametrize("spoil", [3, 4, 7])
def test_a_run_goes_on_from_a_checkpoint_beside_a_skipped_step(
    tmp_path: Path, spoil: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers import stubs

    run.train(recipe_of(spoil), tmp_path / "whole")

    def die(step: int) -> None:
        if step == 9:
            raise RuntimeError("killed")

    monkeypatch.setattr(stubs, "pause", die)
    with pytest.raises(RuntimeError, match="killed"):
        run.train(recipe_of(spoil), tmp_path / "killed")
    monkeypatch.undo()
    run.train(recipe_of(spoil), tmp_path / "killed")
    assert left_by(tmp_path / "killed")[1:] == left_by(tmp_path / "whole")[1:]


def test_patience_ends_a_run_after_so_many_and_describes_no_more(tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match="2 steps in a row, up to step 5 "):
        run.train(recipe_of(4, 5, 6, 7, patience=2), tmp_path)
    dumps = sorted(p.name for p in (tmp_path / "nonfinite").glob("*"))
    assert dumps == ["step_4_rank_0.json", "step_5_rank_0.json"]


def test_only_steps_that_are_logged_measured_or_saved_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[int] = []
    waiting: list[ToHost] = []
    read, call = ToHost.read, Step.__call__

    def noted(self: ToHost) -> Tensor:
        if self is waiting[-1]:
            at_once.append(len(waiting))
        return read(self)

    def called(self: Step, *args: Any) -> Any:
        result = call(self, *args)
        waiting.append(result.answer)
        return result

    monkeypatch.setattr(ToHost, "read", noted)
    monkeypatch.setattr(Step, "__call__", called)
    run.train(recipe_of(), tmp_path)
    assert at_once == [3, 4, 5, 6, 8, 9, 10, 12]


def test_an_interrupted_run_saves_what_it_has_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.helpers import stubs

    stop = 6
    monkeypatch.setattr(
        stubs, "pause", lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == stop else None
    )
    with pytest.raises(Interrupted, match="checkpoint of step 7 "):
        run.train(recipe_of(6), tmp_path / "stopped")
    assert [p.name for p in (tmp_path / "stopped" / "nonfinite").glob("*")] == ["step_6_rank_0.json"]
    monkeypatch.undo()
    run.train(recipe_of(6), tmp_path / "stopped")
    run.train(recipe_of(6), tmp_path / "whole")
    assert left_by(tmp_path / "stopped")[2] == left_by(tmp_path / "whole")[2]


# ------------------------------------------------------------------------------------ the teacher's kernel


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_moves_a_share_of_the_way_where_a_step_counts(share: float, dtype: torch.dtype) -> None:
    start = [torch.randn(7, dtype=dtype), torch.randn(3, 5, dtype=dtype), torch.randn(2)]
    targets = [torch.randn_like(t) for t in start]
    for counted in (None, torch.tensor(True), torch.tensor(False)):
        ours = copy.deepcopy(start)
        move(ours, targets, share, counted)
        for a, b, c in zip(ours, start, targets, strict=True):
            expected = b if counted is not None and not counted else b.lerp(c, share)
            torch.testing.assert_close(a, expected)
        if share == 1 and (counted is None or counted):
            assert all(torch.equal(a, c) for a, c in zip(ours, targets, strict=True))
