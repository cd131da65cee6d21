"""Features of data as a file: what an encoder makes of all samples, for whatever comes next.

One row per sample: its split, what its modality says of it (its file, or its number; of pairs, their texts), its
class and group, and its features: pooled [D] in a table or an array, or every token [N, D] in an array. Samples that
cannot be read, or lack the stream, are left out, which is said. What was ended goes on with the same command.
Shapes: S samples, R rows of a batch, N tokens, D width.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from multissl.config import to_dict
from multissl.contract.data import Raw, Sample, Samples, Views
from multissl.contract.learning import Features
from multissl.contract.modality import Modality
from multissl.engine.batches import Data, loaded
from multissl.engine.signals import EndRequest
from multissl.engine.trainer import Interrupted
from multissl.files import make_folder, replaced
from multissl.inference import collated, stream_of, views_of
from multissl.parallel.collectives import broadcast_object
from multissl.parallel.ranks import barrier, is_main, rank, world
from multissl.run.feature_files import (
    ARRAYS,
    TABLES,
    Write,
    csv_table,
    kind_of,
    npy_array,
    parquet_table,
    rows_file,
    safetensors_array,
)
from multissl.run.identity import identity_of, weights_digest
from multissl.run.model import Model
from multissl.run.pieces import Piece, Pieces, stacked
from multissl.version import __version__

PAUSE = 10.0
"""Seconds between two lines about how far it is."""
ROWS, TOKEN_ROWS = 4096, 256
"""Samples of a piece that is written at a time: of pooled features, and of tokens."""
SPLITS = ("train", "val", "test")
Pool = Literal["own", "mean", "concat"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is written of a sample."""

    tokens: bool = False
    """Every token instead of the pooled features; those of padding are zeros."""
    layer: int = 0
    """Of which block, counted from the last one, which is 1; before the final norm. 0: the output."""
    pool: Pool = "own"
    """own: as the encoder pools; mean: the mean of the tokens; concat: both."""
    half: bool = False
    """As float16."""

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ValueError(
                f"--layer {self.layer}: want 0, or a block counted from the last one, which is 1"
            )
        if self.tokens and self.pool != "own":
            raise ValueError(f"--tokens with --pool {self.pool}: want one of the two")
        if self.layer and self.pool == "concat":
            raise ValueError("--layer with --pool concat: a block gives tokens alone; want --pool mean")

    def check(self, stream: str, depth: int) -> None:
        """Raise a ValueError where an encoder that hands out the outputs of `depth` blocks has not that many."""
        if self.layer > depth:
            ways = f"1 to {depth}, or 0, which is its output" if depth else "0, which is its output"
            raise ValueError(
                f"--layer {self.layer}: the encoder of {stream} hands out the outputs of {depth} blocks; want {ways}"
            )

    def of(self, features: Features, views: Views) -> Tensor:
        """Return it, [R, D] or [R, N, D], on the CPU."""
        tokens = features.inner[0] if self.layer else features.tokens
        valid = torch.ones(tokens.shape[:2], device=tokens.device) if views.valid is None else views.valid
        if valid.shape != tokens.shape[:2]:  # an encoder that sees no padding apart
            valid = torch.ones(tokens.shape[:2], device=tokens.device)
        tokens = tokens.float() * valid[..., None]
        if self.tokens:
            value = tokens
        elif self.pool == "own" and not self.layer:
            value = features.pooled.float()
        else:
            value = tokens.sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
            value = torch.cat([features.pooled.float(), value], 1) if self.pool == "concat" else value
        return (value.half() if self.half else value).cpu()


