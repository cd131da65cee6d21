"""Short runs of each modality, and what two of them have to have in common."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from benchmarks.same_numbers import metrics
from multissl.engine import checkpoint
from tests.faults.warm import Ended, Job, Warm, changed

SHORT = [
    "--steps", "4", "--save.every", "2", "--save.keep_last", "1", "--log_every", "1", "--data.workers", "0",
    "--evals", "none",
]  # fmt: skip
"""Options of a run with two checkpoints, of which the first is removed."""
COMMANDS: dict[str, list[str]] = {
    "image": ["image", "--batch_size", "4"],
    "video": ["video", "--batch_size", "2"],
    "audio": ["audio", "--batch_size", "4"],
    "text": ["text", "--batch_size", "4"],
    "tabular": ["tabular", "--batch_size", "16"],
    "rl": ["rl", "--batch_size", "4"],
    "image_text": ["image_text", "--batch_size", "4"],
}
"""A recipe of each modality, and of a pair of two."""
FAMILIES: dict[str, list[str]] = {
    "contrastive": ["image", "--objective", "moco", "--batch_size", "4"],
    "non-contrastive": ["image", "--objective", "byol", "--batch_size", "4"],
    "clustering": ["image", "--objective", "swav", "--batch_size", "8"],
    "distillation": ["image", "--batch_size", "4"],
    "masked": ["tabular", "--objective", "mae", "--batch_size", "16"],
}
"""A recipe of each family of objectives."""


def train(warm: Warm, words: list[str], folder: Path, **fault: Any) -> Ended:
    """Run `multissl train` into a folder; its output is added to a file beside it."""
    job = Job(words=["train", *words, *SHORT, "--out", str(folder)], log=str(log_of(folder)), **fault)
    return warm.run(job)


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def state(folder: Path) -> dict[str, Any]:
    """Return digests of what a run leaves, without measured times: encoder, fitted state, checkpoints, record, data."""
    values: dict[str, Any] = {"record": metrics(folder)}
    for name in ("encoder.safetensors", "modality.json", "data.json", "recipe.json"):
        values[name] = digest(folder / name)
    for kept in checkpoint.find(folder / "checkpoints"):
        for file in sorted(kept.iterdir()):
            if file.name != checkpoint.META:  # it holds the digest of the record with its measured times
                values[f"{kept.name}/{file.name}"] = digest(file)
    return values


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(folder: Path) -> list[str]:
    """Return what no whole run holds: files and folders that were being written or removed."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix == ".tmp" or path.name.startswith(checkpoint.UNFINISHED)
    ]


def again(warm: Warm, words: list[str], folder: Path, whole: dict[str, Any]) -> str:
    """Give the same command again; return what is wrong with how it ends, "" where it ends as a `whole` run."""
    return compared(train(warm, words, folder), folder, whole)


def compared(ended: Ended, folder: Path, whole: dict[str, Any]) -> str:
    """Return what is wrong with how a repeated command ended; a run with which nothing is wrong is removed."""
    log = log_of(folder).read_text()
    if ended.code or ended.hung:
        return f"the same command ended with {ended.code}: {log[-1500:]}"
    if "Traceback" in log:
        return f"a traceback: {log[-3000:]}"
    problems = changed(whole, state(folder)) + leftovers(folder)
    if problems:
        return f"not as an uninterrupted run: {problems}\n{log[-1500:]}"
    shutil.rmtree(folder)
    log_of(folder).unlink()
    return ""
