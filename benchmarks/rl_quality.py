"""What a run on frames of a game learned of its state: ridge regression R2 of its code beside baselines of equal width.

    multissl train rl/pong --out RUN
    python benchmarks/rl_quality.py RUN [--split test] [--queries 0]

One function measures every line (`multissl.evaluators.state_probe`): frames with a ball in play, regression on
episodes of the train split, strength chosen on a tenth of those episodes, R2 in percent on the episodes of another
split. Lines: the untrained encoder, the trained encoder, as many principal components of the pixels as the encoder is
wide, all pixels (averaged to at most 21 x 21 of each frame). The control is no encoder at all: what the true place of a
paddle tells of the ball, for a paddle that follows the ball gives part of its height away.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from multissl.evaluators.state_probe import StateProbe, principal, r2_of
from multissl.inference import Pooled
from multissl.run.model import load


def main() -> None:
    """Print a line a feature."""
    from multissl.contract.encoder import build_encoders
    from multissl.contract.evaluator import FrozenEncoders

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--split", default="val", help="test is to be read once, when all choices are made")
    parser.add_argument("--train", type=int, default=10_000, help="training frames; 0: all")
    parser.add_argument("--queries", type=int, default=0, help="frames of the split; 0: all")
    args = parser.parse_args()
    model = load(args.run)
    modality: Any = model.modality
    probe: StateProbe = StateProbe(
        StateProbe.Config(split=args.split, train=args.train, queries=args.queries)
    )
    names = modality.states(args.split)[1]
    balls = [n for n in names if n.startswith("ball")]
    paddles = [n for n in names if n not in balls]

    def line(label: str, x: Tensor, y: Tensor, groups: Tensor, queries: Tensor, truth: Tensor) -> None:
        found = 100 * r2_of(x, y, groups, queries, truth, probe.cfg.l2)
        each = dict(zip(names, found.tolist(), strict=True))
        figures = [*(each[n] for n in balls), sum(each[n] for n in balls) / len(balls)]
        figures += [each[n] for n in paddles]
        print(f"{label} | " + " | ".join(f"{f:.1f}" for f in figures), flush=True)

    torch.manual_seed(model.recipe.seed)
    untrained = build_encoders(model.recipe.encoders, modality.streams()).to(model.device)
    x, y, groups, queries, truth, _ = probe.parts(modality.baselines()["raw"], modality, "cpu")
    print(f"{len(y)} frames of {len(groups.unique())} episodes against {len(truth)} of {args.split}")
    print(f"R2, % | {' | '.join(balls)} | ball | {' | '.join(paddles)}")
    for label, encoders in (("untrained", FrozenEncoders.of(untrained)), ("trained", model.frozen())):
        parts = probe.parts(Pooled(encoders), modality, model.device)
        line(label, *parts[:5])
    width = parts[0].shape[1]
    reduced = principal(x, queries, width)
    line(f"{width} principal components", reduced[0], y, groups, reduced[1], truth)
    line(f"{x.shape[1]} pixels", x, y, groups, queries, truth)
    for paddle in paddles:
        i = names.index(paddle)
        line(f"{paddle} alone, as it is", y[:, i : i + 1], y, groups, truth[:, i : i + 1], truth)


if __name__ == "__main__":
    main()
