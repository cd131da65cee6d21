"""Real sets in memory, how one of their samples is spoiled, and how they are written as files or rows.

State: none.
"""

from __future__ import annotations

import csv
import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as arrow
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet
from PIL import Image

from benchmarks.doctor_faults import again, encoded, filmed, picture_of, spoiled

MISSING = ("n/a", "NA", "nan", "NULL", "")
"""Words that stand for a missing cell or document, taken in turn."""


class Item(NamedTuple):
    """A sample of a set."""

    data: Any
    """The bytes of its file, a text, or its cells as a mapping."""
    label: Any = None
    text: str | None = None
    """The text that belongs to a picture."""


Splits = dict[str, list[Item]]
"""Samples of train, val and test."""


class RealSet(ABC):
    """A set whose samples can be spoiled one by one. Without a way to plant a fault `None` is returned."""

    part = "image"
    options: tuple[str, ...] = ()
    counted = False
    """Whether what is found is counted alone, as the places in a split that is drawn are not known beforehand."""

    @abstractmethod
    def items(self, data: Path) -> Splits:
        """Return the samples, the same ones every time."""

    @abstractmethod
    def write(self, folder: Path, splits: Splits) -> str:
        """Write the samples and return what `--data` is given."""

    def corrupt(self, item: Item, number: int) -> Item | None:
        """Return the sample so that it cannot be read."""
        return None

    def near(self, item: Item, number: int) -> Item | None:
        """Return the sample as another file of the same content."""
        return None

    def resizes(self, number: int) -> bool:
        """Return whether `near` makes a sample of another size than all others have."""
        return False

    def odd(self, item: Item, number: int) -> Item | None:
        """Return the sample with another rate or size."""
        return None

    def lacking(self, item: Item, number: int) -> Item | None:
        """Return the sample with a missing value."""
        return None


def thirds(train: Sequence[Item], test: Sequence[Item]) -> Splits:
    """Return the splits of a set that names two: every tenth training sample validates."""
    return {
        "train": [x for i, x in enumerate(train) if i % 10],
        "val": [x for i, x in enumerate(train) if i % 10 == 0],
        "test": [*test],
    }


class Pictures(RealSet):
    """Pictures in a parquet file, as bytes, or as files in an archive."""

    def __init__(self, train: str, test: str, most: int = 0, uniform: bool = False) -> None:
        """`most` of each split, 0: all; `uniform`: whether all have one size."""
        self.files, self.most, self.uniform = (train, test), most, uniform

    def items(self, data: Path) -> Splits:
        """Return the pictures."""
        return thirds(*(self._of(data / file) for file in self.files))

    def _of(self, file: Path) -> list[Item]:
        found = archived(file, ".jpg") if file.suffix == ".tar" else rows_of(file, "image")
        return found[: self.most or None]

    def write(self, folder: Path, splits: Splits) -> str:
        """Write them as files, those of a parquet as one."""
        if self.files[0].endswith(".parquet"):
            return write_rows(folder, splits, "image", extra=())
        return write_files(folder, splits, ".jpg")

    def corrupt(self, item: Item, number: int) -> Item:
        """Return the picture spoiled."""
        return item._replace(data=spoiled(item.data, number))

    def near(self, item: Item, number: int) -> Item:
        """Return it encoded again or resized."""
        return item._replace(data=again(item.data, number))

    def resizes(self, number: int) -> bool:
        """Return whether it is resized, where all have one size."""
        return self.uniform and number % 4 > 1

    def odd(self, item: Item, number: int) -> Item | None:
        """Return it in a wider frame, where all others have one size."""
        if not self.uniform:
            return None
        picture = picture_of(item.data)
        wider = Image.new(picture.mode, (picture.width + 8, picture.height))
        wider.paste(picture, (0, 0))
        return item._replace(data=encoded(wider, "png"))


