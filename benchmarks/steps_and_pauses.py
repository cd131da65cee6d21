"""Steps per second, seconds until the first step and the pause of a checkpoint, beside those of another version.

    git worktree add ../before COMMIT
    OMP_NUM_THREADS=1 python -m benchmarks.steps_and_pauses ../before [--pairs 20]

Each pair trains the demo of pictures for 60 steps in both checkouts, in turn and in the other order every time, each in
a process of its own under the same interpreter. What counts is the ratio within a pair: time of this version over that
of the other, its mean over pairs and the 95 % interval of that. Wants a machine that does nothing else. Exit code 1
where the interval of the steps lies above 1.02, or that of the pauses above 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from multissl.statistics import mean_interval

LIMITS = {"step": 1.02, "pause": 1.0}
"""Ratios within which the interval has to begin; the start has none."""
MEASURE = """
import json, sys, tempfile, time
from pathlib import Path
began = time.perf_counter()
import torch
from multissl.build import build
from multissl.configs.image.dino import default
from multissl.contract.learning import Progress
from multissl.engine import checkpoint
from multissl.engine.batches import StepBatches
from multissl.engine.step import Step
recipe = default()
parts = build(recipe, torch.device("cpu"))
step = Step(parts.learner, parts.optimizer)
data = StepBatches(parts.modality, parts.learner.objective.plans(), recipe.batch_size, 0, 0, 1, final=False)
def make(number):
    torch.manual_seed(number)
    step(data.views(data[number][0], number), Progress(step=number, total=1000, epoch_steps=10))
    step.optimizer.zero_grad()
make(0)
start, steps, pauses = time.perf_counter() - began, [], []
for number in range(1, STEPS + 1):
    now = time.perf_counter()
    make(number)
    steps.append(time.perf_counter() - now)
with tempfile.TemporaryDirectory() as folder:
    for number in range(SAVES):
        now = time.perf_counter()
        checkpoint.save(Path(folder), number + 1, parts.learner, parts.optimizer.torch, checkpoint.Save())
        pauses.append(time.perf_counter() - now)
middle = lambda values: sorted(values)[len(values) // 2]
print(json.dumps({"start": start, "step": middle(steps), "pause": middle(pauses)}))
"""
"""What is measured in a process: medians of steps and of saves, and the time until the first step was made."""


def measured(checkout: Path, steps: int, saves: int) -> dict[str, float]:
    """Return the seconds of start, step and pause of a checkout."""
    code = MEASURE.replace("STEPS", str(steps)).replace("SAVES", str(saves))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Measure pairs, print ratios, compare them with the limits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout of the other version")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--saves", type=int, default=9)
    words = parser.parse_args()
    here = Path(__file__).parents[1]
    ratios: dict[str, list[float]] = {"start": [], "step": [], "pause": []}
    for pair in range(words.pairs):
        order = (here, words.before) if pair % 2 else (words.before, here)
        found = {checkout: measured(checkout, words.steps, words.saves) for checkout in order}
        for name, each in ratios.items():
            each.append(found[here][name] / found[words.before][name])
        now = found[here]
        print(
            f"pair {pair + 1}: start {now['start']:.2f} s, step {1000 * now['step']:.1f} ms, pause "
            f"{1000 * now['pause']:.0f} ms, ratios "
            + ", ".join(f"{n} {e[-1]:.3f}" for n, e in ratios.items()),
            flush=True,
        )
    over = []
    for name, each in ratios.items():
        low, high = mean_interval(np.array(each))
        print(f"{name:<6} {np.mean(each):.3f} times that of before, 95 % interval {low:.3f} to {high:.3f}")
        over += [name] if low > LIMITS.get(name, np.inf) else []
    print(f"above the limit: {', '.join(over)}" if over else "within the limits")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
