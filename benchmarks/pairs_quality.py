"""Pairs of real data: does what two or three towers share hold on samples, and on classes, that training never met?

    python benchmarks/pairs_quality.py unseen --data caltech101-train.tar caltech101-test.tar
    python benchmarks/pairs_quality.py digits --data mnist-train.parquet fsdd-train.tar
    python benchmarks/pairs_quality.py three  --data mnist-train.parquet fsdd-train.tar
    python benchmarks/pairs_quality.py scenes --data nlvr-train.parquet nlvr-test.parquet
    python benchmarks/pairs_quality.py films  --data grid-av-demo.tar
    python benchmarks/pairs_quality.py slip   [--seeds 3]

unseen: photos and what they show, in words of `DESCRIBED`; every fifth class is kept out of training, and its photos
    are told apart by its description alone.
digits: pictures and spoken numbers of one digit, drawn anew each time, of which there are ten: chance is 10 %.
three:  the same and the digit's word, which is the label.
scenes: drawn scenes and sentences that are true of them, whole scenes held out; scenes of the test file that the
    train file has too are dropped. The three boxes of a scene, side by side in the file, are laid out as a square.
films:  the sound and the frames of talking faces, whole speakers held out; 40 clips, so no more than a smoke test.
slip:   CLIP alone and SLIP on the built-in pairs, at equal steps and at equal time.

Each prints the untrained towers', the trained ones' and chance's figures, p against shuffled pairs, and the linear
probe of each tower before and after, beside the raw input's. Without `--split test` the test files are not read. Files
go to runs/pairs_quality; a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow

from multissl.build import build
from multissl.configs import audio_video, image_audio, image_text, image_text_audio
from multissl.contract.evaluator import Evaluator
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.linear_probe import LinearProbe, probe_accuracy
from multissl.evaluators.retrieval import Retrieval
from multissl.evaluators.zero_shot import ZeroShot
from multissl.inference import Featurize, labeled_split
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.text.adapter import Text
from multissl.recipe import Recipe
from multissl.registry import require
from multissl.run import train as run
from multissl.run.model import load

FOLDER = Path("runs/pairs_quality")
DESCRIBED = Path(__file__).parent / "caltech101.csv"
"""A line a class: its name and what it looks like, in words that classes share."""

Measures = dict[str, Callable[[str], Evaluator]]
"""Evaluators by name, made for a split."""


class NewClasses(LinearProbe):
    """The probe within classes that training never met: fitted to one half of them, or to all for the test file's."""

    def accuracy(self, featurize: Featurize, modality: Modality, device: torch.device | str) -> float:
        """`top1` in percent."""
        cfg, place = self.cfg, {"device": device, "stream": self.cfg.stream}
        x, y = labeled_split(featurize, modality, "val", **place)
        if cfg.split == "val":
            queries, truth, x, y = x[1::2], y[1::2], x[::2], y[::2]
        else:
            queries, truth = labeled_split(featurize, modality, cfg.split, **place)
        return probe_accuracy(x, y, queries, truth, cfg.l2, cfg.max_steps)


def probes(*streams: str, kind: type[LinearProbe] = LinearProbe) -> Measures:
    """A probe of each tower's encoder alone."""

    def of(stream: str) -> Callable[[str], Evaluator]:
        return lambda split: kind(LinearProbe.Config(stream=stream, split=split, train=2000, classical=True))

    return {f"probe of {stream}": of(stream) for stream in streams}


def described() -> dict[str, str]:
    """What is said of each class."""
    with DESCRIBED.open(newline="") as file:
        return {row["class"]: row["description"] for row in csv.DictReader(file)}


def unseen_classes() -> list[str]:
    """Every fifth class by name, 20 of them."""
    return sorted(described())[2::5]


def photos(train: str, test: str) -> Path:
    """A table of the photos: seen classes of the train file train, unseen ones validate or, of the test file, test."""
    folder, words, away = FOLDER / "photos", described(), set(unseen_classes())
    if (folder / "list.csv").exists():
        return folder / "list.csv"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [["image", "label", "split"]]
    for name, new in ((train, "val"), (test, "test")):
        with tarfile.open(name) as tar:
            for member in tar:
                kind, _, file = member.name.partition("/")
                if not member.isfile() or (kind not in away and new == "test"):
                    continue
                path = folder / f"{new}-{kind}-{Path(file).name}"
                path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
                lines.append([path.name, words[kind], new if kind in away else "train"])
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder / "list.csv"


