"""What continuing from a run costs on the data it came from: unguarded, with the drift guard, and with LoRA.

    OMP_NUM_THREADS=1 python -m benchmarks.continuing --source cifar10-train.parquet --target mnist-train.parquet
        --kept cifar10-train-rest.parquet [--seeds 0 1 2] [--arms plain guard lora] [--action mix] [--max-loss 1]
        [--steps 300] [--start-steps 800] [--objective simclr]

One start on the source (SimCLR, transformer 64 x 2), then for each seed and arm a run of `image/dinov2_continue`'s
settings made small on the target. k-NN of the validation splits, a tenth of each that nobody trains on, before and
after, by the same evaluator. The guard looks at other data of the source's kind, `--kept`, so that what it is judged on
decides nothing. Printed are gain on the target and loss on the source with
95 % intervals over samples (each sample's mean over seeds, paired with the start), and, for guard and LoRA, their share
of the plain arm's gain and loss over seeds. A finished run in --out is not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multissl.configs.image import cifar, continuing, dino
from multissl.contract.estimate import Estimate
from multissl.engine.checkpoint import Save
from multissl.engine.judging import measurements
from multissl.evaluators.drift import Drift
from multissl.evaluators.knn import KNN
from multissl.layers.lora import LoRA
from multissl.recipe import Recipe
from multissl.run.folder import RunFolder
from multissl.run.train import train
from multissl.statistics import mean_interval

SIZES = {"size": 32, "local_size": 16, "patch": 4}
"""Of all views: smaller pictures of the target do not choose others."""


def start(source: str, steps: int) -> Recipe:
    """Return the run that is continued: by SimCLR, which learns most in minutes."""
    made = cifar.simclr_cifar()
    made.modality = dino.dinov2_cpu().modality.replace(data=source, **SIZES)
    made.encoders = dino.default().encoders
    made.batch_size, made.steps = 128, steps
    made.evals, made.loggers = {"knn": KNN.Config()}, {}
    made.data.workers = 0
    return made


def continued(args: argparse.Namespace, arm: str, seed: int) -> Recipe:
    """Return a run on the target: the recipe's rates and freeze, at the size of the start."""
    made, small = continuing.dinov2_continue(), dino.default()
    made.init, made.seed, made.steps, made.loggers = str(args.out / "start"), seed, args.steps, {}
    made.modality = dino.dinov2_cpu().modality.replace(data=args.target, flip=0.0, **SIZES)
    made.objective = small.objective
    made.batch_size, made.frozen = small.batch_size, args.steps // 10
    if args.objective == "simclr":
        made.objective, made.batch_size = cifar.simclr_cifar().objective, 128
    # a net this small, trained at 2e-3, moves too little in a few hundred steps at the rates of large ones
    made.optim = made.optim.replace(lr=args.lr, warmup=args.steps // 5)
    made.lr_by_stream = {"image": args.encoder_lr / args.lr}
    made.data.workers, made.save = 0, Save(every=args.steps)
    made.evals = {"drift": Drift.Config(reference=args.source)}
    if arm == "guard":
        every = 0 if args.action == "mix" else args.every
        made.evals["guard"] = Drift.Config(
            every=every,
            reference=args.kept,
            samples=0,
            max_loss=args.max_loss,
            action=args.action,
            factor=args.factor,
        )
    if arm == "lora":
        made.lora = LoRA(rank=8)
    return made


class Arm(NamedTuple):
    """What the seeds of one arm reached: accuracies of samples in percent, [seeds, S]."""

    target: np.ndarray
    source: np.ndarray


def scores(run: Path, figure: str, last: bool) -> np.ndarray:
    """Return the score of every query [S] of the first or last measurement of a run."""
    entry = measurements(RunFolder(run).read_metrics())[-1 if last else 0]
    value = entry[f"drift/{figure}"]
    assert isinstance(value, Estimate)
    assert value.scores is not None
    return value.scores


def described(values: np.ndarray) -> str:
    """Return the mean of values [S] and its interval."""
    low, high = mean_interval(values)
    return f"{values.mean():+5.1f} [{low:+.1f}, {high:+.1f}]"


def options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--kept", required=True, help="data that the guard looks at")
    parser.add_argument("--out", type=Path, default=Path("runs/continuing"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["plain", "guard", "lora"])
    parser.add_argument(
        "--objective", choices=("dino", "simclr"), default="dino", help="of the continued runs"
    )
    parser.add_argument("--start-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--action", choices=("lower", "stop", "mix"), default="mix", help="of the guard")
    parser.add_argument(
        "--every", type=int, default=25, help="steps between two looks of a guard that lowers or stops"
    )
    parser.add_argument("--lr", type=float, default=2e-3, help="of heads")
    parser.add_argument("--encoder-lr", type=float, default=5e-4)
    parser.add_argument(
        "--max-loss", type=float, default=1.0, help="points on the source that the guard allows"
    )
    parser.add_argument("--factor", type=float, default=0.1)
    return parser.parse_args()


def main() -> None:
    """Train what is missing, and print a line for each arm."""
    args = options()
    train(start(args.source, args.start_steps), args.out / "start")
    arms: dict[str, Arm] = {}
    for arm in args.arms:
        runs = [args.out / f"{arm}_{seed}" for seed in args.seeds]
        for run, seed in zip(runs, args.seeds, strict=True):
            train(continued(args, arm, seed), run)
        arms[arm] = Arm(
            *(
                np.stack(
                    [scores(run, name, last=True) - scores(run, f"{name}_start", last=False) for run in runs]
                )
                for name in ("knn", "reference_knn")
            )
        )
    first = RunFolder(args.out / f"{args.arms[0]}_{args.seeds[0]}").path
    for name, figure in (("target", "knn_start"), ("source", "reference_knn_start")):
        print(f"start: k-NN on the {name} {scores(first, figure, last=False).mean():.1f} %")
    for arm, (target, source) in arms.items():
        print(f"{arm:6s} target {described(target.mean(0))}  source {described(source.mean(0))}", end="")
        if arm != "plain" and "plain" in arms:
            gain, loss = arms["plain"].target.mean(), arms["plain"].source.mean()
            text = "plain gained nothing, or lost nothing: no shares"
            if gain > 0 > loss:
                text = f"{target.mean() / gain:.0%} of the plain gain, {source.mean() / loss:.0%} of its loss"
            print(f"  {text}", end="")
        seeds = ", ".join(f"{t.mean():+.1f}/{s.mean():+.1f}" for t, s in zip(target, source, strict=True))
        print(f"  by seed: {seeds}")


if __name__ == "__main__":
    main()
