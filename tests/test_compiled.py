"""Compiled blocks serve training alone: evaluation, whatever its shapes, leaves their variants to the steps."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from benchmarks.dinov2_step import stepper, toy
from multissl.build import Parts, build
from multissl.contract.data import Views
from multissl.contract.learning import Progress
from multissl.engine.batches import Data, StepBatches, batches_of
from multissl.engine.learner import Learner
from multissl.layers.transformer import MLP
from multissl.parallel import compiling
from multissl.parallel.compiling import Whole, uncompiled
from multissl.parallel.ranks import process_group
from multissl.parallel.sharding import Parallel
from multissl.recipe import Recipe
from multissl.run.model import untrained
from tests.helpers.compiling import traced_functions
from tests.helpers.ranks import run_ranks

# Dynamo looks at `.grad` of whatever enters a block, and torch warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
SIZES = (32, 19, 17, 13, 11, 7, 6, 5, 4, 3)


def cheaply(compile_: Callable[..., None]) -> Callable[..., None]:
    """`nn.Module.compile` without a compiler behind dynamo, which is all that is counted here."""
    return lambda self, **options: compile_(self, backend="eager", **options)


def trace_only() -> None:
    """Let blocks and losses be traced instead of compiled, by a process that ends with the test."""
    nn.Module.compile = cheaply(nn.Module.compile)
    Whole._compiled = cast(Any, traced_functions())
    compiling.trouble = cast(Any, lambda _: "")


@pytest.fixture(autouse=True)
def dynamo_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nn.Module, "compile", cheaply(nn.Module.compile))
    monkeypatch.setattr(Whole, "_compiled", traced_functions())
    monkeypatch.setattr(compiling, "trouble", lambda _: "")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    compiling.choose(None)
    torch._dynamo.reset()


def graphs() -> int:
    """How many graphs dynamo has made so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def compiled(**parallel: Any) -> Recipe:
    made = toy(4)
    made.encoders["image"] = made.encoders["image"].replace(drop_path=0.3)
    made.parallel = Parallel(compile=True, **parallel)
    return made


def evaluate(parts: Parts, mode: Callable[[], Any] = torch.no_grad) -> None:
    """Ten shapes through the teacher and the student, as evaluators ask for them."""
    learner: Learner = parts.learner
    learner.eval()
    for which in ("exported", "student"):
        encoders = learner.frozen(which, torch.device("cpu"))
        for rows in SIZES:
            with mode():
                encoders.encode([Views(x=torch.randn(rows, 3, 56, 56), stream="image", role="clean")])
    learner.train()


@pytest.mark.parametrize(
    ("sharded", "mode"),
    [  # FSDP2 gathers nothing in inference mode
        ("auto", torch.no_grad), ("auto", torch.inference_mode), ("auto", torch.enable_grad),
        ("always", torch.no_grad),
    ],
)  # fmt: skip
def test_an_evaluation_adds_no_graph_and_takes_none_from_the_steps(sharded: str, mode: Any) -> None:
    with process_group() as device:
        made = compiled(fully_shard=sharded)
        parts = build(made, device)
        step = stepper(parts, made, device)
        evaluate(parts, mode)
        assert graphs() == 0
        for number in range(2):
            step(number)
        known = graphs()
        assert known > 0
        evaluate(parts, mode)
        for number in range(2, 4):
            step(number)
        assert graphs() == known


@pytest.mark.slow
def test_random_masks_and_crops_add_no_graph_over_200_steps() -> None:
    with process_group() as device:
        made = compiled()
        parts = build(made, device)
        plans = parts.learner.objective.plans()
        steps = StepBatches(parts.modality, plans, made.batch_size, 0, 0, 1, False)
        seen: list[int] = []
        with contextlib.closing(batches_of(steps, 0, 200, Data(workers=0), 1, device)) as batches:
            for step, fetched in enumerate(batches):
                progress = Progress(step=step, total=200, described=step % 10 == 9)
                parts.learner.train()
                losses = parts.learner(fetched.batch, progress)
                parts.learner.backward(losses)
                parts.optimizer.step(progress)
                parts.learner.objective.after_step(parts.learner.encoders, progress)
                parts.optimizer.zero_grad()
                seen.append(graphs())
        assert len(seen) == 200
        assert seen[-1] == seen[1] > 0


def resident() -> int:
    """Memory of this process, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_flat_over_2000_steps(precision: Any) -> None:
    with process_group() as device:
        made = toy(2)
        made.parallel = Parallel(precision=precision)
        parts = build(made, device)
        step = stepper(parts, made, device)
        sizes: list[int] = []
        for number in range(2000):
            step(number)
            if number in (199, 1999):
                gc.collect()
                sizes.append(resident())
        assert sizes[1] - sizes[0] < 4 << 20, sizes


def steps_and_evaluation(_rank: int) -> tuple[int, int]:
    trace_only()
    made = compiled(shard=2)
    parts = build(made, torch.device("cpu"))
    step = stepper(parts, made, torch.device("cpu"))
    step(0)
    known = graphs()
    evaluate(parts)
    step(1)
    return known, graphs()


@pytest.mark.ranks
def test_an_evaluation_of_sharded_ranks_adds_no_graph() -> None:
    for before, after in run_ranks(2, steps_and_evaluation):
        assert after == before > 0


def test_features_outside_training_are_those_of_the_blocks_as_written() -> None:
    with process_group() as device:
        learner = build(compiled(), device).learner.eval()
        views = [Views(x=torch.randn(3, 3, 56, 56), stream="image", role="clean")]
        with torch.no_grad():
            (found,) = learner.encode("student", views)
            assert graphs() == 0
            (right,) = learner.encoders.encode(views)
            assert graphs() > 0
        torch.testing.assert_close(found.pooled, right.pooled)


def fail_uncompiled(block: nn.Module) -> None:
    with uncompiled():
        block(torch.zeros(1, 2))
        raise KeyError


def test_an_error_inside_leaves_compilation_on() -> None:
    block = MLP(2, 2)
    block.compile(dynamic=False)
    with pytest.raises(KeyError):
        fail_uncompiled(block)
    assert graphs() == 0
    block(torch.zeros(1, 2))
    assert graphs() == 1


def test_a_model_that_is_not_trained_is_not_compiled() -> None:
    model = untrained(compiled(fully_shard="always", precision="bf16"))
    for rows in (2, 3):
        model.encode(torch.zeros(rows, 3, 56, 56, dtype=torch.uint8))
    assert graphs() == 0


def test_beyond_dynamo_s_variants_a_whole_runs_as_written_and_known_ones_stay_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(compiling.log, "warning", lambda text, *args: said.append(text % args))
    monkeypatch.setattr(Whole, "_compiled", traced_functions())

    def is_compiled(x: Tensor) -> Tensor:
        return x + 1 if torch.compiler.is_compiling() else x

    whole = Whole(is_compiled)
    with torch._dynamo.config.patch(recompile_limit=2):
        values = [float(whole(torch.zeros(rows))[0]) for rows in (1, 2, 3, 4, 2)]
    assert values == [1, 1, 0, 0, 1]
    assert len(said) == 1
    assert "is_compiled" in said[0]