def scenes_of(train: str, test: str) -> Path:
    """The true sentences of both files as one table; test scenes that the train file has are left out."""
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    out = FOLDER / "scenes-square.parquet"
    if out.exists():
        return out
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows, known = [], set()
    for name, split in ((train, "train"), (test, "test")):
        for row in parquet.read_table(name).to_pylist():
            digest = hashlib.sha256(row["image"]["bytes"]).hexdigest()
            if split == "train":
                known.add(digest)
            elif digest in known:
                continue
            if row["label"] == 1:
                # every tenth scene of the train file validates, with all its orders of boxes
                side = "val" if split == "train" and int(row["group"]) % 10 == 0 else split
                kept = {"image": squared(row["image"]["bytes"]), "text": row["sentence"].strip().lower()}
                # for the probes alone: how the objects lie, and how many are yellow
                kept["label"] = f"{('scattered', 'towers')[row['is_tower']]} {row['n_yellow']}"
                rows.append({**kept, "split": side, "group": f"{split}{row['group']}"})
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out


def squared(scene: bytes) -> bytes:
    """A scene of 400 x 100 pixels, three boxes and what parts them, as 200 x 200 pixels: two boxes above, one below."""
    strip, made = Pillow.open(io.BytesIO(scene)).convert("RGB"), io.BytesIO()
    square = Pillow.new("RGB", (200, 200), (128, 128, 128))
    for left, place in ((0, (0, 0)), (150, (100, 0)), (300, (50, 100))):
        square.paste(strip.crop((left, 0, left + 100, 100)), place)
    square.save(made, "PNG")
    return made.getvalue()


def films_of(archive: str) -> Path:
    """The clips as files and a table of them; the speakers that are not the most frequent one validate."""
    folder = FOLDER / "films"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        names = sorted(m.name for m in tar if m.name.endswith(".mp4"))
        for name in names:
            (folder / name).write_bytes(tar.extractfile(name).read())  # type: ignore[union-attr]
    speakers = [n.partition("_")[0] for n in names]
    many = statistics.mode(speakers)
    lines = [["audio", "video", "split", "group"]]
    lines += [[n, n, "train" if s == many else "val", n] for n, s in zip(names, speakers, strict=True)]
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder / "list.csv"


def members_of(made: Recipe) -> dict[str, Any]:
    """The modalities of a recipe of pairs, by stream."""
    assert isinstance(made.modality, Paired.Config)
    return made.modality.members


# long: one branch per task, compared with one another
def recipe_of(task: str, data: list[str]) -> tuple[Recipe, Measures]:
    """The recipe of a task and its measures."""
    both: Measures = {"retrieval": lambda split: Retrieval.Config(split=split, candidates=0).build()}
    if task == "unseen":
        made = image_text.clip()
        image = Image.Config(size=64, local_size=32, patch=8, global_scale=(0.4, 1.0))
        text = Text.Config(length=32, local_length=16, pack=False, vocab=600, lower=True)
        made.modality = made.modality.replace(
            members={"image": image, "text": text},
            data=(str(photos(*data)),),
            prompts={"text": ("{}", "a photo of {}", "a picture of {}")},
        )
        made.objective = made.objective.replace(view="global")
        names = tuple(described()[c] for c in unseen_classes())
        both = {"zero_shot": lambda split: ZeroShot.Config(split=split, classes=names, samples=0).build()}
        return made.replace(steps=1500, batch_size=64), both | probes("image", kind=NewClasses)
    if task in ("digits", "three"):
        made = image_audio.clip() if task == "digits" else image_text_audio.clip()
        shown = members_of(made)
        members = {
            "image": shown["image"].replace(data=data[0], size=28, local_size=16),
            "audio": shown["audio"].replace(data=data[1], rate=8000, label_pattern=r"(\d)_[a-z]+_\d+"),
        }
        if task == "three":
            members["text"] = shown["text"]
        made.modality = made.modality.replace(members=members)
        both["retrieval"] = lambda split: Retrieval.Config(split=split, candidates=500).build()
        return made.replace(steps=400), both | probes("image", "audio")
    if task == "scenes":
        made = image_text.clip()
        # colors and edges are what sentences speak of
        plain: dict[str, Any] = {
            "hue": 0.0,
            "saturation": 0.0,
            "grayscale": 0.0,
            "solarize": 0.0,
            "blur": "none",
        }
        image = Image.Config(size=96, local_size=32, patch=8, global_scale=(0.8, 1.0), **plain)
        text = Text.Config(length=48, local_length=16, pack=False, vocab=600, lower=True)
        made.modality = made.modality.replace(
            members={"image": image, "text": text}, data=(str(scenes_of(*data)),)
        )
        made.objective = made.objective.replace(view="global")
        made.optim = made.optim.replace(lr=5e-4)  # 2e-3 ended in one point
        return made.replace(steps=1200), both | probes("image", "text")
    made = audio_video.clip()
    # when speech begins and ends is most of what both streams tell
    shown = members_of(made)
    members = {
        "audio": shown["audio"].replace(frames=240),
        "video": shown["video"].replace(frames=12, seconds=2.4),
    }
    made.modality = made.modality.replace(data=(str(films_of(data[0])),), members=members)
    made.optim = made.optim.replace(lr=3e-4)
    return made.replace(steps=600, batch_size=16), both