class Sounds(RealSet):
    """Recordings of an archive."""

    part = "audio"

    def __init__(self, train: str, test: str, suffix: str) -> None:
        self.files, self.suffix = (train, test), suffix

    def items(self, data: Path) -> Splits:
        """Return the recordings."""
        return thirds(*(archived(data / file, self.suffix) for file in self.files))

    def write(self, folder: Path, splits: Splits) -> str:
        """Write them as files."""
        return write_files(folder, splits, self.suffix)

    def corrupt(self, item: Item, number: int) -> Item:
        """Return the recording spoiled."""
        return item._replace(data=spoiled(item.data, number))

    def odd(self, item: Item, number: int) -> Item:
        """Return the recording as if it were slower."""
        import soundfile

        sound, rate = soundfile.read(io.BytesIO(item.data))
        file = io.BytesIO()
        soundfile.write(file, sound, (11025, 22050, 44100)[number % 3], format="flac")
        assert rate not in (11025, 22050, 44100)
        return item._replace(data=file.getvalue())


class Films(RealSet):
    """Videos of an archive."""

    part = "video"

    def __init__(self, train: str, test: str) -> None:
        self.files = (train, test)

    def items(self, data: Path) -> Splits:
        """Return the videos."""
        return thirds(*(archived(data / file, ".mp4") for file in self.files))

    def write(self, folder: Path, splits: Splits) -> str:
        """Write them as files."""
        return write_files(folder, splits, ".mp4")

    def corrupt(self, item: Item, number: int) -> Item:
        """Return the video spoiled."""
        return item._replace(data=spoiled(item.data, number))

    def near(self, item: Item, number: int) -> Item:
        """Return the video encoded again, at half the size every other time."""
        return item._replace(data=filmed(item.data, rate=0, side=0.5 if number % 2 else 1.0))

    def resizes(self, number: int) -> bool:
        """Return whether it is halved."""
        return number % 2 == 1

    def odd(self, item: Item, number: int) -> Item:
        """Return the video at another rate."""
        return item._replace(data=filmed(item.data, rate=(5, 10, 50)[number % 3], side=1.0))


class Documents(RealSet):
    """Texts of a parquet file."""

    part = "text"

    def __init__(self, train: str, test: str, column: str = "text") -> None:
        self.files, self.column = (train, test), column

    def items(self, data: Path) -> Splits:
        """Return the documents."""
        return thirds(*(rows_of(data / file, self.column) for file in self.files))

    def write(self, folder: Path, splits: Splits) -> str:
        """Write them as parquet files."""
        write_rows(folder, splits, "text", extra=())
        return str(folder)

    def lacking(self, item: Item, number: int) -> Item:
        """Return a document that is a word for none."""
        return item._replace(data=MISSING[number % len(MISSING)])


