"""Whether a change of the code left every number as it was: the proof of a pure refactoring.

    python -m benchmarks.same_numbers record BEFORE.json     # at the revision before the change
    python -m benchmarks.same_numbers record AFTER.json      # at the revision after it
    python -m benchmarks.same_numbers compare BEFORE.json AFTER.json

`record` trains ten recipes on built-in data and keeps, for each, every line of `metrics.jsonl` without the measured
times, and the sha256 of every tensor of the shipped encoder and of the last checkpoint. The default, `--steps 10
--evals none`, takes under three minutes on two cores; `--steps 30 --evals all` is run once before a series of changes
ends.
Files of one machine are compared, as another processor may round differently. `compare` prints what differs and then
ends with exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import multissl
from multissl import catalogue
from multissl.engine.batches import Data
from multissl.engine.checkpoint import Save
from multissl.parallel.state import load_state, read_index

RECIPES = (
    "image/default", "video/default", "audio/default", "text/default", "tabular/default", "rl/default",
    "image_text", "image/simclr_cifar", "text/masked", "audio/byol_a",
)  # fmt: skip
MEASURED = {
    "samples_per_s", "waiting_percent", "memory_gib", "tflops", "nominal_tflops", "utilization_percent",
    "nominal_utilization_percent", "watts", "joules_per_sample",
}  # fmt: skip
"""Figures of `metrics.jsonl` that are measured times and sizes, and differ between two runs of the same code."""


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's record without what is measured."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def encoder_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the shipped encoder by name."""
    from safetensors.torch import load_file

    return load_file(folder / "encoder.safetensors")


def checkpoint_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the newest checkpoint by name."""
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    index = read_index(newest)["tensors"]
    state: dict[str, Any] = {
        name: torch.empty(about["shape"], dtype=vars(torch)[about["dtype"].removeprefix("torch.")])
        for name, about in index.items()
    }
    return load_state(state, newest)


def digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return the sha256 of every tensor's type, shape and bytes."""
    return {
        name: hashlib.sha256(
            f"{t.dtype} {tuple(t.shape)} ".encode()
            + t.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, t in sorted(tensors.items())
    }


def fingerprint(name: str, steps: int, evals: bool, folder: Path) -> dict[str, Any]:
    """Train a recipe for some steps and return its numbers."""
    recipe = catalogue.find(name)()
    recipe = recipe.replace(
        steps=steps, batch_size=min(recipe.batch_size, 32), log_every=1, loggers={},
        data=Data(workers=0), save=Save(every=steps),
    )  # fmt: skip
    if not evals:
        recipe.evals = {}
    multissl.train(recipe, folder)
    return numbers_of(folder)


def numbers_of(folder: Path) -> dict[str, Any]:
    """Return the record without what is measured, and the digests of encoder and checkpoint, of a run."""
    return {
        "metrics": metrics(folder),
        "encoder": digests(encoder_tensors(folder)),
        "checkpoint": digests(checkpoint_tensors(folder)),
    }


def record(path: Path, steps: int, evals: bool, names: list[str]) -> None:
    """Write the numbers of all recipes to a file."""
    torch.set_num_threads(2)
    numbers: dict[str, Any] = {}
    for name in names:
        began = time.perf_counter()
        folder = Path(tempfile.mkdtemp())
        try:
            numbers[name] = fingerprint(name, steps, evals, folder / "run")
        finally:
            shutil.rmtree(folder)
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    path.write_text(json.dumps(numbers, indent=1))


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a line for every number that is not the same in both."""
    lines: list[str] = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            lines.append(f"{name}: only {'before' if name in before else 'after'}")
            continue
        old, new = before[name], after[name]
        if len(old["metrics"]) != len(new["metrics"]):
            lines.append(f"{name}: {len(old['metrics'])} lines of metrics -> {len(new['metrics'])}")
        for a, b in zip(old["metrics"], new["metrics"], strict=False):
            lines += [
                f"{name}: step {a['step']} {key}: {a.get(key)} -> {b.get(key)}"
                for key in dict.fromkeys([*a, *b])
                if a.get(key) != b.get(key)
            ]
        for part in ("encoder", "checkpoint"):
            changed = [
                n for n in dict.fromkeys([*old[part], *new[part]]) if old[part].get(n) != new[part].get(n)
            ]
            if changed:
                shown = ", ".join(changed[:3])
                lines.append(
                    f"{name}: {len(changed)} of {len(old[part])} tensors of the {part} differ: {shown}"
                )
    return lines


def main() -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="train and keep the numbers")
    recording.add_argument("file", type=Path)
    recording.add_argument("--steps", type=int, default=10)
    recording.add_argument("--evals", choices=("none", "all"), default="none")
    recording.add_argument("--recipes", nargs="+", default=list(RECIPES))
    comparing = commands.add_parser("compare", help="print what differs between two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "record":
        record(args.file, args.steps, args.evals == "all", args.recipes)
        return 0
    before, after = json.loads(args.before.read_text()), json.loads(args.after.read_text())
    lines = differences(before, after)
    print("\n".join(lines) or f"{len(before)} recipes: every number is the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