def report(made: Recipe, out: Path, measures: Measures, split: str) -> None:
    """Train what is missing; print every measure of the untrained and of the trained towers."""
    made = made.replace(evals={}, loggers={}, data=made.data.replace(workers=0))
    parts, cpu = build(made, torch.device("cpu")), torch.device("cpu")
    run.train(made, out)
    model = load(out)
    for name, measure in measures.items():
        evaluator = measure(split)
        for baseline, value in evaluator.baselines(model.modality).items():
            print(f"{split} | {name} | {baseline} input | {value:.3g}", flush=True)
        for which, encoders, modality in (
            ("untrained", parts.learner.frozen("exported", cpu), parts.modality),
            ("trained", model.frozen(), model.modality),
        ):
            found = evaluator.run(encoders, modality, Progress(step=0, total=1))
            told = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
            print(f"{split} | {name} | {which} | {told}", flush=True)


def slip(seeds: int, steps: int) -> None:
    """CLIP and SLIP on the built-in pairs, a line a run."""
    probe = LinearProbe.Config(stream="image", train=3000)
    table: dict[str, list[tuple[float, float]]] = {}
    print("seed | run | steps | seconds | recall@1 | p | probe of image")
    for seed in range(seeds):
        seconds: dict[str, float] = {}
        rows = (
            ("clip", "clip"),
            ("slip", "slip"),
            ("slip in clip's time", "slip"),
            ("clip in slip's time", "clip"),
        )
        for name, task in rows:
            made = {"clip": image_text.clip, "slip": image_text.slip}[task]().replace(
                seed=seed, evals={}, loggers={}
            )
            made.data, made.steps = made.data.replace(workers=0), steps
            if name != task:
                other = "clip" if task == "slip" else "slip"
                made.steps = round(made.steps * seconds[other] / seconds[task])
            out = FOLDER / f"slip-{task}-{made.steps}-{seed}"
            seconds[name] = timed(made, out)
            model = load(out)
            end, frozen = Progress(step=made.steps, total=made.steps), model.frozen()
            found = Retrieval.Config().build().run(frozen, model.modality, end)
            top1 = probe.build().run(frozen, model.modality, end)["top1"]
            table.setdefault(name, []).append((found["r1"], top1))
            told = f"{seconds[name]:.0f} | {found['r1']:.1f} | {found['p']:.3f} | {top1:.1f}"
            print(f"{seed} | {name} | {made.steps} | {told}", flush=True)
    for name, found in table.items():
        means = [statistics.mean(column) for column in zip(*found, strict=True)]
        print(f"mean | {name} | recall@1 {means[0]:.1f} | probe of image {means[1]:.1f}")


def timed(made: Recipe, out: Path) -> float:
    """The seconds of the run, which are kept for when it is there already."""
    kept = out / "seconds.txt"
    began = time.perf_counter()
    run.train(made, out)
    if not kept.exists():
        kept.write_text(f"{time.perf_counter() - began:.1f}")
    return float(kept.read_text())


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=["unseen", "digits", "three", "scenes", "films", "slip"])
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--steps", type=int, default=0, help="other than the task's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="of slip")
    args = parser.parse_args()
    if args.task == "slip":
        slip(args.seeds, args.steps or 700)
        return
    made, measures = recipe_of(args.task, args.data)
    made = made.replace(seed=args.seed, steps=args.steps or made.steps)
    report(made, FOLDER / f"{args.task}-{made.steps}-{args.seed}", measures, args.split)


if __name__ == "__main__":
    main()
