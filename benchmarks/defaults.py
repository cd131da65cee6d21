"""The defaults of the seven recipes that need no data: a table of their figures with n and 95 % intervals.

    python benchmarks/defaults.py [NAME ...] [--out runs/defaults]

Runs that have finished in the folder are not repeated: the table is made from their records.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

NAMES = ("image", "video", "audio", "text", "tabular", "rl", "image_text")
FIGURES = ("knn/top1", "linear/top1", "state/r2", "words/nats", "retrieval/r1", "zero_shot/top1")
"""Those that a verdict is made of."""


def cell(value: float) -> str:
    """Return a figure with its interval."""
    from multissl.contract.estimate import Estimate

    if not isinstance(value, Estimate):
        return f"{value:.1f}"
    digits = 2 if value < 20 and value.high - value.low < 1 else 1
    return f"{value:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def lines(name: str, evaluations: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a run: a figure's n, untrained, trained, and the baselines beside it."""
    first, last = evaluations[0], evaluations[-1]
    found = []
    for figure in FIGURES:
        if figure not in last:
            continue
        evaluator = figure.split("/")[0]
        beside = [
            f"{k.partition('/')[2]} {cell(v)}" for k, v in first.items()
            if k.startswith(f"{evaluator}/") and k not in last and k.count("/") == 1
        ]  # fmt: skip
        cells = (cell(first[figure]), ", ".join(beside), cell(last[figure]))
        found.append(f"| {name} | {figure} | {last[figure].n:,} | {' | '.join(cells)} |")
    return found


def main() -> None:
    """Train what has not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, default=Path("runs/defaults"))
    args = parser.parse_args()

    import multissl
    from multissl import catalogue
    from multissl.engine.judging import measurements
    from multissl.run.folder import RunFolder

    table, outcomes = [], []
    for name in args.names:
        folder = RunFolder(args.out / name)
        if not folder.read_summary().get("finished"):
            recipe = catalogue.find(name)()
            multissl.train(recipe, folder.path, recipe)
        table += lines(name, measurements(folder.read_metrics()))
        summary = json.loads(folder.summary.read_text())
        outcomes.append(f"- {name}, {summary['seconds']:.0f} seconds: {summary['verdict']}")
        print(outcomes[-1], flush=True)
    print("| recipe | figure | n | untrained | without learning | trained |\n|---|---|---|---|---|---|")
    print("\n".join([*table, "", *outcomes]))


if __name__ == "__main__":
    main()
