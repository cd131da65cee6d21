"""Small whole files of every format that is read, and how each is read."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multissl.contract.data import Sample

Read = Callable[[Path], object]
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A kind of file."""

    suffix: str
    bodies: list[bytes]
    """Whole files, from which mutated ones are made."""
    read: Read
    text: bool = False


@functools.cache
def all_formats() -> dict[str, Format]:
    """Return every format by its name, made once in a process."""
    from tests.faults.fuzz import run_files  # which imports this file

    return {**pictures(), **sounds(), **films(), **tables(), **games(), **run_files.formats()}


def read_picture(path: Path) -> None:
    from multissl.modalities.image.files import load

    load(Sample(str(path), 0), 3)


def read_pictures(path: Path) -> None:
    from multissl.modalities.image.files import SUFFIXES, load
    from multissl.sources.opening import open_source

    samples = open_source(str(path), "train", SUFFIXES)
    for place in range(min(3, len(samples))):
        load(samples[place], 3)


def read_sound(path: Path) -> None:
    from multissl.modalities.audio.files import Clip

    clip = Clip(Sample(str(path), 0), 16000)
    clip.cut(0, min(clip.length, 16000))


def read_film(path: Path) -> None:
    from multissl.modalities.video import files

    sample = Sample(str(path), 0)
    clip = files.load_clip(sample)
    try:
        files.frames_of(clip, [0, min(3, len(clip.times) - 1)])
    except Exception as error:  # as the adapter does
        raise files.unreadable(sample, error) from None


def adapter(name: str) -> Read:
    """Return a function that builds a modality on a file and reads its first sample."""

    def read(path: Path) -> None:
        from multissl.modalities.rl.adapter import RL
        from multissl.modalities.tabular.adapter import Tabular
        from multissl.modalities.text.adapter import Text

        kinds: dict[str, Any] = {"tabular": Tabular, "text": Text, "rl": RL}
        samples = kinds[name].Config(data=str(path)).build().dataset("train")
        samples[0]

    return read


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def pictures() -> dict[str, Format]:
    from PIL import Image

    noise = rng().integers(0, 255, (24, 20, 3), dtype=np.uint8)
    smooth = np.add.outer(np.arange(24) * 5, np.arange(20) * 4)[..., None] + np.array([0, 20, 40])
    both = [noise, smooth.clip(0, 255).astype(np.uint8)]
    formats = {
        name.lower(): Format(
            suffix=f".{name.lower()}",
            bodies=[saved(lambda f, a=a, n=name: Image.fromarray(a).save(f, n)) for a in both],
            read=read_picture,
        )
        for name in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA")
    }
    formats["npy"] = Format(suffix=".npy", bodies=[saved(lambda f: np.save(f, noise))], read=read_picture)
    png = formats["png"].bodies[1]
    formats["tar"] = Format(suffix=".tar", bodies=[tar_of(png)], read=read_pictures)
    listing = b"path,label,split\n" + b"".join(b"d/%d.png,%d,train\n" % (i, i % 2) for i in range(20))
    formats["csv_list"] = Format(suffix=".csv", bodies=[listing], read=read_pictures, text=True)
    columns = {"image": [png] * 4, "label": [0, 1, 0, 1]}
    formats["parquet_image"] = Format(suffix=".parquet", bodies=[parquet(columns)], read=read_pictures)
    return formats


def tar_of(png: bytes) -> bytes:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for place in range(4):
                members = {f"c{place % 2}/{place}.png": png, f"c{place % 2}/{place}.json": b'{"label": "x"}'}
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

    return saved(write)


def parquet(columns: dict[str, Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    return saved(lambda f: pyarrow.parquet.write_table(pyarrow.table(columns), f))


def sounds() -> dict[str, Format]:
    import soundfile

    values = (rng().normal(size=6000) * 8000).astype(np.int16)
    kinds = [
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"), ("AU", "PCM_16"),
    ]  # fmt: skip
    formats = {}
    for kind, sub in kinds:
        body = saved(lambda f, k=kind, s=sub: soundfile.write(f, values, 16000, format=k, subtype=s))
        name = f"{kind.lower()}{'_float' * (sub == 'FLOAT')}"
        formats[name] = Format(suffix=f".{kind.lower()}", bodies=[body], read=read_sound)
    return formats


def films() -> dict[str, Format]:
    import av

    formats = {}
    for suffix, codec in (("mp4", "mpeg4"), ("avi", "mjpeg")):

        def write(file: io.BytesIO, suffix: str = suffix, codec: str = codec) -> None:
            with av.open(file, "w", format=suffix) as container:
                stream: Any = container.add_stream(codec, rate=10)
                stream.width = stream.height = 32
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                for place in range(8):
                    frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), place * 20, np.uint8))
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())

        formats[suffix] = Format(suffix=f".{suffix}", bodies=[saved(write)], read=read_film)
    return formats


def tables() -> dict[str, Format]:
    rows = b"n,c,target\n" + b"".join(
        b"%d.5,%s,k%d\n" % (i, b'"a, b"' if i % 3 else b"zz", i % 2) for i in range(30)
    )
    texts = b"text,label\n" + b"".join(b'"words, number %d and so on",l%d\n' % (i, i % 2) for i in range(20))
    lines = b"".join(json.dumps({"text": f"words {i}", "label": i % 2}).encode() + b"\n" for i in range(20))
    plain = "\n".join(f"a line of text número {i}" for i in range(20)).encode()
    numbers = {"a": rng().normal(size=30), "b": ["x", "y", None] * 10, "target": [0, 1] * 15}
    words = {"text": ["some words here"] * 12, "label": ["a", "b"] * 6}
    table, text = adapter("tabular"), adapter("text")
    return {
        "csv_table": Format(suffix=".csv", bodies=[rows], read=table, text=True),
        "tsv_table": Format(suffix=".tsv", bodies=[rows.replace(b",", b"\t")], read=table, text=True),
        "parquet_table": Format(suffix=".parquet", bodies=[parquet(numbers)], read=table),
        "csv_text": Format(suffix=".csv", bodies=[texts], read=text, text=True),
        "jsonl_text": Format(suffix=".jsonl", bodies=[lines], read=text, text=True),
        "txt_text": Format(suffix=".txt", bodies=[plain], read=text, text=True),
        "parquet_text": Format(suffix=".parquet", bodies=[parquet(words)], read=text),
    }


def games() -> dict[str, Format]:
    arrays: dict[str, Any] = {
        "frames": rng().integers(0, 255, (20, 8, 8), dtype=np.uint8),
        "actions": np.arange(20) % 3,
        "terminated": np.arange(20) % 5 == 4,
    }
    bodies = [
        saved(lambda f: np.savez(f, **arrays)),
        saved(lambda f: np.savez_compressed(f, **arrays)),
    ]
    return {"npz": Format(suffix=".npz", bodies=bodies, read=adapter("rl"))}
