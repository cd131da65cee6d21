"""A spy in the training loop: what is called in a step, in which order, in which mode, with which encoder and seed."""

# long file: all of it reads what the same spies saw of a run
from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from multissl.build import build
from multissl.contract.data import Batch
from multissl.contract.encoder import EncodeFunction, Encoders
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Losses, Progress
from multissl.contract.modality import Modality
from multissl.contract.plans import StreamSpec
from multissl.engine import checkpoint, trainer
from multissl.engine import step as step_module
from multissl.engine.batches import StepBatches
from multissl.engine.buffers import Buffers
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.base import Optimizer
from multissl.engine.trainer import hash_of
from multissl.inference import clean_views, pooled
from multissl.recipe import Recipe
from multissl.run import train as run
from multissl.run.folder import RunFolder
from tests.helpers.stubs import Net, Points, Spread, recipe

BATCH = 16


class Taught(Spread):
    """Has a teacher that follows half the way, which is what it exports, and a loss of dropout that shows seeds."""

    @dataclass(kw_only=True, slots=True)
    class Config(Spread.Config):
        export: bool = True

    def __init__(self, cfg: Config, encoders: Encoders, streams: Mapping[str, StreamSpec]) -> None:
        super().__init__(cfg, encoders, streams)
        self.teacher = copy.deepcopy(encoders).requires_grad_(False)
        self.exports = cfg.export

    def forward(self, encoders: EncodeFunction, batch: Batch, progress: Progress) -> Losses:
        if not isinstance(batch[0].x, FakeTensor):  # operations are counted once, without numbers
            EVENTS.append(("forward", progress.step))
            SEEN.append(batch)
        return super().forward(encoders, batch, progress)

    def after_step(self, encoders: Encoders, progress: Progress) -> None:
        EVENTS.append(("after_step", progress.step))
        STUDENTS.append(weight_of(encoders))
        super().after_step(encoders, progress)
        for ours, theirs in zip(self.teacher.parameters(), encoders.parameters(), strict=True):
            ours.data.copy_(progress.moved(ours.lerp(theirs, 0.5), ours).detach())
        TEACHERS.append(weight_of(self.teacher))

    def exported(self, encoders: Encoders) -> Encoders:
        return self.teacher if self.exports else encoders


class Looks(Evaluator):
    """Notes whom it is given, in which mode, and when."""

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        student: bool = True

    @property
    def measures_student(self) -> bool:
        return self.cfg.student

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        data = modality.dataset("val")
        views = clean_views(modality, [data[i] for i in range(8)], "points")
        features = pooled(encoders, views)
        same = torch.equal(features, pooled(encoders, views))  # dropout would draw anew
        EVENTS.append(("evaluate", progress.step))
        LOOKS.append((progress.step, progress.total, same, features.detach()))
        return {"mean": features.mean().item()}

    def baselines(self, modality: Modality) -> dict[str, float]:
        EVENTS.append(("baselines", 0))
        return {"raw": 0.5}


EVENTS: list[tuple[str, int]] = []
SEEN: list[Batch] = []
LOOKS: list[tuple[int, int, bool, Tensor]] = []
STUDENTS: list[Tensor] = []
TEACHERS: list[Tensor] = []
SEEDS: list[int] = []


def weight_of(encoders: Encoders) -> Tensor:
    net = encoders["points"]
    assert isinstance(net, Net)
    return net.out.weight.detach().clone()


