"""What only a GPU can show: half precision, compiled blocks, shapes that never change, one wait in a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map_only

from benchmarks.dinov2_step import HostReads, stepper, toy
from multissl.build import build
from multissl.engine.batches import StepBatches
from multissl.engine.checkpoint import Save
from multissl.parallel.ranks import process_group
from multissl.parallel.sharding import Parallel
from multissl.run import train as run
from multissl.run.folder import RunFolder
from tests.test_whole_step import recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def losses(folder: Path) -> list[float]:
    return [x["loss"] for x in RunFolder(folder).read_metrics() if x["kind"] == "train"]


@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_follows_full_precision(tmp_path: Path, compiled: bool) -> None:
    made = recipe().replace(steps=6, log_every=1, evals={}, save=Save(every=6), loggers={})
    for precision in ("fp32", "bf16"):
        parallel = Parallel(precision=precision, compile=compiled)
        run.train(made.replace(parallel=parallel), tmp_path / precision)
    exact, half = (torch.tensor(losses(tmp_path / p)) for p in ("fp32", "bf16"))
    torch.testing.assert_close(half, exact, rtol=0.03, atol=0.03)


def test_a_gpu_sees_the_views_of_a_processor() -> None:
    made = recipe()
    modality = made.modality.build().fit()
    objective = build(made, torch.device("cpu")).learner.objective
    steps = StepBatches(modality, objective.plans(), made.batch_size, 0, 0, 1, final=False)
    raw, _ = steps[3]
    here = steps.views(raw, 3)
    there = steps.views(tree_map_only(torch.Tensor, lambda t: t.cuda(), raw), 3, "cuda")
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b.x.cpu(), a.x, rtol=1e-3, atol=2e-3)


def test_a_compiled_step_never_recompiles_and_waits_once() -> None:
    import torch._dynamo

    with process_group() as device:
        made = toy(8)
        made.parallel = Parallel(compile=True)
        made.encoders["image"] = made.encoders["image"].replace(drop_path=0.3)
        step = stepper(build(made, device), made, device)
        for number in range(3):
            step(number)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for number in range(3, 8):
            step(number)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        made.parallel = Parallel()
        reads = HostReads()
        stepper(build(made, device), made, device)(9, reads)
        assert reads.count == 1
