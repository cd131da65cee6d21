"""Side by side with a peer: lightly and multissl train the same encoder for the same time on the same machine.

Same ResNet, objective, heads, batch, optimizer, augmentations (lightly's own transforms on its side) and wall-clock;
lightly is installed from the package index into an environment of its own. Both encoders are then judged by multissl's
k-NN on the validation split. Runs alternate between the two. lightly decodes and augments in a worker beside a loop
of two threads; multissl runs a rank on each of two cores (their backbones' batch norms see their own 128 rows).

    python benchmarks/peers.py --data cifar10-train.parquet [--seconds 120] [--seeds 3] [--objectives simclr byol]

A run's number of steps is set from a short run before it, because schedules need it; the seconds printed are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PEER = Path(__file__).with_name("peers_lightly.py")
HERE = Path("runs/peers").resolve()
BATCH, LR, WARMUP, HIDDEN, WIDTH = 256, 2e-3, 50, 512, 24  # as in peers_lightly.py
PROBE = 12
"""Steps of the run that finds out how fast a side is."""


def recipe(objective: str, data: str, steps: int, seed: int) -> Any:
    """The recipe of our side."""
    from multissl.configs.image import cifar
    from multissl.encoders.resnet import ResNetEncoder
    from multissl.engine.batches import Data
    from multissl.engine.checkpoint import Save
    from multissl.engine.optim.adamw import AdamW
    from multissl.layers.heads import MLPHead
    from multissl.layers.teacher import Teacher

    made = {"simclr": cifar.simclr_cifar, "byol": cifar.byol_cifar, "vicreg": cifar.vicreg_cifar}[objective]()
    two = MLPHead.Config(hidden=HIDDEN, out=128, layers=2)
    three = MLPHead.Config(hidden=HIDDEN, out=HIDDEN)
    if objective == "byol":
        teacher = Teacher.Config(ema=0.99, final_ema=1.0, buffers="keep", batch_norm="batch")
        made.objective = made.objective.replace(projector=two, predictor=two, teacher=teacher)
    else:
        made.objective = made.objective.replace(
            projector=three if objective == "vicreg" else two.replace(last_norm=True)
        )
    return made.replace(
        modality=made.modality.replace(data=data),
        encoders={"image": ResNetEncoder.Config(depth=10, width=WIDTH, stem="small")},
        optim=AdamW.Config(lr=LR, warmup=WARMUP, weight_decay=1e-4, final_lr=0.0),
        batch_size=BATCH, steps=steps, seed=seed, evals={}, save=Save(every=10**9), data=Data(workers=0),
        loggers={},
    )  # fmt: skip


def ours(objective: str, data: str, steps: int, seed: int, out: Path) -> None:
    """A run of our side on each rank: prints seconds and samples per second of the loop, as the peer counts them."""
    from safetensors.torch import save_file

    from multissl import build as building
    from multissl.engine.trainer import Trainer
    from multissl.parallel.ranks import is_main, process_group
    from multissl.parallel.sharding import full
    from multissl.run.folder import RunFolder

    made = recipe(objective, data, steps, seed)
    with process_group() as device:
        parts = building.build(made, device)
        trainer = Trainer(made, parts.modality, parts.learner, parts.optimizer, {}, RunFolder(out), device)
        began = time.perf_counter()
        trainer.fit()
        seconds = time.perf_counter() - began
        net = parts.learner.encoders["image"].get_submodule("net")
        state = {k: full(v).contiguous() for k, v in net.state_dict().items()}
        if is_main():
            save_file(state, out / "net.safetensors")
            print(json.dumps({"seconds": seconds, "samples_per_s": steps * BATCH / seconds}))


def judged(file: Path, data: str) -> float:
    """k-NN on the validation split of the encoder in a file, with torchvision's names."""
    import torch
    from safetensors.torch import load_file

    from multissl import build as building
    from multissl.contract.learning import Progress
    from multissl.evaluators.knn import KNN

    parts = building.build(recipe("simclr", data, 1, 0), torch.device("cpu"))
    parts.learner.encoders["image"].get_submodule("net").load_state_dict(load_file(file))
    frozen = parts.learner.frozen("student", torch.device("cpu"))
    return KNN.Config().build().run(frozen, parts.modality, Progress(step=1, total=1))["top1"]


def environment() -> Path:
    """The peer's Python, installed if it is not there."""
    python = HERE / "peer" / "bin" / "python"
    if not python.exists():
        packages = ["lightly==1.6.0", "torch==2.10.0", "torchvision==0.25.0", "pyarrow", "safetensors"]
        subprocess.run(["uv", "venv", "-q", "--python", "3.11", str(HERE / "peer")], check=True)
        subprocess.run(["uv", "pip", "install", "-q", "--python", str(python), *packages], check=True)
    return python


def run(side: str, objective: str, data: str, steps: int, seed: int) -> dict[str, Any]:
    """A run of either side in a process of its own; what it printed, and where its encoder lies."""
    out = HERE / "runs" / f"{side}-{objective}-{seed}-{steps}"
    subprocess.run(["rm", "-rf", str(out)], check=True)
    out.mkdir(parents=True)
    file = out / "net.safetensors"
    if side == "lightly":
        line = [
            str(environment()),
            "-W",
            "ignore",
            str(PEER),
            objective,
            data,
            str(steps),
            str(seed),
            str(file),
        ]
    else:
        line = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            __file__,
            "--data",
            data,
        ]
        line += ["--one", objective, str(steps), str(seed), str(out)]
    # lightly: a loop of two threads and a worker that sleeps rather than spins while it waits, which is kinder to it
    # than torch's default. Ours: a rank a core, each loading its own rows.
    environ = {
        **os.environ,
        **({"GOMP_SPINCOUNT": "2000"} if side == "lightly" else {"OMP_NUM_THREADS": "1"}),
    }
    found = subprocess.run(line, check=True, capture_output=True, text=True, env=environ)
    return {**json.loads(found.stdout.strip().splitlines()[-1]), "file": file}


def main() -> None:
    """Print a line a run, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objectives", nargs="+", default=["simclr", "byol", "vicreg"])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        objective, steps, seed, out = args.one
        ours(objective, args.data, int(steps), int(seed), Path(out))
        return
    for objective in args.objectives:
        table: dict[str, list[dict[str, Any]]] = {"lightly": [], "multissl": []}
        rates = {side: run(side, objective, args.data, PROBE, 0)["samples_per_s"] for side in table}
        for seed in range(args.seeds):
            for side, rows in table.items():
                steps = max(1, round(args.seconds * rates[side] / BATCH))
                row = run(side, objective, args.data, steps, seed)
                rates[side] = row["samples_per_s"]
                row["knn"] = judged(row["file"], args.data)
                rows.append(row)
                print(
                    f"{objective} {side} seed {seed}: {steps} steps in {row['seconds']:.0f} s, "
                    f"{row['samples_per_s']:.0f} samples/s, k-NN {row['knn']:.2f}",
                    flush=True,
                )
        speed = {s: statistics.median(r["samples_per_s"] for r in rows) for s, rows in table.items()}
        knn = {s: statistics.mean(r["knn"] for r in rows) for s, rows in table.items()}
        print(
            f"{objective}: {speed['multissl'] / speed['lightly']:.2f} x the samples/s (medians), "
            f"k-NN {knn['multissl']:.2f} against {knn['lightly']:.2f} (means)",
            flush=True,
        )


if __name__ == "__main__":
    main()