def encode(
    model: Model,
    out: Path | str,
    split: str = "",
    stream: str = "",
    batch_size: int = 256,
    workers: int = -1,
    say: Callable[[str], object] = print,
    wanted: Wanted | None = None,
) -> int:
    """Write the features of a split, or of all there are, to a file; return how many rows there are.

    `.parquet` and `.csv` are tables of pooled features; `.npy` and `.safetensors` (tensor `features`) are arrays, of
    which `FILE.rows.csv` says which sample a row is. `stream` says which of several is encoded. The file appears when
    it is whole. On several ranks each makes some pieces; the batches are the same on any number of them. Raises a
    ValueError that names what is wrong with file, data, split or stream, and `Interrupted` where a signal ended it.
    """
    out, wanted = Path(out), wanted or Wanted()
    kinds = ARRAYS if wanted.tokens else (*TABLES, *ARRAYS)
    if kind_of(out) not in kinds:
        raise ValueError(
            f"--out {out}: want a file that ends in {' or '.join(kinds)}" + " for tokens" * wanted.tokens
        )
    if out.is_dir():
        raise ValueError(
            f"--out {out}: is a folder; want a file in it, such as {out / f'features{kinds[0]}'}"
        )
    stream = stream_of(model.modality, stream)
    wanted.check(stream, model.encoders[stream].depth)
    rows = TOKEN_ROWS if wanted.tokens else ROWS
    batches = Batches(model.modality, splits_of(model.modality, split), stream, batch_size)
    per_piece = max(1, rows // batch_size)
    count = -(-len(batches) // per_piece)
    pieces = Pieces(out, _identity(model, wanted, split, stream, batch_size))
    with _writable(out), pieces.held():
        kept = broadcast_object(pieces.begin() if is_main() else False)
        if kept:
            say(f"going on with the pieces in {pieces.folder}")
        missing = broadcast_object([n for n in range(count) if not pieces.path(n).is_file()])
        try:
            _make(model, wanted, batches, stream, pieces, missing, per_piece, workers, say)
        finally:
            pieces.tidy()
        barrier()
        done = broadcast_object(_assemble(out, pieces, count, batches.total, stream, say) if is_main() else 0)
    return done


def _identity(model: Model, wanted: Wanted, split: str, stream: str, batch_size: int) -> dict[str, Any]:
    """Return all that features depend on."""
    return {
        "version": __version__,
        "weights": weights_digest(model.encoders),
        "modality": to_dict(model.recipe.modality),
        "data": identity_of(model.modality, with_validation=True).summary(),
        "wanted": asdict(wanted),
        "of": [split, stream, batch_size],
    }


def _make(
    model: Model, wanted: Wanted, batches: Batches, stream: str, pieces: Pieces, missing: list[int],
    per_piece: int, workers: int, say: Callable[[str], object],
) -> None:  # fmt: skip
    """Make this rank's share of the pieces that are missing."""
    mine = missing[rank() :: world()]
    order = [b for n in mine for b in range(n * per_piece, min((n + 1) * per_piece, len(batches)))]
    loader = loaded(batches, order, Data(workers=workers).num_workers(world()))
    began = last_said = time.monotonic()
    lines, parts, problems, made, done = list[dict[str, Any]](), list[Tensor](), list[str](), 0, 0
    ending = EndRequest(lambda _text: None)
    with ending.heard(), contextlib.closing(loader):
        for number, (raw, some, bad) in zip(order, loader, strict=True):
            problems += bad
            if raw is not None:
                features, here = _features(model, wanted, raw, some, stream)
                lines += here
                parts.append(features)
                done += len(here)
            if number == order[-1] or (number + 1) % per_piece == 0:
                pieces.add(mine[made], Piece(lines, stacked(parts), problems))
                lines, parts, problems, made = [], [], [], made + 1
            if ending.came:
                raise Interrupted(
                    f"interrupted: {made} pieces more are in {pieces.folder}; repeat the command to go on",
                    ending.number,
                )
            if time.monotonic() - last_said > PAUSE:
                last_said = time.monotonic()
                total = len(order) * batches.size
                say(f"{done:,} of {total:,} samples  {done / (last_said - began):.0f} samples/s")


def _features(
    model: Model, wanted: Wanted, raw: Raw, lines: list[dict[str, Any]], stream: str
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return the features of those samples of a batch that have the stream, and what is said of them."""
    views = views_of(model.modality, raw, len(lines), [stream], model.device)[stream]
    with torch.inference_mode():
        features = wanted.of(model.encoders.encode([views], "none", wanted.layer)[0], views)
    here = [True] * len(lines) if views.present is None else views.present.tolist()
    return features[torch.tensor(here)], [w for w, h in zip(lines, here, strict=True) if h]


def _assemble(
    out: Path, pieces: Pieces, count: int, total: int, stream: str, say: Callable[[str], object]
) -> int:
    """Make the file of its pieces, which then go; return how many rows it has."""
    names: dict[str, None] = {}
    rows, problems, first = 0, 0, ""
    for number in range(count):
        words = pieces.read(number, words_alone=True)
        rows, problems, first = (
            rows + len(words.lines),
            problems + len(words.problems),
            first or next(iter(words.problems), ""),
        )
        names |= dict.fromkeys(name for line in words.lines for name in line)
    if not rows:
        pieces.remove()
        why = f": {first}" if first else ""
        raise ValueError(f"none of {total:,} samples has a {stream} that can be read{why}")
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(w) for w in _writers(out, [*names], rows)]
        for number in range(count):
            piece = pieces.read(number)
            if piece.features is not None and piece.lines:
                for write in writers:
                    write(piece.lines, piece.features.numpy())
    pieces.remove()
    if problems:
        say(f"{problems} samples cannot be read and are left out, the first: {first}")
    return rows


def _writers(out: Path, names: list[str], rows: int) -> list[contextlib.AbstractContextManager[Write]]:
    """Return what writes the file, and of an array the table of its rows."""
    if kind_of(out) == ".parquet":
        return [_aside(out, lambda path: parquet_table(path, names))]
    if kind_of(out) == ".csv":
        return [_aside(out, lambda path: csv_table(path, names))]
    array = npy_array if kind_of(out) == ".npy" else safetensors_array
    return [
        _aside(out, lambda path: array(path, rows)),
        _aside(rows_file(out), lambda path: _words(path, names)),
    ]


@contextlib.contextmanager
def _aside(out: Path, writer: Callable[[Path], contextlib.AbstractContextManager[Write]]) -> Iterator[Write]:
    """Write a file beside its place, which it takes when it is whole."""
    with replaced(out) as path, writer(path) as write:
        yield write


@contextlib.contextmanager
def _words(path: Path, names: list[str]) -> Iterator[Write]:
    """Write the words of rows alone."""
    with csv_table(path, names) as write:
        yield lambda lines, features: write(lines, np.empty((len(features), 0)))


Batch = tuple[Raw | None, list[dict[str, Any]], list[str]]
"""What a worker made of some samples, if of any; what is said of them; why others are missing."""


class Batches(Dataset[Batch]):
    """The samples of some splits, a few at a time."""

    def __init__(self, modality: Modality, splits: Mapping[str, Samples], stream: str, size: int) -> None:
        self.modality, self.splits, self.stream, self.size = modality, splits, stream, size
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
        if "file" not in words:
            words["row"] = str(sample.index)
        classes = self.splits[split].classes
        if sample.label >= 0:
            words["label"] = classes[sample.label] if classes else str(sample.label)
        if sample.group >= 0:
            words["group"] = str(sample.group)
        return words


def splits_of(modality: Modality, split: str) -> dict[str, Samples]:
    """Return the samples of a split by its name; without a name, those of all splits that the data has."""
    if split:
        try:
            samples = modality.dataset(split)
            len(samples)  # what is built in makes its samples as they are asked for
        except KeyError:  # of data with splits of its own, which says what it has itself
            raise ValueError(
                f"--split {split}: this data has no such split; want {', '.join(SPLITS)}"
            ) from None
        return {split: samples}
    splits, problem = {}, None
    for name in SPLITS:
        try:
            splits[name] = modality.dataset(name)
        except ValueError as error:
            problem = problem or error
    if not splits and problem:
        raise problem
    return splits


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Make the folder of a file; say which option is wrong where it cannot be written."""
    try:
        make_folder(out.parent)
        yield
    except OSError as error:  # what cannot be read, the modality says of its sample
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way = "free some space and repeat the command, which goes on, or " if full else ""
        raise ValueError(
            f"--out {out}: cannot be written ({error.strerror}); {way}give another --out"
        ) from None
