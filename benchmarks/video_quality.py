"""What a run on videos learned of motion: its encoder beside the untrained one and classical features.

    multissl train video/infonce --data camera-motion-train.tar [OPTIONS] --out RUN
    python benchmarks/video_quality.py RUN [--split test] [--pairs]

Three inputs are measured alike: the clip, its middle frame standing still, and its frames in a shuffled order (the
probe is fitted on the same kind of input). An encoder that does as well on the latter two has not learned motion.
k-NN and linear probe are those of the evaluators; classifier and bank see the train split alone. `--pairs` is for
labels where 2k and 2k+1 are one motion and its reverse: it tells how often the kind of motion is right, and how often
the way it goes is right among those (50 is chance). Disorder hides the way, not the kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from multissl.evaluators.base import evaluating, labelled_split
from multissl.evaluators.knn import knn_accuracy
from multissl.evaluators.linear_probe import LinearProbe, choose_l2, fit_logistic, standardised
from multissl.types import Views


def predictions(x: Tensor, y: Tensor, queries: Tensor, classes: int) -> Tensor:
    """Classes [Q] that the linear probe gives to queries [Q, F] after x [S, F], y [S]."""
    l2 = choose_l2(x, y, LinearProbe.Config().l2, classes)
    x, queries = standardised(x, queries)
    weight, bias = fit_logistic(x, y, l2, classes)
    return (queries @ weight.T + bias).argmax(1)


def line(name: str, featurize: Callable[[Views], Tensor], modality: Any, split: str, pairs: bool) -> str:
    """The figures of one feature on a split, in percent."""
    x, y = labelled_split(featurize, modality, "train")
    queries, truth = labelled_split(featurize, modality, split)
    found = predictions(x, y, queries, 1 + int(max(y.max(), truth.max())))
    figures = [knn_accuracy(x, y, queries, truth)[20], 100 * (found == truth).double().mean().item()]
    if pairs:
        kind = found // 2 == truth // 2
        figures += [100 * kind.double().mean().item(), 100 * (found == truth)[kind].double().mean().item()]
    return f"{name} | " + " | ".join(f"{f:.1f}" for f in figures)


def main() -> None:
    """Print a table for each kind of input."""
    from multissl import run
    from multissl.encoders.base import build_encoders
    from multissl.engine.learner import Handle

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--split", default="val", help="test is to be read once, when all choices are made")
    parser.add_argument("--pairs", action="store_true")
    args = parser.parse_args()
    model = run.load(args.run)
    torch.manual_seed(model.recipe.seed)
    untrained = build_encoders(model.recipe.encoders, model.modality.streams())
    for clean in ("clip", "frame", "shuffled"):
        modality = model.recipe.modality.replace(clean=clean).build()
        modality.restore(model.modality.state())
        print(f"\n{clean} | k-NN | linear" + (" | kind | way" if args.pairs else ""), flush=True)
        for name, handle in (
            ("untrained", Handle(untrained.encode, model.device)),
            ("trained", model.handle()),
        ):
            with evaluating(handle) as featurize:
                print(line(name, featurize, modality, args.split, args.pairs), flush=True)
        if clean == "clip":
            for name, floor in modality.floors().items():
                print(line(name, floor, modality, args.split, args.pairs), flush=True)


if __name__ == "__main__":
    main()
