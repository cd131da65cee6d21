"""Few labelled rows of a table: classical models, the untrained and the trained encoder on the same paired draws.

    python benchmarks/tabular_quality.py --data adult-train.csv --label income --labels 325 [--split test]
    python benchmarks/tabular_quality.py --data california-train.parquet --label median_house_value --labels 144

Trains `tabular/few_labels` on the table's training rows without their label (a run that is already in
runs/tabular_quality is not repeated), then asks the few_labels evaluator: logistic regression or ridge, a random
forest and gradient boosting on the raw cells, the same linear model on frozen features, and on raw cells and frozen
features together. Choices belong on the validation split, which is the default; the test file is for the end.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

FOLDER = Path("runs/tabular_quality")


def main() -> None:
    """Train if need be, measure, print a table."""
    import torch

    from multissl import run
    from multissl.configs import tabular
    from multissl.encoders.base import build_encoders
    from multissl.encoders.leave_one_out import LeaveOneOutEncoder
    from multissl.evaluators.few_labels import FewLabels
    from multissl.types import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--labels", type=int, required=True)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--split", default="val")
    parser.add_argument("--steps", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--width", type=int, default=128, help="of the encoder's three layers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    recipe = tabular.few_labels()
    recipe = recipe.replace(
        modality=recipe.modality.replace(data=args.data, label=args.label),
        encoders={"tabular": LeaveOneOutEncoder.Config(dims=(args.width,) * 3)},
        steps=args.steps or recipe.steps,
        seed=args.seed,
        evals={},
    )
    out = FOLDER / f"{Path(args.data).stem}-{args.width}-{recipe.steps}-{recipe.seed}"
    began = time.process_time()
    run.train(recipe, out)
    trained = run.load(out)
    print(f"pretraining: {recipe.steps} steps, {(time.process_time() - began) / 60:.1f} CPU minutes")

    torch.manual_seed(recipe.seed)  # the weights that the run began with
    untrained = build_encoders(recipe.encoders, trained.modality.streams()).eval()
    cfg = FewLabels.Config(labels=args.labels, draws=args.draws, split=args.split, queries=0)
    evaluator = cfg.build()
    for name, value in evaluator.floors(trained.modality).items():
        print(f"{name} on raw cells | {value:.2f}", flush=True)
    for said, with_raw in (("frozen", False), ("raw + frozen", True)):
        evaluator.cfg = cfg.replace(with_raw=with_raw)
        for stage, encoders, step in (
            ("untrained", untrained, 0),
            ("trained", trained.encoders, recipe.steps),
        ):
            found = evaluator.run(encoders, trained.modality, Progress(step=step, total=recipe.steps))
            gains = [
                f"{what} {found[key]:+.2f} [{found[f'{key}_low']:+.2f}, {found[f'{key}_high']:+.2f}]"
                for key, what in (("gain", "over the best classical"), ("over_untrained", "over untrained"))
                if key in found
            ]
            print(f"linear on {said}, {stage} | {found['score']:.2f} | {' | '.join(gains)}", flush=True)


if __name__ == "__main__":
    main()
