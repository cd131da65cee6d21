"""Tables with few labels: pretrained networks, fine-tuned, beside one from random weights and classical models.

    OMP_NUM_THREADS=1 python -m benchmarks.few_label_tables --data FOLDER [--split test]
        [--tables adult california digits breast_cancer] [--draws 8] [--steps 2000] [--epochs 100]

FOLDER holds adult-train.csv, adult-test.csv, california-train.parquet, california-test.parquet; digits and
breast_cancer, the largest tables of classes that scikit-learn brings along, are halved at random into training and
test rows. A network of SCARF's shape learns each table without its label by `tabular/scarf` and by `tabular/vime`.
Then, for every draw of labeled training rows (1 %, 5 %, and of classes 50 of each; amounts below 20 rows are left out),
it is fine-tuned by the evaluator `fine_tune` with its recipe `scarf`, as is one from random weights. Beside it stand a
linear model, a random forest and gradient boosting (HistGradientBoosting), fitted to the same rows and tuned on them by
cross-validation.

Percent: accuracy, or R2 with the variance of all test rows. The best classical model is the one with the best mean on
the test rows, which favors it. 95 % intervals of differences are of 2,000 draws of label draws and test rows, both at
once (Owen 2007, arXiv 0711.1256, which errs to the wide side). One pretraining each. A finished pretraining in
runs/few_label_tables is not repeated. TabICL is left out.
Shapes: S training rows, D draws, Q test rows, C classes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multissl import registry
from multissl.configs import tabular
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.modality import Modality
from multissl.encoders.mlp import MLPEncoder
from multissl.evaluators.few_labels import Fit, linear, searched, trees
from multissl.evaluators.fine_tune import FEWEST, FineTune, Labeled
from multissl.inference import drawn, featurized
from multissl.modalities.tabular.adapter import Tabular
from multissl.recipe import Recipe
from multissl.run.model import load, untrained
from multissl.run.train import train

FOLDER = Path("runs/few_label_tables")
WIDTHS = (256, 256, 256, 256)
"""Of SCARF's encoder."""
LABELS = {
    "adult": "income", "california": "median_house_value", "digits": "target", "breast_cancer": "target",
}  # fmt: skip
RANDOM = "random weights"
Amount = tuple[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]
"""What it is called, and what draws so many of the labels [S]: positions."""


class Split(NamedTuple):
    """The labeled rows of a split."""

    x: np.ndarray
    """Cells, categories one-hot, numbers as normal scores and standardized beside each other, float64 [S, F]."""
    plain: np.ndarray
    """The same with standardized numbers alone."""
    targets: Tensor
    """int64 classes or float64 quantities [S]"""
    places: list[int]

    def labeled(self, rows: np.ndarray) -> Labeled:
        """Return some of them as the evaluator wants them."""
        places = [self.places[row] for row in rows]
        return Labeled(places, self.targets[rows], np.full(len(rows), -1), WIDTHS[-1])