class Table(RealSet):
    """Rows of a table."""

    part = "tabular"

    def __init__(self, train: str, test: str, column: str) -> None:
        """`column`: the one whose cells go missing."""
        self.files, self.column = (train, test), column

    def items(self, data: Path) -> Splits:
        """Return the rows."""
        tables = []
        for file in self.files:
            read = arrow_csv.read_csv if file.endswith(".csv") else parquet.read_table
            tables.append([Item(row) for row in read(data / file).to_pylist()])
        return thirds(*tables)

    def write(self, folder: Path, splits: Splits) -> str:
        """Write them as csv files."""
        for split, items in splits.items():
            with open(folder / f"rows-{split}.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(splits["train"][0].data)
                for item in items:
                    cells = ["" if cell is None else cell for cell in item.data.values()]
                    writer.writerow(cells)
        return str(folder)

    def corrupt(self, item: Item, number: int) -> Item:
        """Return the row with a cell too many."""
        return item._replace(data={**item.data, " more": "7"})

    def lacking(self, item: Item, number: int) -> Item:
        """Return the row with a word for none in the column."""
        return item._replace(data={**item.data, self.column: MISSING[number % len(MISSING)]})


class Captions(Pictures):
    """Pictures with a sentence each."""

    part = "image_text"

    def write(self, folder: Path, splits: Splits) -> str:
        """Write them as parquet files."""
        return write_rows(folder, splits, "image", extra=("caption",))

    def lacking(self, item: Item, number: int) -> Item:
        """Return the picture with a word for no sentence."""
        return item._replace(text=MISSING[number % len(MISSING)])


class Game(RealSet):
    """Episodes of an environment under random actions, as one file of arrays."""

    part = "rl"
    counted = True

    def __init__(self, name: str, episodes: int = 200, steps: int = 40) -> None:
        self.name, self.episodes, self.steps = name, episodes, steps

    def items(self, data: Path) -> Splits:
        """Return frames, smaller by half, and actions of every episode."""
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        env = gymnasium.make(self.name, obs_type="grayscale")
        made = []
        for seed in range(self.episodes):
            frames, actions = [env.reset(seed=seed)[0]], []
            env.action_space.seed(seed)
            for _ in range(self.steps):
                actions.append(env.action_space.sample())
                frames.append(env.step(actions[-1])[0])
            made.append(Item({"frames": np.stack(frames[:-1])[:, ::2, ::2], "actions": np.array(actions)}))
        return {"train": made, "val": [], "test": []}

    def write(self, folder: Path, splits: Splits) -> str:
        """Write them as one file."""
        data: list[Mapping[str, np.ndarray]] = [item.data for item in splits["train"]]
        arrays: dict[str, Any] = {
            name: np.concatenate([each[name] for each in data]) for name in ("frames", "actions")
        }
        ends = np.concatenate([np.arange(len(each["actions"])) == len(each["actions"]) - 1 for each in data])
        np.savez(folder / "episodes.npz", terminals=ends, **arrays)
        return str(folder / "episodes.npz")


def archived(file: Path, suffix: str) -> list[Item]:
    """Return the members of an archive that end so, with their folder as the label."""
    with tarfile.open(file) as archive:
        members = sorted((m for m in archive if m.name.endswith(suffix)), key=lambda m: m.name)
        read = [(member.name, archive.extractfile(member)) for member in members]
        return [
            Item(opened.read(), name.rpartition("/")[0].replace("/", "_") or "all")
            for name, opened in read if opened is not None
        ]  # fmt: skip


def rows_of(file: Path, column: str) -> list[Item]:
    """Return the rows of a parquet file: bytes of a picture or a text, label and sentence."""
    made = []
    for row in parquet.read_table(file).to_pylist():
        cell = row[column]
        made.append(
            Item(cell["bytes"] if isinstance(cell, dict) else cell, row.get("label"), row.get("sentence"))
        )
    return made


def write_files(folder: Path, splits: Splits, suffix: str) -> str:
    """Write a file for each sample, called by its place in its split."""
    for split, items in splits.items():
        for number, item in enumerate(items):
            path = folder / split / str(item.label) / f"{split} {number} file{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(item.data)
    return str(folder)


def write_rows(folder: Path, splits: Splits, column: str, extra: Sequence[str]) -> str:
    """Write a parquet file for each split and return the pattern that names them."""
    for split, items in splits.items():
        columns: dict[str, Any] = {column: [item.data for item in items]}
        columns |= {name: [item.text for item in items] for name in extra}
        if not extra and items[0].label is not None:
            columns["label"] = [item.label for item in items]
        parquet.write_table(arrow.table(columns), folder / f"rows-{split}.parquet", row_group_size=1000)
    return str(folder / "rows-*.parquet")


SETS: dict[str, RealSet] = {
    "mnist": Pictures("image/mnist-train.parquet", "image/mnist-test.parquet", uniform=True),
    "cifar10": Pictures("image/cifar10-train.parquet", "image/cifar10-test.parquet", most=10_000, uniform=True),
    "caltech101": Pictures("image/caltech101-train.tar", "image/caltech101-test.tar"),
    "camvid": Pictures("image/camvid-train.tar", "image/camvid-val.tar", uniform=True),
    "fsdd": Sounds("audio/fsdd-train.tar", "audio/fsdd-test.tar", ".flac"),
    "esc10": Sounds("audio/esc10-train.tar", "audio/esc10-test.tar", ".ogg"),
    "camera-motion": Films("video/camera-motion-train.tar", "video/camera-motion-test.tar"),
    "agnews": Documents("text/agnews-train.parquet", "text/agnews-test.parquet", "description"),
    "sst2": Documents("text/sst2-train.parquet", "text/sst2-dev.parquet"),
    "adult": Table("tabular/adult-train.csv", "tabular/adult-test.csv", "age"),
    "california": Table("tabular/california-train.parquet", "tabular/california-test.parquet", "households"),
    "nlvr": Captions("pairs/nlvr-train.parquet", "pairs/nlvr-test.parquet", most=2_000, uniform=True),
    "pong": Game("ALE/Pong-v5"),
}  # fmt: skip
