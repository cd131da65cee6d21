"""What a student gains from a teacher, beside learning by itself for as many steps.

    OMP_NUM_THREADS=1 python -m benchmarks.distilling smaller --data cifar10-train.parquet
    OMP_NUM_THREADS=1 python -m benchmarks.distilling sounds --data mnist-train.parquet --sounds FOLDER_OF_DIGITS
    OMP_NUM_THREADS=1 python -m benchmarks.distilling two --data cifar10-train.parquet mnist-train.parquet

smaller: a ResNet-10 of width 24, trained by SimCLR, teaches one of width 8; that one by SimCLR alone.
sounds: a ResNet trained by SimCLR on written digits teaches a transformer that hears spoken ones of the same digit;
that one by InfoNCE on the sounds (`audio/words`). Judged on a speaker whom neither training nor k-NN's bank holds.
Pairs are made by the digit, so the student is told indirectly which recordings are of one class; the one alone is not.
two: teachers trained on either set of pictures, balanced by PHI-S, teach one student on both sets; beside students of
one teacher alone. Each is judged on both sets.
Figures are k-NN on the validation split in percent, means over seeds with a 95 % interval by Student's t, differences
paired by seed. Seconds are processor time of the whole training. A run that is in FOLDER is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.equal_time import told
from multissl.configs import audio
from multissl.configs.image import cifar
from multissl.configs.image_audio import distill as sounds_recipe
from multissl.encoders.resnet import ResNetEncoder
from multissl.layers.frozen import FrozenTeacher
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.paired.adapter import Paired
from multissl.objectives.distill import Distill
from multissl.recipe import Recipe
from multissl.run.evaluate import evaluate
from multissl.run.train import train

FOLDER = Path("runs/distilling")
Row = dict[str, float]


def trained(name: str, recipe: Recipe) -> Path:
    """Return the folder of a run, which is made where it is missing, with its processor time beside it."""
    out = FOLDER / name
    spent = FOLDER / f"{name}.json"
    if not spent.exists():
        began = time.process_time()
        train(recipe.replace(evals={}), out)
        spent.write_text(json.dumps({"seconds": time.process_time() - began}))
    return out


def seconds(run: Path) -> float:
    """Return the processor time of a run's training."""
    return json.loads(run.with_name(f"{run.name}.json").read_text())["seconds"]


def resnet(width: int) -> ResNetEncoder.Config:
    """Return a ResNet-10 for small pictures."""
    return ResNetEncoder.Config(depth=10, width=width, stem="small")


def simclr(data: str, width: int, steps: int, seed: int) -> Recipe:
    """Return `image/simclr_cifar` at a width."""
    made = cifar.simclr_cifar()
    made.modality = made.modality.replace(data=data)
    return made.replace(encoders={"image": resnet(width)}, steps=steps, seed=seed)


def taught(data: str, teachers: dict[str, Path], steps: int, seed: int, width: int) -> Recipe:
    """Return `image/distill` with a ResNet and these teachers; several are balanced."""
    made = cifar.distill()
    made.modality = made.modality.replace(data=data)
    objective = made.objective
    assert isinstance(objective, Distill.Config)
    configs = {name: FrozenTeacher.Config(weights=str(run)) for name, run in teachers.items()}
    several = {"balance": "phi_s", "pooled": "mse", "tokens": "mse"} if len(teachers) > 1 else {}
    return made.replace(
        objective=objective.replace(teachers=configs, **several),
        encoders={"image": resnet(width)}, steps=steps, seed=seed,
    )  # fmt: skip


def nearest(run: Path, **options: str) -> Row:
    """Return k-NN's figures of a run and of its untrained encoder."""
    protocols = {f"knn.{name}": value for name, value in options.items() if name != "data"}
    found = evaluate(run, protocols=("knn",), data=options.get("data", ""), options=protocols)
    return {"k-NN": found["knn/top1"]}


