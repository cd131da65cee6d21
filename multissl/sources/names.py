"""What the names of files, folders and columns say: the split, the class and the order of samples.  State: none."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STRAYS = 0.1
"""Share of files that may lie beside folders without hiding what these say."""
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The split that a word names, in names of folders and shards and in the column `split` of tables."""
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path")
"""What columns of paths are called, the preferred name first."""
LABELS = (
    "label",
    "labels",
    "class",
    "target",
    "fine_label",
    "class_name",
    "label_name",
    "class_id",
    "category",
)
"""What columns of classes are called, the preferred name first."""
SPELLINGS = {
    "image": (
        "image_bytes",
        "bytes",
        "img",
        "jpg",
        "png",
        "picture",
        "photo",
        "img_path",
        "img_file",
        "image_name",
        "img_name",
    ),
    "audio": ("audio_bytes", "bytes", "sound", "wav", "flac", "mp3", "recording", "audio_filepath", "clip"),
    "video": ("video_bytes", "bytes", "mp4", "clip", "film", "movie"),
}
"""What columns of pictures, sounds and films are called, too."""


def split_in_name(path: str) -> str:
    """Return the split that a word of a file's name names, as in `x-train-0.tar`; "" where none does."""
    words = re.split(r"[^a-z0-9]+", Path(path).stem.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def read_folders(parts: list[list[str]]) -> tuple[list[str | None], list[str]]:
    """Return the class and the split of files from their paths `[split/][class/]...`, each path as a list of names.

    The first folders are splits where every path begins with the name of one, but for a few strays, which are trained
    on without a class.
    """
    folders = [tuple(path[:-1]) for path in parts]
    said = said_by_folders(Counter(folders))
    return [said[folder][0] for folder in folders], [said[folder][1] for folder in folders]


def said_by_folders(counts: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], tuple[str | None, str]]:
    """Return what `read_folders` does of each folder, a path as names, by how many files lie in it."""
    files = sum(counts.values())
    splits = {folder: SPLIT_WORDS.get(folder[0].lower(), "") if folder else "" for folder in counts}
    strays = sum(count for folder, count in counts.items() if not splits[folder])
    tagged = strays <= STRAYS * files and not (strays and len(set(splits.values())) < 3)
    inner = {f: (f[1:] if split else ()) if tagged else f for f, split in splits.items()}
    loose = sum(count for folder, count in counts.items() if not inner[folder])
    classes = {f: below[0] if below and loose <= STRAYS * files else None for f, below in inner.items()}
    return {f: (classes[f], (splits[f] or "train") if tagged else "") for f in counts}


def normal_name(name: str) -> str:
    """Return the name of a column in one spelling: `File Name` and `file-name` are `file_name`."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def file_columns(kind: str) -> tuple[str, ...]:
    """Return what columns of files of a kind are called, the preferred name first."""
    own = (kind, *(f"{kind}_{word}" for word in PATHS))
    return (*own, *SPELLINGS.get(kind, (f"{kind}_bytes", "bytes")), *PATHS)


def pick_column(columns: Sequence[str], candidates: Sequence[str], required: bool = True) -> str:
    """Return the first column that is called like a candidate; where none is, raise an error or return "".

    Upper and lower case, spaces, dashes and underscores are alike.
    """
    spelt = {normal_name(name): name for name in reversed(columns)}
    column = next((spelt[normal_name(name)] for name in candidates if normal_name(name) in spelt), "")
    if required and not column:
        plain = [name for name in candidates if name in ("path", "file")]
        usual = " or ".join(dict.fromkeys((candidates[0], *plain, *candidates[1:3])))
        raise ValueError(
            f"want a column {usual}, found {', '.join(columns) or 'none'}: name yours by --modality.column"
        )
    return column


def first_dot(name: str) -> tuple[str, str]:
    """Return the name of a member up to its first dot, with its folder (webdataset's key), and the rest."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, f"{dot}{suffix.lower()}"


def last_dot(name: str) -> tuple[str, str]:
    """Return the name of a member up to its last dot, with its folder, and the rest in lower case."""
    stem, suffix = os.path.splitext(name.removeprefix("./"))
    return stem, suffix.lower()


def find_test_file(path: str) -> list[str]:
    """Return the test file that lies beside a train file and is named like it, as a list of one; [] for none."""
    beside = os.path.join(os.path.dirname(path), name_of_test_file(os.path.basename(path)))
    return [beside] if beside != path and os.path.isfile(beside) else []


def name_of_test_file(name: str) -> str:
    """Return what the test file is called that belongs to a train file; the name itself where it is none."""
    return re.sub(r"(?i)(?<![a-z0-9])train(?![a-z0-9])", "test", name)


def expand_braces(pattern: str) -> list[str]:
    """Return the patterns that `a{1..3}.tar` and `a{b,c}.tar` stand for, in order."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]):
        choices = [str(i).zfill(len(span[1])) for i in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = braces[1].split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [expanded for choice in choices for expanded in expand_braces(before + choice + after)]


def named_files(pattern: str) -> list[str]:
    """Return the files that a pattern names: `data/*.tar`, `data/{00..12}.tar`, `data/{a,b}.parquet`."""
    return sorted(path for part in expand_braces(pattern) for path in glob.glob(part))


def natural_key(name: str) -> tuple[list[Any], str]:
    """Return a key that sorts the files of a sequence as people count: frame2.png before frame10.png.

    Runs of decimal digits, of any script, compare as whole numbers, all else as text without case. The suffix is left
    out, so that a plain name comes before its numbered ones; names equal so far, such as frame1 and frame01, compare as
    they are written. The order is total and does not depend on the file system or the locale.
    """
    parts: list[Any] = re.split(r"(\d+)", os.path.splitext(name)[0].casefold())
    for place in range(1, len(parts), 2):  # text and numbers take turns
        digits = "".join(str(unicodedata.decimal(c)) for c in parts[place]).lstrip("0")
        parts[place] = (len(digits), digits)  # as an int it would have a longest length
    return parts, name
