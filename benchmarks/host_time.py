"""What the trainer's step costs a processor beside a plain fp32 loop over the same network and loss, on one rank.

    OMP_NUM_THREADS=1 python -m benchmarks.host_time

The network is DINOv2's at its depth of 12 and nearly without width, so that operations have next to no work in them and
time is what the host needs to ask for them. Both sides share forward pass and loss. The plain loop is what one writes
without a framework: `backward`, `clip_grad_norm_`, AdamW over lists, the teacher's average over lists, `zero_grad`. The
trainer's step also groups parameters by their treatment, keeps buffers, checks that all is finite, skips where it is
not and follows schedules. In turn, medians; processor time of this process.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from multissl.build import Parts, build
from multissl.configs.image.dino import default
from multissl.contract.data import Batch
from multissl.contract.learning import Progress
from multissl.encoders.transformer import vit
from multissl.engine.batches import StepBatches
from multissl.engine.step import Step
from multissl.parallel.sharding import Parallel
from multissl.statistics import mean_interval

STEPS = 1_000
"""Of the run that schedules are laid out for."""


def parts_and_batch(depth: int, width: int, batch: int) -> tuple[Parts, Batch]:
    """Return a recipe's parts on one rank in fp32, not compiled, and the views of a step."""
    recipe = default()
    recipe.encoders = {"image": vit("s", dim=width, depth=depth, heads=2)}
    recipe.parallel = Parallel(precision="fp32", compile=False)
    recipe.batch_size, recipe.steps = batch, STEPS
    parts = build(recipe, torch.device("cpu"))
    batches = StepBatches(parts.modality, parts.learner.objective.plans(), batch, 0, 0, 1, final=True)
    views, _ = batches[0]
    return parts, views


def trainers_step(parts: Parts, batch: Batch) -> Callable[[], object]:
    """Return a function that makes one step as the trainer does."""
    make = Step(parts.learner, parts.optimizer, clip=3.0)

    def once() -> None:
        make(batch, Progress(step=100, total=STEPS, described=False))
        parts.optimizer.zero_grad()

    return once


def plain_step(parts: Parts, batch: Batch) -> Callable[[], object]:
    """Return a function that makes one step of a plain loop."""
    learner = parts.learner
    weights = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, foreach=True)
    values = [p.detach() for p in weights]  # of the same memory
    teacher = copy.deepcopy(values)

    def once() -> None:
        learner.train()
        losses = learner(batch, Progress(step=100, total=STEPS, described=False))
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(weights, 3.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(teacher, values, 0.01)  # pyright: ignore[reportPrivateImportUsage]
        optimizer.zero_grad()

    return once


def main() -> None:
    """Print medians of both and their ratio."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--depth", type=int, default=12)
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--steps", type=int, default=60, help="of each, after 10 that are not timed")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    sides = {
        "trainer": trainers_step(*parts_and_batch(chosen.depth, chosen.width, chosen.batch)),
        "plain": plain_step(*parts_and_batch(chosen.depth, chosen.width, chosen.batch)),
    }
    spent: dict[str, list[float]] = {name: [] for name in sides}
    order = random.Random(0)
    for step in range(chosen.steps + 10):
        for name in order.sample([*sides], len(sides)):
            began = time.process_time()
            sides[name]()
            if step >= 10:
                spent[name].append(time.process_time() - began)
    ratios = [a / b for a, b in zip(spent["trainer"], spent["plain"], strict=True)]
    for name, seconds in spent.items():
        print(f"{name}: {1e3 * median(seconds):.1f} ms of processor time a step")
    low, high = mean_interval(np.array(ratios))
    print(f"ratio: {median(ratios):.3f} (mean {low:.3f} to {high:.3f}, n={len(ratios)})")


if __name__ == "__main__":
    main()
