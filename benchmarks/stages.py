"""A chain of three stages on frames of streets: what a linear head finds in patches after the first one and at its end.

    OMP_NUM_THREADS=1 python -m benchmarks.stages --data 'camvid-{train,val}.tar' [--steps 700 200 100] [--seed 0]

One run of DINOv2's objective: views of 48 pixels, then of 96, then a Gram anchor whose teacher sees the same crops at
192 (`image/dinov2_cpu` with crops for frames that show many things, `high_resolution` and `gram_anchoring`). The border
of every stage and an untrained encoder are read by `linear_segmentation` at 240 x 320, on the same pictures and grid.
Differences of mIoU to the first stage's have the 95 % interval over val pictures, paired. The chain's end has had more
steps than the first stage, so the difference is that of a chain, not of stages beside one long stage. A finished run in
--out is not repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from multissl.configs.image.dino import dinov2_cpu
from multissl.configs.shared.stages import gram_anchoring, high_resolution
from multissl.contract.estimate import Estimate, described
from multissl.contract.learning import Progress
from multissl.evaluators.dense.linear_segmentation import LinearSegmentation
from multissl.objectives.dino import DINO
from multissl.recipe import Recipe
from multissl.run.model import Model, load, untrained
from multissl.run.train import train
from multissl.statistics import paired_gain

SMALL, LARGE, ANCHOR = 48, 96, 192
"""Sides in pixels of the first stage's views, of those after it, and of what the frozen teacher sees."""


def chain(args: argparse.Namespace) -> Recipe:
    """Return the run of three stages."""
    made = dinov2_cpu()
    first, second, third = args.steps
    made.modality = made.modality.replace(
        data=args.data, ignored=(11, 255), size=SMALL, local_size=SMALL // 2, patch=8, global_scale=(0.08, 0.6),
        local_scale=(0.02, 0.08),
    )  # fmt: skip
    assert isinstance(made.objective, DINO.Config)
    made.objective = made.objective.replace(num_local=4)
    made.optim = made.optim.replace(warmup=first // 10)
    made.data.workers = 0
    made = made.replace(batch_size=32, steps=first, seed=args.seed, evals={}, loggers={})
    return made.then(
        high_resolution(made, LARGE, second, local_size=LARGE // 2, rate=args.rate),
        gram_anchoring(made, (ANCHOR, ANCHOR), third, every=0, rate=args.anchor_rate),
    )


def figure(evaluator: LinearSegmentation, model: Model) -> Estimate:
    """Return the mIoU of a model, with the scores of pictures."""
    found = evaluator.run(model.frozen(), model.modality, Progress(step=1, total=1))["miou"]
    assert isinstance(found, Estimate)
    return found


def main() -> None:
    """Train the chain if it is missing, and print a line for each border."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/stages"))
    parser.add_argument("--steps", type=int, nargs=3, default=[700, 200, 100])
    parser.add_argument(
        "--rate", type=float, default=0.5, help="of the second stage, as a share of the first's"
    )
    parser.add_argument("--anchor-rate", type=float, default=0.1, help="of the third")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=150, help="labeled pictures that heads learn from")
    parser.add_argument("--queries", type=int, default=0, help="val pictures that are scored; 0: all")
    parser.add_argument("--head-steps", type=int, default=200)
    args = parser.parse_args()
    recipe, began = chain(args), time.process_time()
    train(recipe, args.out)
    print(f"training: {(time.process_time() - began) / 60:.1f} minutes of processor time", flush=True)
    evaluator = LinearSegmentation.Config(
        size=(240, 320), lr=(1e-2,), steps=args.head_steps, batch=8, train=args.train, queries=args.queries
    ).build()
    assert isinstance(evaluator, LinearSegmentation)
    start = untrained(recipe)
    for name, value in evaluator.baselines(start.modality).items():
        print(f"{name}: {described(value)}", flush=True)
    print(f"untrained: {described(figure(evaluator, start))}", flush=True)
    reached: list[Estimate] = []
    for stage in recipe.run_stages():
        reached.append(figure(evaluator, load(f"{args.out}@{stage.stop}")))
        line = f"after {stage.name} (step {stage.stop}): {described(reached[-1])}"
        ours, first = reached[-1].scores, reached[0].scores
        assert ours is not None
        assert first is not None
        if len(reached) > 1:
            gain = paired_gain(ours, first)
            line += f"; to the first stage {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
        print(line, flush=True)


if __name__ == "__main__":
    main()
