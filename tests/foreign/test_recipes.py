"""The default recipe of every modality takes steps on data that it was not made for: other sizes, rates and lengths."""

from __future__ import annotations

import csv
import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multissl import cli
from tests.foreign.cases import folder


def photograph(seed: int, width: int = 90, height: int = 61) -> bytes:
    rng, out = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


def recording(seed: int, rate: int = 11_025) -> bytes:
    rng, out = np.random.default_rng(seed), io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(rng.normal(0, 3000, (rate // 3 + 97 * seed, 2)).astype(np.int16).tobytes())
    return out.getvalue()


def film(seed: int) -> bytes:
    rng, out = np.random.default_rng(seed), io.BytesIO()
    np.save(out, rng.integers(0, 255, (7 + seed % 3, 34, 50, 3), dtype=np.uint8))
    return out.getvalue()


def image(root: Path) -> str:
    return folder(root, {f"{'xy'[i % 2]}/{i}.jpg": photograph(i) for i in range(24)})


def audio(root: Path) -> str:
    return folder(root, {f"{'xy'[i % 2]}/{i}.wav": recording(i) for i in range(24)})


def video(root: Path) -> str:
    return folder(root, {f"{'xy'[i % 2]}/{i}.npy": film(i) for i in range(24)})


def text(root: Path) -> str:
    words = [
        "the",
        "of",
        "a",
        "small",
        "large",
        "house",
        "tree",
        "river",
        "runs",
        "falls",
        "grows",
        "under",
        "over",
    ]
    rng = np.random.default_rng(0)
    with (root / "reviews.csv").open("w", newline="") as file:
        rows = [(" ".join(rng.choice(words, 30)), "good" if i % 2 else "bad") for i in range(80)]
        csv.writer(file).writerows([("review", "label"), *rows])
    return str(root / "reviews.csv")


def tabular(root: Path) -> str:
    rng = np.random.default_rng(0)
    lines = [f"{i};{rng.normal():.3f};{'abc'[i % 3]};{rng.integers(9)}".replace(".", ",") for i in range(200)]
    return str(Path(folder(root, {"t.csv": "\n".join(["id;dose;arm;count", *lines]).encode()}), "t.csv"))


def rl(root: Path) -> str:
    rng = np.random.default_rng(0)
    np.savez(
        root / "episodes.npz", observations=rng.normal(size=(400, 5)), actions=rng.integers(0, 4, 400),
        terminals=np.arange(400) % 20 == 19,
    )  # fmt: skip
    return str(root / "episodes.npz")


def image_text(root: Path) -> str:
    folder(root, {f"{i}.jpg": photograph(i) for i in range(24)})
    lines = ["filepath\ttitle", *(f"{i}.jpg\ta photograph, number {i} of 24" for i in range(24))]
    return str(Path(folder(root, {"pairs.tsv": "\n".join(lines).encode()}), "pairs.tsv"))


DATA: dict[str, Callable[[Path], str]] = {
    "tabular": tabular, "image": image, "audio": audio, "video": video, "text": text, "rl": rl,
    "image_text": image_text,
}  # fmt: skip


@pytest.mark.parametrize(
    "part", [p if p == "tabular" else pytest.param(p, marks=pytest.mark.slow) for p in DATA]
)
def test_the_default_recipe_takes_steps_on_data_of_others(
    part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    words: list[Any] = [
        "train",
        part,
        "--data",
        DATA[part](tmp_path / "data"),
        "--steps",
        "2",
        "--batch_size",
        "8",
    ]
    code = cli.main([*words, "--evals", "none", "--out", str(tmp_path / "run")])
    said = capfd.readouterr()
    assert code == 0, said.err
    assert "Traceback" not in said.out + said.err
