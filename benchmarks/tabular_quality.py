"""Few labeled rows of a table: classical models, the untrained and the trained encoder on the same paired draws.

    python benchmarks/tabular_quality.py --data adult-train.csv --label income --labels 325 [--split test]
    python benchmarks/tabular_quality.py --data california-train.parquet --label median_house_value --labels 144

Trains `tabular/few_labels` on the table's training rows without their label (a run that is already in
runs/tabular_quality is not repeated). On every draw: logistic regression or ridge on the raw cells with numbers as
normal scores and as plain standardized ones, a random forest and gradient boosting (tuned on the draw); the linear
model on frozen features, and on those beside the raw cells. `over classical` is the gain over the best classical model,
`over untrained` that over the same features of the untrained encoder, each with its 95 % interval by Student's t.
Choices belong on the validation split, which is the default; the test file is for the end.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path("runs/tabular_quality")


# long: one measurement after another, read from top to bottom
def main() -> None:
    """Train if need be, measure, print a line a model."""
    import torch

    from multissl.configs import tabular
    from multissl.contract.encoder import build_encoders
    from multissl.contract.evaluator import FrozenEncoders
    from multissl.encoders.leave_one_out import LeaveOneOutEncoder
    from multissl.evaluators.few_labels import FewLabels, linear, score, trees
    from multissl.inference import Pooled
    from multissl.run import train as run
    from multissl.run.model import load
    from multissl.statistics import mean_interval

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--labels", type=int, required=True)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--split", default="val")
    parser.add_argument("--steps", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--width", type=int, default=128, help="of the encoder's three layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-trees", action="store_true", help="leave out forest and boosting, the slow ones"
    )
    args = parser.parse_args()

    recipe = tabular.few_labels()
    data = recipe.modality.replace(data=args.data, label=args.label)
    recipe = recipe.replace(
        modality=data,
        encoders={"tabular": LeaveOneOutEncoder.Config(dims=(args.width,) * 3)},
        steps=args.steps or recipe.steps,
        seed=args.seed,
        evals={},
    )
    out = FOLDER / f"{Path(args.data).stem}-{args.width}-{recipe.steps}-{recipe.seed}"
    began = time.process_time()
    run.train(recipe, out)
    print(f"pretraining: {recipe.steps} steps, {(time.process_time() - began) / 60:.1f} CPU minutes")
    trained = load(out)
    torch.manual_seed(recipe.seed)  # the weights that the run began with
    untrained = build_encoders(recipe.encoders, trained.modality.streams())

    evaluator: Any = FewLabels.Config(labels=args.labels, draws=args.draws, queries=0).build()

    def features(featurize: Any, modality: Any) -> tuple[np.ndarray, np.ndarray]:
        """Of the labeled rows [S, F] and of the queries [Q, F]."""
        pair = [("train", evaluator.cfg.pool), (args.split, 0)]
        first, second = (evaluator._features(featurize, modality, *which, "cpu")[0] for which in pair)
        return first, second

    plain = data.replace(scaling="standard").build()  # the same rows in the same splits
    raw, both = trained.modality.baselines()["raw"], "normal scores and standardized"
    _, y, _ = evaluator._features(raw, trained.modality, "train", evaluator.cfg.pool, "cpu")
    _, truth, _ = evaluator._features(raw, trained.modality, args.split, 0, "cpu")
    inputs = {"normal scores": features(raw, trained.modality), "standardized": features(raw, plain)}
    inputs[both] = beside(inputs["normal scores"], inputs["standardized"])
    for name, encoders in (("untrained", untrained), ("trained", trained.encoders)):
        frozen = Pooled(FrozenEncoders.of(encoders))
        inputs[f"frozen, {name}"] = features(frozen, trained.modality)
        inputs[f"raw + frozen, {name}"] = beside(inputs[both], inputs[f"frozen, {name}"])

    draws, scores = evaluator._draws(y), {}

    def measure(name: str, fit: Any, given: tuple[np.ndarray, np.ndarray], *against: str) -> None:
        """Print a line: the mean over the draws, and the gains over the named models."""
        x, queries = given
        scores[name] = np.array([score(fit(x[rows], y[rows], queries), truth) for rows in draws])
        line = f"{name} | {scores[name].mean():.2f} +- {scores[name].std():.2f}"
        for other in against:
            gain = scores[name] - scores[other]
            low, high = mean_interval(gain)
            line += f" | over {other}: {gain.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
        print(line, flush=True)

    for name in ("normal scores", "standardized", both):
        measure(f"linear, {name}", linear(y), inputs[name])
    if not args.no_trees:
        for name, fit in trees(y).items():
            measure(name, fit, inputs["standardized"])
    best = max(scores, key=lambda name: scores[name].mean())
    for name in ("frozen", "raw + frozen"):
        measure(f"{name}, untrained", linear(y), inputs[f"{name}, untrained"], best)
        measure(f"{name}, trained", linear(y), inputs[f"{name}, trained"], best, f"{name}, untrained")


def beside(*pairs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Features of labeled rows and of queries, side by side."""
    return np.concatenate([p[0] for p in pairs], 1), np.concatenate([p[1] for p in pairs], 1)


if __name__ == "__main__":
    main()
