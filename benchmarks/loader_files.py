"""The files that benchmarks/loaders.py reads: generated, nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from multissl.registry import require

VIDEOS, SOUNDS, TEXTS = 4, 16, 3000


def make_videos(folder: Path) -> None:
    """A window moved over a large picture of squares, 25 frames per second."""
    av = require("av")

    squares = (
        np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    )
    for v in range(VIDEOS):
        with av.open(str(folder / f"{v}.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=25, width=320, height=240, pix_fmt="yuv420p")
            for t in range(96):
                top, left = (2 * t + 9 * v) % 200, 3 * t % 300
                frame = np.ascontiguousarray(squares[top : top + 240, left : left + 320])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            file.mux(stream.encode())


def make_sounds(folder: Path) -> None:
    """Six seconds of noise with two tones."""
    soundfile = require("soundfile")

    at = np.arange(6 * 44_100) / 44_100
    for i in range(SOUNDS):
        rng = np.random.default_rng(i)
        wave = 0.05 * rng.normal(size=len(at)) + sum(
            0.2 * np.sin(at * 6.28 * f) for f in rng.uniform(80, 4000, 2)
        )
        soundfile.write(folder / f"{i:02d}.flac", wave, 44_100)


def make_texts(folder: Path) -> None:
    """Paragraphs of Python's own documentation, and a byte-level BPE trained on them."""
    from multissl.modalities.text.demo import documents
    from multissl.modalities.text.tokenizer import train_bpe

    texts = documents()[0][:TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    (folder / "tokenizer.json").write_text(train_bpe(texts, 4096).spec["tokenizer"])


def make_table(folder: Path) -> None:
    """The demo's table as a csv."""
    pandas = require("pandas")

    from multissl.modalities.tabular.tables import read_table

    pandas.DataFrame(dict(read_table("demo").columns)).to_csv(folder / "rows.csv", index=False)


def nothing(folder: Path) -> None:
    """Episodes are made while they are read."""
