"""MSN with a uniform and with a power-law prior on a long-tailed set (Assran et al. 2023, arXiv 2210.07277).

Class c of the training pictures keeps n * imbalance^(-c / (C - 1)) of its n pictures; the validation pictures (every
tenth of the file) stay balanced, so k-NN accuracy is the mean over classes. Both priors train the same recipe.

    python benchmarks/long_tail.py --data cifar10-train.parquet [--steps 600] [--seeds 1] [--imbalance 20]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet


def long_tailed(data: str, folder: Path, imbalance: float) -> tuple[str, int]:
    """Write the two splits as parquet files into a folder; a pattern that names both, and how many are for training."""
    table = parquet.read_table(data)
    labels = np.array(table["label"].to_pylist())
    place = np.arange(len(labels))
    kept = []
    classes = np.unique(labels)
    for number, label in enumerate(classes):
        mine = place[(labels == label) & (place % 10 != 9)]
        kept.append(mine[: round(len(mine) * imbalance ** (-number / (len(classes) - 1)))])
    rows = np.sort(np.concatenate(kept))
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.take(rows), folder / "tail-train.parquet")
    parquet.write_table(table.take(place[place % 10 == 9]), folder / "tail-val.parquet")
    return f"{folder}/tail-*.parquet", len(rows)


def main() -> None:
    """Train both priors and print their figures."""
    from multissl.configs.image.cifar import msn_cifar
    from multissl.run import train as run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--imbalance", type=float, default=20)
    args = parser.parse_args()
    folder = Path("runs/long_tail")
    data, count = long_tailed(args.data, folder, args.imbalance)
    print(f"{count} training pictures, the largest class {args.imbalance:g} x the smallest")
    for prior in ("uniform", "power_law"):
        found = []
        for seed in range(args.seeds):
            recipe = msn_cifar()
            recipe.modality = recipe.modality.replace(data=data)
            recipe.objective = recipe.objective.replace(prior=prior)
            recipe = recipe.replace(steps=args.steps, seed=seed)
            result = run.train(recipe, folder / f"{prior}-{args.steps}-{seed}")
            found.append(result.metrics["knn/top1"])
        print(f"prior={prior}: k-NN {statistics.mean(found):.2f} ({', '.join(f'{f:.2f}' for f in found)})")


if __name__ == "__main__":
    main()