def smaller(args: argparse.Namespace) -> dict[str, list[Row]]:
    """Return the figures of a small network alone and taught by a larger one."""
    data = args.data[0]
    teacher = trained("smaller-teacher", simclr(data, 24, args.teacher_steps, 0))
    print(f"teacher: {nearest(teacher)}, {seconds(teacher):.0f} s", flush=True)
    rows: dict[str, list[Row]] = {"alone": [], "taught": []}
    for seed in range(args.seeds):
        runs = {
            "alone": trained(f"smaller-alone-{seed}", simclr(data, 8, args.steps, seed)),
            "taught": trained(f"smaller-taught-{seed}", taught(data, {"main": teacher}, args.steps, seed, 8)),
        }
        for name, run in runs.items():
            rows[name].append(nearest(run) | {"seconds": seconds(run)})
    return rows


def sounds(args: argparse.Namespace) -> dict[str, list[Row]]:
    """Return the figures of a student of sounds alone and taught by a teacher of pictures."""
    teacher = trained("sounds-teacher", simclr(args.data[0], 24, args.teacher_steps, 0))
    words = audio.words()
    assert isinstance(words.modality, Audio.Config)
    heard = words.modality.replace(data=args.sounds, group_pattern="_([a-z]+)_", hold_out=args.speaker)
    rows: dict[str, list[Row]] = {"alone": [], "taught": []}
    for seed in range(args.seeds):
        alone = words.replace(modality=heard, steps=args.steps, seed=seed)
        pairs = sounds_recipe()
        assert isinstance(pairs.modality, Paired.Config)
        assert isinstance(pairs.objective, Distill.Config)
        picture = simclr(args.data[0], 24, 1, 0).modality
        pairs.modality = pairs.modality.replace(members={"image": picture, "audio": heard})
        pairs.encoders = {"image": resnet(24), "audio": words.encoders["audio"]}
        pairs.objective = pairs.objective.replace(
            teachers={"image": FrozenTeacher.Config(weights=str(teacher), stream="image")}
        )
        both = pairs.replace(steps=args.steps, seed=seed, batch_size=words.batch_size)
        for name, run in (
            ("alone", trained(f"sounds-alone-{seed}", alone)),
            ("taught", trained(f"sounds-taught-{seed}", both)),
        ):
            stream = {"stream": "audio"} if name == "taught" else {}
            rows[name].append(nearest(run, **stream) | {"seconds": seconds(run)})
    return rows


def two(args: argparse.Namespace) -> dict[str, list[Row]]:
    """Return the figures of students of one teacher and of two, on the task of either."""
    both = "{" + ",".join(args.data) + "}"
    sets = {Path(data).stem: data for data in args.data}
    teachers = {
        name: trained(f"two-teacher-{name}", simclr(data, 24, args.teacher_steps, 0))
        for name, data in sets.items()
    }
    groups = {name: {name: run} for name, run in teachers.items()} | {"both": teachers}
    rows: dict[str, list[Row]] = {name: [] for name in groups}
    for seed in range(args.seeds):
        for name, group in groups.items():
            run = trained(f"two-{name}-{seed}", taught(both, group, args.steps, seed, 16))
            figures = {f"k-NN on {s}": nearest(run, data=data)["k-NN"] for s, data in sets.items()}
            rows[name].append(figures | {"seconds": seconds(run)})
    return rows


def main() -> None:
    """Train what is missing and print figures and differences."""
    parts = {"smaller": smaller, "sounds": sounds, "two": two}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--sounds", default="")
    parser.add_argument("--speaker", default="lucas")
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = parts[args.part](args)
    for name, figures in rows.items():
        for metric in figures[0]:
            print(f"{name}, {metric}: {told(np.array([row[metric] for row in figures]))}")
    names = [*rows]
    for metric in (m for m in rows[names[0]][0] if m != "seconds"):
        last = np.array([row[metric] for row in rows[names[-1]]])
        for name in names[:-1]:
            first = np.array([row[metric] for row in rows[name]])
            print(f"{names[-1]} - {name}, {metric}: {told(last - first)}")


if __name__ == "__main__":
    main()