@pytest.fixture(autouse=True)
def spy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note every call that a step makes, under one short name."""
    for events in (EVENTS, SEEN, LOOKS, STUDENTS, TEACHERS, SEEDS):
        events.clear()

    def note(owner: Any, name: str, event: str) -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            EVENTS.append((event, -1))
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    note(Optimizer, "step", "optimizer")
    note(Optimizer, "zero_grad", "zero_grad")
    note(Learner, "backward", "backward")
    note(Learner, "eval", "eval")
    note(Buffers, "keep", "keep")
    note(Buffers, "settle", "settle")
    note(step_module, "clip_gradients", "clip")
    note(checkpoint, "check_finite", "check_finite")
    note(checkpoint, "save", "save")
    note(trainer, "hash_of", "seed")
    inner = Learner.train

    def train(self: Learner, mode: bool = True) -> Learner:
        if mode:
            EVENTS.append(("train", -1))
        return inner(self, mode)

    monkeypatch.setattr(Learner, "train", train)
    manual_seed = torch.manual_seed

    def seeded(seed: int) -> torch.Generator:
        SEEDS.append(seed)
        return manual_seed(seed)

    monkeypatch.setattr(torch, "manual_seed", seeded)


def made(spoil: tuple[int, ...] = (), steps: int = 3, export: bool = True, **changes: Any) -> Recipe:
    return recipe().replace(
        steps=steps,
        objective=Taught.Config(spoil=spoil, export=export),
        batch_size=BATCH,
        log_every=1,
        **changes,
    )


STEP = [
    "seed",
    "train",
    "keep",
    "forward",
    "backward",
    "clip",
    "optimizer",
    "after_step",
    "settle",
    "zero_grad",
]


def steps_of(events: list[tuple[str, int]]) -> list[list[str]]:
    """The events of every step, from its seed to what has to follow its gradient."""
    steps: list[list[str]] = []
    for name, _ in events:
        if name == "seed":
            steps.append([])
        if steps:
            steps[-1].append(name)
    return steps


# ----------------------------------------------------------------------------------- order of calls


def test_a_step_calls_each_part_once_in_the_order_of_training(tmp_path: Path) -> None:
    run.train(made(), tmp_path)
    first, second, last = steps_of(EVENTS)
    assert first == second == STEP
    assert last[: len(STEP)] == STEP
    assert last[len(STEP) :] == ["check_finite", "save", "check_finite"]  # the last one is of what is shipped
    assert [n for name, n in EVENTS if name == "forward"] == [0, 1, 2]
    assert [n for name, n in EVENTS if name == "after_step"] == [0, 1, 2]


def test_after_step_sees_what_the_optimizer_made_of_the_weights(tmp_path: Path) -> None:
    """A teacher that followed before the optimizer would lag by one step."""
    run.train(made(steps=2, optim=AdamW.Config(lr=1e-2)), tmp_path)
    start = 2 * TEACHERS[0] - STUDENTS[0]  # as it was before it went half the way
    assert not torch.equal(STUDENTS[0], start), "the weights that after_step saw had not been trained"
    torch.testing.assert_close(TEACHERS[1], (TEACHERS[0] + STUDENTS[1]) / 2)


def test_nothing_moves_on_a_skipped_step(tmp_path: Path) -> None:
    run.train(made(spoil=(1,)), tmp_path)
    first, second, third = steps_of(EVENTS)
    assert first == second == third[: len(STEP)] == STEP
    assert torch.equal(STUDENTS[1], STUDENTS[0])
    assert torch.equal(TEACHERS[1], TEACHERS[0])
    assert not torch.equal(STUDENTS[2], STUDENTS[1])
    assert not torch.equal(TEACHERS[2], TEACHERS[1])
    lines = RunFolder(tmp_path).read_metrics()
    assert [x["step"] for x in lines if x["kind"] == "train"] == [1, 3]
    (note,) = [x for x in lines if x["kind"] == "note"]
    assert note["step"] == 2
    assert note["text"].startswith("step 1 skipped: pull, gradient of all not finite; see ")


# ------------------------------------------------------------------------------- seeds of modules


def module_seeds(folder: Path, **changes: Any) -> list[int]:
    SEEDS.clear()
    EVENTS.clear()
    made_ = made(steps=6, **changes)
    run.train(made_, folder)
    return SEEDS[1:]  # the first one makes the weights


def test_modules_draw_from_another_seed_in_every_step_and_every_run(tmp_path: Path) -> None:
    seeds = module_seeds(tmp_path / "a")
    assert seeds == [hash_of(0, step) for step in range(6)]
    assert module_seeds(tmp_path / "b") == seeds
    others = [module_seeds(tmp_path / f"seed_{s}", seed=s) for s in (1, 2)]
    assert len({*seeds, *others[0], *others[1]}) == 18


def test_seeds_of_neighboring_numbers_are_all_different() -> None:
    numbers = [hash_of(seed, step) for seed in range(24) for step in range(24)]
    assert len(set(numbers)) == 576
    assert all(0 <= n < 2**63 for n in numbers)


# --------------------------------------------------------------------------------------- evaluation


def evaluated(folder: Path, steps: int = 5, every: int = 2, **changes: Any) -> list[dict[str, Any]]:
    run.train(made(steps=steps, evals={"looks": Looks.Config(every=every)}, **changes), folder)
    return [x for x in RunFolder(folder).read_metrics() if x["kind"] == "eval"]


def test_evaluators_run_at_the_start_when_they_are_due_and_at_the_end(tmp_path: Path) -> None:
    lines = evaluated(tmp_path)
    assert [x["step"] for x in lines] == [0, 2, 4, 5]
    assert [step for step, *_ in LOOKS] == [
        0,
        2,
        2,
        4,
        4,
        5,
        5,
    ]  # beside the teacher its student, but at the start
    assert all(total == 5 for _, total, *_ in LOOKS)
    assert [n for name, n in EVENTS if name == "baselines"] == [0]
    assert lines[0]["looks/raw"] == 0.5
    assert "looks/student/mean" not in lines[0]
    assert all({"looks/mean", "looks/student/mean"} <= x.keys() for x in lines[1:])
    assert all("looks/raw" not in x for x in lines[1:])


def test_an_evaluator_of_interval_0_runs_at_both_ends_alone(tmp_path: Path) -> None:
    assert [x["step"] for x in evaluated(tmp_path, every=0)] == [0, 5]


def test_evaluators_see_encoders_in_evaluation_mode_and_training_goes_on_in_its_own(tmp_path: Path) -> None:
    evaluated(tmp_path)
    assert all(same for _, _, same, _ in LOOKS)
    names = [name for name, _ in EVENTS]
    modes = [n for n in names if n in ("eval", "train", "forward", "evaluate")]
    for before, now in itertools.pairwise(modes):
        assert now != "forward" or before == "train"
        assert now != "evaluate" or before in ("eval", "evaluate")


def features(folder: Path, weights: dict[str, Tensor]) -> Tensor:
    parts = build(made(), torch.device("cpu"))
    net = parts.learner.encoders["points"]
    net.load_state_dict(weights)
    net.eval()
    data = parts.modality.dataset("val")
    views = clean_views(parts.modality, [data[i] for i in range(8)], "points")
    return net([views])[0].pooled.detach()


@pytest.mark.parametrize("export", [True, False], ids=["teacher", "student"])
def test_what_is_shipped_is_what_was_evaluated_last(tmp_path: Path, export: bool) -> None:
    lines = evaluated(tmp_path, export=export)
    shipped = load_file(tmp_path / "encoder.safetensors")
    right = TEACHERS[-1] if export else STUDENTS[-1]
    other = STUDENTS[-1] if export else TEACHERS[-1]
    torch.testing.assert_close(shipped["points.out.weight"], right, rtol=0, atol=0)
    assert not torch.equal(right, other)
    looks = [f for step, _, _, f in LOOKS if step == 5]
    own = features(tmp_path, {n.removeprefix("points."): t for n, t in shipped.items()})
    torch.testing.assert_close(looks[0], own)
    assert len(looks) == (2 if export else 1)  # a run without a teacher has one side only
    assert ("looks/student/mean" in lines[-1]) is export
    if export:
        assert not torch.allclose(looks[1], own)


def test_a_student_is_not_measured_where_the_evaluator_does_not_ask(tmp_path: Path) -> None:
    run.train(made(evals={"looks": Looks.Config(student=False)}), tmp_path)
    assert [step for step, *_ in LOOKS] == [0, 3]


# ------------------------------------------------------------------- what the lines of metrics mean


@contextlib.contextmanager
def kept_losses() -> Iterator[list[tuple[Losses, dict[str, Tensor]]]]:
    """The losses and gradient norms of every step."""
    kept: list[tuple[Losses, dict[str, Tensor]]] = []
    add = trainer.Window.add

    def noted(self: trainer.Window, losses: Losses, norms: dict[str, Tensor], **rest: Any) -> None:
        kept.append((losses, dict(norms)))
        add(self, losses, norms, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Window, "add", noted)
        yield kept


def test_a_line_holds_the_means_since_the_line_before_and_the_last_learning_rate(tmp_path: Path) -> None:
    rates: list[float] = []
    step = Optimizer.step

    def noted(self: Optimizer, progress: Progress) -> float:
        rates.append(step(self, progress))
        return rates[-1]

    with kept_losses() as kept, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimizer, "step", noted)
        run.train(made(steps=5).replace(log_every=2), tmp_path)
    lines = [x for x in RunFolder(tmp_path).read_metrics() if x["kind"] == "train"]
    assert [x["step"] for x in lines] == [2, 4, 5]
    for line, part in zip(lines, (slice(0, 2), slice(2, 4), slice(4, 5)), strict=True):
        some = kept[part]
        means = {
            "loss": [losses.total for losses, _ in some],
            "terms/pull": [losses.terms["pull"] for losses, _ in some],
            "stats/center": [losses.stats["center"] for losses, _ in some],
            "gradient_norm/all": [norms["all"] for _, norms in some],
        }
        for name, values in means.items():
            assert line[name] == pytest.approx(torch.stack(values).mean().item(), rel=1e-5), name
        assert line["lr"] == rates[part][-1]
        assert line["unreadable"] == 0
        assert line["gradient_max"] > 0
        assert 0 <= line["waiting_percent"] <= 100
        assert 0 < line["samples_per_s"] < 1e6  # where nothing is evaluated, no time is taken off


def test_samples_a_second_leave_out_the_time_of_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(clock))
    window = trainer.Window()
    losses = Losses(total=torch.tensor(1.0), terms={})
    for _ in range(3):
        window.add(losses, {}, lr=0.1, waited=0.5, samples=20)
    window.paused += 2.0
    assert window.summary() == {"loss": 1.0, "lr": 0.1, "samples_per_s": 15.0, "waiting_percent": 37.5}


# ------------------------------------------------------------------------------ signs of the data


def ids_of(batch: Batch) -> Tensor:
    ids = batch[0].sample_id
    assert ids is not None
    return ids


def test_every_sample_is_seen_once_an_epoch_in_another_order(tmp_path: Path) -> None:
    run.train(made(steps=12), tmp_path)  # 96 samples, 6 steps per epoch
    ids = [ids_of(batch) for batch in SEEN]
    assert all(len(i) == BATCH for i in ids)
    first, second = torch.cat(ids[:6]).tolist(), torch.cat(ids[6:]).tolist()
    assert sorted(first) == sorted(second) == list(range(96))
    assert first != second
    assert first != sorted(first)


def test_unreadable_samples_are_counted_and_replaced(tmp_path: Path) -> None:
    run.train(made(steps=12).replace(modality=Points.Config(broken=(3, 5))), tmp_path)
    lines = RunFolder(tmp_path).read_metrics()
    notes = {x["text"].split(":")[0]: x["step"] for x in lines if x["kind"] == "note"}
    order = StepBatches(Points.Config().build(), {}, BATCH, 0, 0, 1, final=False)
    met = {order.index(position): position // BATCH + 1 for position in range(96)}
    assert notes == {"unreadable sample 3": met[3], "unreadable sample 5": met[5]}
    assert [x for x in lines if x["kind"] == "train"][-1]["unreadable"] == 2
    assert not {3, 5} & {int(i) for batch in SEEN for i in ids_of(batch)}