def halved(name: str, folder: Path) -> Path:
    """Write a table of scikit-learn as training and test rows; return the file of the first."""
    table: Any = getattr(registry.require("sklearn.datasets"), f"load_{name}")(as_frame=True).frame
    table = table.sample(frac=1, random_state=0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", table[: len(table) // 2]), ("test", table[len(table) // 2 :])):
        rows.to_csv(folder / f"{name}-{split}.csv", index=False)
    return folder / f"{name}-train.csv"


def file_of(name: str, folder: Path) -> Path:
    """Return the file of a table's training rows."""
    files = {"adult": folder / "adult-train.csv", "california": folder / "california-train.parquet"}
    return files[name] if name in files else halved(name, FOLDER)


def recipe_of(method: str, name: str, folder: Path, steps: int) -> Recipe:
    """Return `tabular/scarf` or `tabular/vime` on a table, with the network of the first."""
    made = {"scarf": tabular.scarf, "vime": tabular.vime}[method]()
    modality = made.modality.replace(data=str(file_of(name, folder)), label=LABELS[name])
    return made.replace(
        modality=modality, encoders={"tabular": MLPEncoder.Config(dims=WIDTHS)}, steps=steps, evals={}, loggers={},
        data=made.data.replace(workers=0),
    )  # fmt: skip


def read(modality: Modality, plain: Modality, split: str) -> Split:
    """Return the labeled rows of a split, with the cells of two modalities that scale numbers in two ways."""
    places = drawn(len(modality.dataset(split)), 0)
    scores, standard = (
        featurized(m.baselines()["raw"], m, split, places).features.double().numpy()
        for m in (modality, plain)
    )
    assert isinstance(modality, Tabular)
    quantity = modality.targets(split)
    classes = torch.tensor([modality.dataset(split)[place].label for place in places])
    targets = classes if quantity is None else quantity[places].double()
    known = (classes >= 0) if quantity is None else targets.isfinite()
    if not known.all():
        raise ValueError(f"{int((~known).sum())} rows of the {split} split have no label")
    return Split(np.concatenate([scores, standard], 1), standard, targets, places)


def amounts(y: np.ndarray) -> list[Amount]:
    """Return the numbers of labels: shares of all rows, with one of each class, and 50 of each class."""
    classes = np.unique(y) if y.dtype.kind != "f" else np.array([])

    def share(count: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
        def draw(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
            order = random.permutation(len(labels))
            first = [order[labels[order] == c][0] for c in classes]
            return np.array([*first, *order[~np.isin(order, first)][: count - len(first)]])

        return draw

    def balanced(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        order = random.permutation(len(labels))
        return random.permutation(np.concatenate([order[labels[order] == c][:50] for c in classes]))

    counts = {f"{percent} %": round(len(y) * percent / 100) for percent in (1, 5)}
    found: list[Amount] = [
        (f"{what} ({n} rows)", share(n)) for what, n in counts.items() if n >= max(FEWEST, len(classes))
    ]
    if len(classes):
        found.append((f"50 of each class ({50 * len(classes)} rows)", balanced))
    return found


def boosting(y: np.ndarray) -> Fit:
    """Return gradient boosting on histograms, the size of its trees chosen by cross-validation on the draw."""
    models = registry.require("sklearn.ensemble")
    build = (
        models.HistGradientBoostingRegressor if y.dtype.kind == "f" else models.HistGradientBoostingClassifier
    )
    model = build(max_iter=60, min_samples_leaf=5, random_state=0)
    grid = {"max_leaf_nodes": [4, 16]}
    return lambda x, labels, queries: searched(model, grid, x, labels, queries, y)


def row_scores(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return what each test row [Q] adds to accuracy or R2, in percent, of scores [Q, C] or values [Q]."""
    if truth.dtype.kind == "f":
        return 100 * (1 - (guess - truth) ** 2 / truth.var())
    return 100.0 * (guess.argmax(1) == truth)


def told_gain(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return the mean difference of scores [D, Q], with the interval over draws and test rows."""
    difference = ours - theirs
    random = np.random.default_rng(0)
    draws, rows = (random.multinomial(n, np.full(n, 1 / n), 2_000) / n for n in difference.shape)
    low, high = np.percentile(np.einsum("bq,bq->b", draws @ difference, rows), [2.5, 97.5])
    return f"{difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def measured(
    networks: dict[str, Encoders], modality: Modality, splits: tuple[Split, Split], amount: Amount,
    args: argparse.Namespace,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the scores [D, Q] of every model with so many labels."""
    pool, test = splits
    y, truth = pool.targets.numpy(), test.targets.numpy()
    quantity = y.dtype.kind == "f"
    tuner = FineTune.Config(recipe="scarf", epochs=args.epochs, split=args.split).build()
    assert isinstance(tuner, FineTune)
    scored = test.labeled(np.arange(len(truth)))
    found: dict[str, list[np.ndarray]] = {}
    for number in range(args.draws):
        rows = amount[1](y, np.random.default_rng((2026, number)))
        made = {
            "linear": linear(y)(pool.x[rows], y[rows], test.x),
            "forest": trees(y)["forest"](pool.plain[rows], y[rows], test.plain),
            "boosting": boosting(y)(pool.plain[rows], y[rows], test.plain),
        }
        for name, encoders in networks.items():
            guess = tuner.predictions(
                FrozenEncoders.of(encoders), modality, pool.labeled(rows), scored, number
            )
            made[name] = guess[:, 0] if quantity else guess
        for name, guess in made.items():
            found.setdefault(name, []).append(row_scores(guess, truth))
    return {name: np.stack(scores) for name, scores in found.items()}


def tell(title: str, scores: dict[str, np.ndarray]) -> None:
    """Print the mean of every model over draws and test rows, and the gains of the pretrained ones."""
    print(title)
    classical = ("linear", "forest", "boosting")
    best = max(classical, key=lambda name: scores[name].mean())
    for name, values in scores.items():
        line = f"  {name:14} {values.mean():6.2f} +- {values.mean(1).std(ddof=1):.2f} over draws"
        if name not in classical:
            line += f" | over {best} {told_gain(values, scores[best])}"
        if name not in (*classical, RANDOM):
            line += f" | over {RANDOM} {told_gain(values, scores[RANDOM])}"
        print(line, flush=True)


def table(name: str, args: argparse.Namespace) -> None:
    """Train what is missing for a table, and print its figures."""
    recipes = {m: recipe_of(m, name, args.data, args.steps) for m in ("scarf", "vime")}
    networks: dict[str, Encoders] = {}
    began = time.process_time()
    start = untrained(recipes["scarf"])
    for method, recipe in recipes.items():
        out = FOLDER / f"{name}-{method}-{args.steps}"
        train(recipe, out)
        networks[method] = load(out).encoders
    networks[RANDOM] = start.encoders
    plain = start.recipe.modality.replace(scaling="standard").build().fit()
    splits = (read(start.modality, plain, "train"), read(start.modality, plain, args.split))
    print(
        f"{name}: {len(splits[0].places)} training rows, {len(splits[1].places)} of the {args.split} split",
        end="; ",
    )
    print(
        f"two pretrainings of {args.steps} steps: {(time.process_time() - began) / 60:.1f} minutes",
        flush=True,
    )
    for amount in amounts(splits[0].targets.numpy()):
        began = time.process_time()
        scores = measured(networks, start.modality, splits, amount, args)
        spent = (time.process_time() - began) / 60
        tell(f" {amount[0]}, {args.draws} draws, {spent:.1f} minutes", scores)


def main() -> None:
    """Print the figures of all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", choices=LABELS, default=[*LABELS])
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2_000, help="of pretraining")
    parser.add_argument("--epochs", type=float, default=100, help="of fine-tuning; SCARF: at most 200")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    for name in args.tables:
        table(name, args)


if __name__ == "__main__":
    main()
