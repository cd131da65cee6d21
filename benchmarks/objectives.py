"""One table of many objectives: the same pictures, encoder, steps and evaluation for each of them.

    python benchmarks/objectives.py --data cifar10-train.parquet [--recipes simclr byol ...] [--steps 300] [--seeds 1]
    python benchmarks/objectives.py --data "cifar10-train*.parquet" --resnet18 --epochs 50     (a GPU)

Figures are those of each run's own evaluators on the validation split: k-NN and linear probe before and after, and the
classical baselines. A run that is already in runs/objectives is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

RECIPES = ["simclr", "moco", "vicreg", "barlow", "byol", "simsiam", "swav", "dino", "mae"]
FOLDER = Path("runs/objectives")


def recipe(name: str, args: argparse.Namespace, seed: int) -> Any:
    """The small-picture recipe of a name with the table's options."""
    from multissl.configs.image import cifar
    from multissl.encoders.resnet import ResNetEncoder
    from multissl.run.train import steps_for

    made = getattr(cifar, f"{name}_cifar")()
    made.modality = made.modality.replace(data=args.data)
    if args.resnet18 and isinstance(made.encoders["image"], ResNetEncoder.Config):
        made.encoders["image"] = ResNetEncoder.Config(depth=18, stem="small")
    steps = args.steps
    if args.epochs:
        steps = steps_for(args.epochs, len(made.modality.build().dataset("train")), made.batch_size)
    return made.replace(steps=steps, seed=seed)


def main() -> None:
    """Train what is missing and print a line a recipe."""
    from multissl.run import train as run
    from multissl.run.folder import RunFolder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--resnet18", action="store_true", help="torchvision's full width, for a GPU")
    args = parser.parse_args()
    lines = ["recipe | k-NN untrained | raw | HOG | k-NN | linear untrained | linear | seconds"]
    for name in args.recipes:
        rows = []
        for seed in range(args.seeds):
            made = recipe(name, args, seed)
            out = FOLDER / f"{name}-{'rn18' if args.resnet18 else 'rn10'}-{made.steps}-{seed}"
            run.train(made, out)
            evals = [x for x in RunFolder(out).read_metrics() if x["kind"] == "eval"]
            seconds = json.loads((out / "summary.json").read_text())["seconds"]
            rows.append((evals[0], evals[-1], seconds))
        first = rows[0][0]
        knn, linear = ([row[1][f"{probe}/top1"] for row in rows] for probe in ("knn", "linear"))
        lines.append(
            f"{name} | {first['knn/top1']:.1f} | {first['knn/raw']:.1f} | {first['knn/hog']:.1f} | "
            f"{statistics.mean(knn):.1f} ({min(knn):.1f}-{max(knn):.1f}) | {first['linear/top1']:.1f} | "
            f"{statistics.mean(linear):.1f} | {statistics.median(row[2] for row in rows):.0f}"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
