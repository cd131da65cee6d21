"""Objectives without prototypes beside DINOv2's, at equal processor time: the same pictures, encoder and optimizer.

    OMP_NUM_THREADS=1 python -m benchmarks.equal_time --data cifar10-train.parquet --seconds 300 --seeds 3

How long a step takes is measured first, in a short run of each; the seconds given then decide how many steps each gets,
evaluations and start left out. k-NN and linear probe of the validation split before and after; the mean over seeds with
its 95 % interval by Student's t, and paired by seed the difference to DINOv2. A run that is in FOLDER is not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from multissl.configs.image.dino import dinov2_cpu
from multissl.configs.shared.common import watched
from multissl.contract.objective import Objective
from multissl.layers.heads import MLPHead, UnitHead
from multissl.layers.teacher import Teacher
from multissl.objectives.lejepa import LeJEPA
from multissl.objectives.simdino import SimDINO
from multissl.recipe import Recipe
from multissl.run import train
from multissl.run.folder import RunFolder
from multissl.statistics import mean_interval

FOLDER = Path("runs/equal_time")
OBJECTIVES: dict[str, Objective.Config] = {
    "dinov2": dinov2_cpu().objective,
    "lejepa": LeJEPA.Config(
        weight=0.02, num_local=2, slices=256, projector=MLPHead.Config(hidden=512, out=32)
    ),
    "simdinov2": SimDINO.Config(
        num_local=2,
        head=UnitHead.Config(hidden=512, out=64, init_std=0.0),
        teacher=Teacher.Config(ema=0.9, final_ema=0.99),
    ),
}
"""DINOv2's as the recipe `image/dinov2_cpu` has it, the others as `image/lejepa_cifar` and `image/simdinov2_cifar`."""


def recipe(name: str, data: str, steps: int, seed: int, batch: int) -> Recipe:
    """Return `image/dinov2_cpu` with another objective, judged before and after alone."""
    made = dinov2_cpu()
    made.modality = made.modality.replace(data=data)
    made.optim = made.optim.replace(warmup=steps // 10)
    return made.replace(
        objective=OBJECTIVES[name], steps=steps, seed=seed, batch_size=batch, evals=watched(every=0),
    )  # fmt: skip


def seconds_a_step(name: str, data: str, batch: int) -> float:
    """Return the processor time of a training step, from two short runs without evaluations."""
    spent = []
    for steps in (10, 50):
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            train.train(recipe(name, data, steps, 0, batch).replace(evals={}), Path(folder) / "run")
            spent.append(time.process_time() - began)
    return (spent[1] - spent[0]) / 40


def figures(name: str, args: argparse.Namespace, steps: int, seed: int) -> dict[str, float]:
    """Return what a run's evaluators say before (as `untrained`) and after it, in percent."""
    out = FOLDER / f"{name}-{steps}-{seed}"
    train.train(recipe(name, args.data, steps, seed, args.batch), out)
    lines = [x for x in RunFolder(out).read_metrics() if x["kind"] == "eval"]
    wanted = ("knn/top1", "linear/top1")
    return {f"{w} untrained": lines[0][w] for w in wanted} | {w: lines[-1][w] for w in wanted}


def main() -> None:
    """Train what is missing; print a line an objective and write them to FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for name in OBJECTIVES:
        each = seconds_a_step(name, args.data, args.batch)
        steps = max(int(args.seconds / each), 1)
        print(f"{name}: {1e3 * each:.0f} ms of processor time a step, {steps} steps", flush=True)
        rows[name] = [figures(name, args, steps, seed) for seed in range(args.seeds)]
        for metric in rows[name][0]:
            values = np.array([row[metric] for row in rows[name]])
            line = f"{name} {metric}: {told(values)}"
            if name != "dinov2":
                line += f"; beside dinov2 {told(values - [row[metric] for row in rows['dinov2']])}"
            print(line, flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "table.json").write_text(json.dumps(rows, indent=1))


def told(values: np.ndarray) -> str:
    """Return a mean over seeds with its interval."""
    low, high = mean_interval(values)
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f}, n={len(values)})"


if __name__ == "__main__":
    main()
