"""Small pairs on disk, and recipes of pairs made small enough for tests.

A sample of class k has a picture of brightness 20 * k, a caption with its number in words, a tone of its own, frames
and cells that tell the same.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from torch import Tensor

from multissl.contract.data import Sample, Views
from multissl.contract.plans import CLEAN, Plans
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.paired.adapter import Paired
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.random import RowRandom

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE = 16_000


def png(level: int, side: int = 16) -> bytes:
    """A gray picture that grows lighter from left to right."""
    pixels = np.clip(np.arange(side) + level, 0, 255).astype(np.uint8)
    made = io.BytesIO()
    Pillow.fromarray(np.broadcast_to(pixels[None, :, None], (side, side, 3)).copy()).save(made, "PNG")
    return made.getvalue()


def tone(number: int, seconds: float = 0.5) -> bytes:
    """A wav file."""
    t = np.arange(round(seconds * RATE)) / RATE
    made = io.BytesIO()
    with wave.open(made, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(RATE)
        f.writeframes((9000 * np.sin(2 * math.pi * (200 + 100 * number) * t)).astype(np.int16).tobytes())
    return made.getvalue()


def frames(level: int, count: int = 8, side: int = 16) -> bytes:
    """A npy file of frames that grow lighter."""
    made = io.BytesIO()
    brightness = np.clip(level + np.arange(count), 0, 255).astype(np.uint8)
    np.save(made, np.broadcast_to(brightness[:, None, None, None], (count, side, side, 3)))
    return made.getvalue()


def members(row: int, **more: bytes | str) -> dict[str, bytes | str]:
    """The files of one key, by suffix."""
    k = row % 10
    return {
        "png": png(20 * k), "txt": f"sample {row} shows {WORDS[k]}", "wav": tone(k), "video.npy": frames(20 * k),
        "json": json.dumps({"label": WORDS[k], "size": row / 10, "color": WORDS[k % 3]}), **more,
    }  # fmt: skip


def shard(path: Path, rows: Sequence[Mapping[str, bytes | str]]) -> str:
    """A tar shard of keys."""
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(rows):
            for suffix, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def class_folders(root: Path, suffix: str, count: int = 4, classes: int = 3) -> str:
    """Files in a folder for each class, called by its digit."""
    for k in range(classes):
        (root / str(k)).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            content = png(20 * k + i) if suffix == "png" else tone(k, 0.5 + i / 100)
            (root / str(k) / f"{i}.{suffix}").write_bytes(content)
    return str(root)


SMALL: dict[type, dict[str, Any]] = {
    Image.Config: {"size": 16, "local_size": 8, "patch": 4, "mask_group": 4, "blur_kernel": 3},
    Text.Config: {"length": 16, "local_length": 8, "vocab": 300, "mask_group": 4},
    Audio.Config: {"frames": 32, "local_frames": 16, "mels": 32, "patch": (8, 8), "mask_group": 4},
    Video.Config: {
        "frames": 4, "size": 16, "local_frames": 2, "local_size": 8, "patch": 4, "stride": 1, "seconds": 0.0,
        "mask_group": 4,
    },
}  # fmt: skip


def small(cfg: Paired.Config, folder: Path) -> Paired.Config:
    """The same pairs with small views, of data written into a folder where they have none built in."""
    made = {name: member.replace(**SMALL.get(type(member), {})) for name, member in cfg.members.items()}
    if cfg.join == "label":
        for name, member in made.items():
            if name not in cfg.prompts:
                suffix = "png" if isinstance(member, Image.Config) else "wav"
                made[name] = member.replace(data=class_folders(folder / name, suffix))
        return cfg.replace(members=made)
    if {type(m) for m in made.values()} == {Image.Config, Text.Config}:
        return cfg.replace(members=made)
    rows = [members(row) for row in range(20)]
    return cfg.replace(members=made, data=(shard(folder / "pairs.tar", rows),))


# modalities of them

IMAGE = Image.Config(**SMALL[Image.Config])
TEXT = Text.Config(pack=False, **SMALL[Text.Config])
BOTH: Plans = {"image": CLEAN, "text": CLEAN}


def pairs(data: str | tuple[str, ...], **options: Any) -> Paired:
    given = {"members": {"image": IMAGE, "text": TEXT}, **options}
    return Paired(Paired.Config(data=(data,) if isinstance(data, str) else data, **given))


def rows(count: int = 20) -> list[dict[str, bytes | str]]:
    return [{k: v for k, v in members(i).items() if k in ("png", "txt", "json")} for i in range(count)]


def clean(made: Paired, samples: list[Sample], plans: Plans = BOTH) -> dict[str, Views]:
    rng = RowRandom((0, 0), 0, len(samples), len(samples))
    return {v.stream: v for v in made.views(made.collate(samples, plans, rng), plans, rng)}


def every(made: Paired, split: str = "all") -> list[Sample]:
    data: Any = made.dataset(split)
    return [data[i] for i in range(len(data))]


def written(views: Views, made: Paired) -> list[str]:
    text = made.members["text"]
    assert isinstance(text, Text)
    words = text.vocabulary()
    return ["".join(words.pieces(row[row != words.pad].tolist())).strip() for row in views.x]


def ids(views: Views) -> Tensor:
    assert views.sample_id is not None
    return views.sample_id
