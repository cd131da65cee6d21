"""Sounds of speakers and folds that pretraining never met: what a frozen encoder knows of digits and of scenes.

    python benchmarks/audio_quality.py digits --data fsdd-train.tar [--groups lucas george] [--classical]
    python benchmarks/audio_quality.py scenes --data esc10-train.tar esc10-test.tar [--groups 1]

A line for each group that is left out: one speaker (digits; recipe audio/words) or one official fold (scenes; recipe
audio/scenes) is absent from pretraining, from the probe's training and from the choice of its strength, which is made
by leaving the other groups out in turn, and then read once. Untrained encoder, trained encoder and, if asked, classical
features (digits: 13 cepstral coefficients of centered bands at 16 moments of the word; scenes: mean and deviation
of the bands) are measured by one function. `recording` is the share of recordings recognized by their other half.
Scenes are decoded once, to wav. A finished run in runs/audio_quality is not repeated.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import tarfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.knn import knn_accuracy
from multissl.evaluators.linear_probe import probe_accuracy
from multissl.evaluators.recording_probe import RecordingProbe
from multissl.inference import Featurize, Pooled, featurize_places
from multissl.registry import require
from multissl.run.model import load

FOLDER = Path("runs/audio_quality")
DIGITS = {"label_pattern": r"(\d)_[a-z]+_\d+", "group_pattern": r"\d_([a-z]+)_"}
FOLDS = {"group_pattern": r"(\d)-\d+-[A-Z]"}
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
GROUPS = {"digits": ("george", "jackson", "lucas", "nicolas", "yweweler"), "scenes": ("1", "2", "3", "4")}


def cepstra(views: Views) -> Tensor:
    """Cepstral coefficients 1 to 13 of each band less its mean, at 16 moments: [R, 208]."""
    x = views.x[:, 0] - views.x[:, 0].mean(1, keepdim=True)  # [R, T, F]
    mels, order = x.shape[2], torch.arange(1, 14)
    basis = torch.cos(math.pi / mels * order * (torch.arange(mels)[:, None] + 0.5))  # [F, 13]
    return F.adaptive_avg_pool1d((x @ basis).mT, 16).flatten(1)


def unpacked(shards: list[str], folder: Path) -> str:
    """The recordings of tar files as wav files in a folder for each class."""
    soundfile = require("soundfile")

    for shard in shards if not folder.exists() else []:
        with tarfile.open(shard) as tar:
            for member in tar:
                path = (folder / member.name).with_suffix(".wav")
                path.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    soundfile.write(path, *soundfile.read(io.BytesIO(content.read())))
    return str(folder)


def recipe(task: str, data: str, group: str) -> Any:
    """The task's recipe with a group left out, without evaluations of its own."""
    from multissl.configs import audio

    made = audio.words() if task == "digits" else audio.scenes()
    names = DIGITS if task == "digits" else FOLDS
    made.modality = made.modality.replace(data=data, hold_out=group, **names)
    made.data, made.loggers, made.evals = made.data.replace(workers=0), {}, {}
    return made


def figures(featurize: Featurize, modality: Modality) -> list[float]:
    """Linear probe and k-NN of the group that was left out, in percent."""
    sides = []
    for split in ("train", "val"):
        data = modality.dataset(split)
        x, y, kept = featurize_places(featurize, modality, split, list(range(len(data))))
        sides.append((x, y, torch.tensor([data[i].group for i in kept])))
    (x, y, groups), (queries, truth, _) = sides
    return [
        probe_accuracy(x, y, queries, truth, STRENGTHS, 100, groups),
        knn_accuracy(x, y, queries, truth)[20],
    ]


def encoded(encoders: Encoders, modality: Modality, scenes: bool) -> list[float]:
    """The figures of encoders, and how many recordings they recognize."""
    frozen = FrozenEncoders.of(encoders)
    found = figures(Pooled(frozen), modality)
    probe = RecordingProbe(RecordingProbe.Config())
    return found + ([probe.run(frozen, modality, Progress(step=0, total=1))["same"]] if scenes else [])


def main() -> None:
    """Train what is missing and print a line for each group and encoder."""
    from multissl.build import build
    from multissl.run import train as run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=list(GROUPS))
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--groups", nargs="+", help="which to leave out; default: each in turn")
    parser.add_argument("--steps", type=int, default=0, help="other than the recipe's")
    parser.add_argument("--classical", action="store_true", help="fit the classical features too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    scenes = args.task == "scenes"
    data = unpacked(args.data, FOLDER / "scenes") if scenes else args.data[0]
    print("left out | encoder | linear | k-NN" + (" | recording" if scenes else ""), flush=True)
    table: dict[str, list[list[float]]] = {}
    for group in args.groups or GROUPS[args.task]:
        made = recipe(args.task, data, group)
        made = made.replace(seed=args.seed, steps=args.steps or made.steps)
        parts = build(made, torch.device("cpu"))  # the weights that the run begins with
        rows = {"untrained": encoded(parts.learner.encoders, parts.modality, scenes)}
        out = FOLDER / f"{args.task}-{group}-{made.steps}-{args.seed}"
        run.train(made, out)
        rows["trained"] = encoded(load(out).encoders, parts.modality, scenes)
        if args.classical:
            baseline = parts.modality.baselines()["mean_std"] if scenes else cepstra
            rows["classical"] = figures(baseline, parts.modality)
        for name, found in rows.items():
            table.setdefault(name, []).append(found)
            print(" | ".join([group, name, *(f"{f:.1f}" for f in found)]), flush=True)
    for name, lines in table.items():
        means = [statistics.mean(column) for column in zip(*lines, strict=True)]
        print(" | ".join(["mean", name, *(f"{f:.1f}" for f in means)]))


if __name__ == "__main__":
    main()
