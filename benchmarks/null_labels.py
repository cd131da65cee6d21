"""Runs on labels that tell nothing: how many of them end in "learned".

    python benchmarks/null_labels.py [--runs 20] [--rows 500] [--steps 60] [--out runs/null_labels]

Each run trains `tabular` for a few steps on a table of its own: normal numbers, and labels of four classes drawn
without looking at them. Whatever is said to be learned there is chance. A run that lies in the folder is not repeated.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def table(path: Path, rows: int, seed: int) -> None:
    """Write a table of eight columns without anything to learn."""
    import numpy as np

    draw = np.random.default_rng(seed)
    cells, labels = draw.normal(size=(rows, 8)), draw.integers(0, 4, rows)
    lines = [",".join([*(f"{x:.6f}" for x in row), str(y)]) for row, y in zip(cells, labels, strict=True)]
    path.write_text("\n".join([",".join([*(f"x{i}" for i in range(8)), "y"]), *lines]) + "\n")


def main() -> None:
    """Run and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/null_labels"))
    args = parser.parse_args()

    import multissl
    from multissl.configs import tabular

    logging.getLogger("multissl").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    learned = 0
    for seed in range(args.runs):
        data = args.out / f"{seed}.csv"
        table(data, args.rows, seed)
        recipe = tabular.default().replace(steps=args.steps, seed=seed, loggers={})
        recipe.modality.data, recipe.modality.label = str(data), "y"
        recipe.data.workers = 0
        result = multissl.train(recipe, args.out / str(seed))
        learned += result.learned
        print(f"{seed:>3} {result.verdict}", flush=True)
    print(f'{learned} of {args.runs} runs on random labels end in "learned"')


if __name__ == "__main__":
    main()
