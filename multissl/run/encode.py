"""Features of data as a table: what an encoder makes of all samples, for whatever comes next.

One line per sample: its split, what its modality says of it (its file; of pairs, their texts), its class and group, and
a column for each number of the pooled features, `f0`, `f1`, ... Samples that cannot be read, or lack the stream, are
left out, which is said.
Shapes: S samples, D width.
"""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from multissl import registry
from multissl.contract.data import Raw, Sample, Samples
from multissl.contract.modality import Modality
from multissl.engine.batches import Data
from multissl.files import replaced
from multissl.inference import collated, stream_of, views_of
from multissl.run.model import Model

SUFFIXES = (".parquet", ".csv")
PAUSE = 10.0
"""Seconds between two lines about how far it is."""

Write = Callable[[list[dict[str, Any]], np.ndarray], None]
"""Adds lines of words [S] and their features float32 [S, D]."""


def encode(
    model: Model,
    out: Path | str,
    split: str = "",
    stream: str = "",
    batch_size: int = 256,
    workers: int = -1,
    say: Callable[[str], None] = print,
) -> int:
    """Write the features of a split, or of all there are, to a .parquet or .csv file; return how many lines there are.

    `stream` says which of several is encoded. The file appears when it is whole. Raises a ValueError that names what
    is wrong with file, data, split or stream.
    """
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out}: want a file that ends in {' or '.join(SUFFIXES)}")
    device, modality = model.device, model.modality
    stream = stream_of(modality, stream)
    batches = Batches(modality, splits_of(modality, split), stream, batch_size)
    loader = DataLoader(batches, batch_size=None, num_workers=Data(workers=workers).num_workers(1))
    done, total, last_said = 0, batches.total, time.monotonic()
    began, skipped = last_said, []
    with _whole(out) as part, (_parquet if out.suffix == ".parquet" else _csv)(part) as write:
        for raw, lines, bad in loader:
            skipped += bad
            if raw is not None:
                views = views_of(modality, raw, len(lines), [stream], device)[stream]
                with torch.inference_mode():
                    pooled = model.encoders.encode([views])[0].pooled.float().cpu()
                here = [True] * len(lines) if views.present is None else views.present.tolist()
                write([w for w, h in zip(lines, here, strict=True) if h], pooled[torch.tensor(here)].numpy())
                done += sum(here)
            if time.monotonic() - last_said > PAUSE:
                last_said = time.monotonic()
                say(f"{done:,} of {total:,} samples  {done / (last_said - began):.0f} samples/s")
        if not done:
            why = f": {skipped[0]}" if skipped else ""
            raise ValueError(f"none of {total:,} samples has a {stream} that can be read{why}")
    if skipped:
        say(f"{len(skipped)} samples cannot be read and are left out, the first: {skipped[0]}")
    return done


Batch = tuple[Raw | None, list[dict[str, Any]], list[str]]
"""What a worker made of some samples, if of any; what is said of them; why others are missing."""


class Batches(Dataset[Batch]):
    """The samples of some splits, a few at a time."""

    def __init__(self, modality: Modality, splits: dict[str, Samples], stream: str, size: int) -> None:
        self.modality, self.splits, self.stream = modality, splits, stream
        self.pieces = [
            (s, i, min(i + size, len(d))) for s, d in splits.items() for i in range(0, len(d), size)
        ]
        self.total = sum(map(len, splits.values()))

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> Batch:
        split, start, stop = self.pieces[number]
        samples = [self.splits[split][i] for i in range(start, stop)]
        raw, readable, problems = collated(self.modality, samples, [self.stream])
        return raw, [self.line(split, s) for s in readable], [str(bad) for bad in problems]

    def line(self, split: str, sample: Sample) -> dict[str, Any]:
        """Return what is said of a sample."""
        words = {"split": split, **self.modality.describe(sample)}
        classes = self.splits[split].classes
        if sample.label >= 0:
            words["label"] = classes[sample.label] if classes else str(sample.label)
        if sample.group >= 0:
            words["group"] = str(sample.group)
        return words


def splits_of(modality: Modality, split: str) -> dict[str, Samples]:
    """Return the samples of a split by its name; without a name, those of all splits that the data has."""
    if split:
        return {split: modality.dataset(split)}
    splits, problem = {}, None
    for name in ("train", "val", "test"):
        try:
            splits[name] = modality.dataset(name)
        except ValueError as error:
            problem = problem or error
    if not splits and problem:
        raise problem
    return splits


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yield a file beside `out` that takes its place at the end, or goes where it did not come to that."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replaced(out) as part:
            yield part
    except OSError as error:  # what cannot be read, the modality says of its sample
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); give another --out") from None


@contextlib.contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with path.open("w", newline="") as file:
        writer, known = csv.writer(file), list[str]()

        def write(lines: list[dict[str, Any]], features: np.ndarray) -> None:
            if not known and lines:
                known.extend(_columns(lines))
                writer.writerow([*known, *(f"f{i}" for i in range(features.shape[1]))])
            for line, numbers in zip(lines, features.tolist(), strict=True):
                writer.writerow([*(line.get(name, "") for name in known), *(f"{x:.7g}" for x in numbers)])

        yield write


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    pyarrow, parquet = registry.require("pyarrow"), registry.require("pyarrow.parquet")
    with contextlib.ExitStack() as opened:
        made: list[Any] = []

        def write(lines: list[dict[str, Any]], features: np.ndarray) -> None:
            if not lines:
                return
            if not made:
                words = [pyarrow.field(name, pyarrow.string()) for name in _columns(lines)]
                numbers = [pyarrow.field(f"f{i}", pyarrow.float32()) for i in range(features.shape[1])]
                schema = pyarrow.schema([*words, *numbers])
                made.append(opened.enter_context(parquet.ParquetWriter(path, schema)))
            schema = made[0].schema
            texts = [[line.get(name) for line in lines] for name in schema.names[: -features.shape[1]]]
            made[0].write_table(pyarrow.table([*texts, *features.T.copy()], schema=schema))

        yield write


def _columns(lines: list[dict[str, Any]]) -> list[str]:
    """Return what is said of the first samples."""
    return [*dict.fromkeys(name for line in lines for name in line)]
