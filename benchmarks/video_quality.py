"""What a run on videos learned of motion: its encoder beside the untrained one and classical features.

    python benchmarks/video_quality.py prepare camera-motion-train.tar FOLDER [--side 64]
    multissl train video/infonce --data FOLDER/list.csv [OPTIONS] --out RUN
    python benchmarks/video_quality.py measure RUN [--split test] [--pairs] [--data FOLDER/list.csv]

`prepare` decodes and shrinks short videos once, train and test, because on one core decoding takes longer than a small
encoder. `measure` takes three inputs alike: the clip, its middle frame standing still, and its frames in a shuffled
order (the probe is fitted on the same kind of input); an encoder that does as well on the latter two has not learned
motion. k-NN and linear probe are those of the evaluators; classifier and bank see the train split alone. `--pairs` is
for labels where 2k and 2k+1 are one motion and its reverse: it tells how often the kind of motion is right, and how
often the way it goes is right among those (50 is chance). Disorder hides the way, not the kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.evaluators.knn import knn_accuracy
from multissl.evaluators.linear_probe import LinearProbe, choose_l2, fit_logistic, standardized
from multissl.inference import Pooled, labeled_split
from multissl.run.model import load


def prepare(data: str, folder: Path, side: int) -> None:
    """The videos of the train and test files as arrays [T, side, side, 3] and a list of them."""
    from multissl.modalities.video.files import frames_of, load_clip, open_videos

    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,split"]
    for tag, split in (("train", "all"), ("test", "test")):
        source = open_videos(data, split)
        for i in range(len(source)):
            clip = load_clip(source[i])
            x = F.interpolate(
                frames_of(clip, range(len(clip.times))), (side, side), mode="bicubic", antialias=True
            )
            np.save(folder / f"{tag}{i:04}.npy", x.permute(0, 2, 3, 1).contiguous().numpy())
            lines.append(f"{tag}{i:04}.npy,{source[i].label},{tag}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")


def predictions(x: Tensor, y: Tensor, queries: Tensor, classes: int) -> Tensor:
    """Classes [Q] that the linear probe gives to queries [Q, F] after x [S, F], y [S]."""
    l2 = choose_l2(x, y, LinearProbe.Config().l2, classes)
    x, queries = standardized(x, queries)
    weight, bias = fit_logistic(x, y, l2, classes)
    return (queries @ weight.T + bias).argmax(1)


def line(name: str, featurize: Callable[[Views], Tensor], modality: Any, split: str, pairs: bool) -> str:
    """The figures of one feature on a split, in percent."""
    x, y = labeled_split(featurize, modality, "train")
    queries, truth = labeled_split(featurize, modality, split)
    found = predictions(x, y, queries, 1 + int(max(y.max(), truth.max())))
    figures = [knn_accuracy(x, y, queries, truth)[20], 100 * (found == truth).double().mean().item()]
    if pairs:
        kind = found // 2 == truth // 2
        figures += [100 * kind.double().mean().item(), 100 * (found == truth)[kind].double().mean().item()]
    return f"{name} | " + " | ".join(f"{f:.1f}" for f in figures)


def measure(folder: str, data: str, split: str, pairs: bool) -> None:
    """Print a table for each kind of input."""
    from multissl.contract.encoder import build_encoders
    from multissl.contract.evaluator import FrozenEncoders

    model = load(folder)
    torch.manual_seed(model.recipe.seed)
    untrained = build_encoders(model.recipe.encoders, model.modality.streams()).to(model.device)
    for clean in ("clip", "frame", "shuffled"):
        cfg: Any = model.recipe.modality.replace(clean=clean)
        modality = (cfg.replace(data=data) if data else cfg).build()
        modality.restore(model.modality.state())
        print(f"\n{clean} | k-NN | linear" + (" | kind | way" if pairs else ""), flush=True)
        for name, encoders in (("untrained", FrozenEncoders.of(untrained)), ("trained", model.frozen())):
            print(line(name, Pooled(encoders), modality, split, pairs), flush=True)
        if clean == "clip":
            for name, baseline in modality.baselines().items():
                print(line(name, baseline, modality, split, pairs), flush=True)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare")
    first.add_argument("data", help="a train file; the test file beside it is named like it")
    first.add_argument("folder", type=Path)
    first.add_argument("--side", type=int, default=64)
    second = commands.add_parser("measure")
    second.add_argument("run")
    second.add_argument("--data", default="", help="other videos than those of the run")
    second.add_argument("--split", default="val", help="test is to be read once, when all choices are made")
    second.add_argument("--pairs", action="store_true")
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.data, args.folder, args.side)
    else:
        measure(args.run, args.data, args.split, args.pairs)


if __name__ == "__main__":
    main()
