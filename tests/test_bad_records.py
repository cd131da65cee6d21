"""One bad record among good ones, through the command line: the run trains, says which one, counts it and lists it.

What a record can suffer is tested beside each modality's files; this is the way from there to the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multissl import cli

GOOD = 20


def videos(folder: Path) -> Path:
    """Arrays of frames, one of them cut off."""
    for i in range(GOOD):
        frames = np.random.default_rng(i).integers(0, 255, (8, 20, 24, 3), dtype=np.uint8)
        np.save(folder / f"clip{i}.npy", frames)
    (folder / "cut.npy").write_bytes((folder / "clip0.npy").read_bytes()[:5000])
    return folder


def sounds(folder: Path) -> Path:
    """Noises, one of them silent."""
    soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    for i in range(GOOD):
        soundfile.write(folder / f"noise{i}.wav", np.random.default_rng(i).normal(0, 0.1, 9000), 16_000)
    soundfile.write(folder / "cut.wav", np.zeros(9000), 16_000)
    return folder


def texts(folder: Path) -> Path:
    """Lines, one of them no JSON."""
    pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
    words = "abcdefghijklmnopqrst"
    rows = [json.dumps({"text": f"the {w} sat on a mat " * 3, "label": i % 2}) for i, w in enumerate(words)]
    (folder / "cut.jsonl").write_text("\n".join([*rows[:5], '{"text": "the', *rows[5:]]))
    return folder / "cut.jsonl"


def rows(folder: Path) -> Path:
    """Rows of a table, one with a cell too few."""
    lines = [f"{i % 7},{i * 0.37:.2f},{'red' if i % 3 else 'blue'},{i % 2}" for i in range(GOOD)]
    (folder / "cut.csv").write_text("\n".join(["a,b,c,target", *lines[:5], "1,2", *lines[5:]]) + "\n")
    return folder / "cut.csv"


def episodes(folder: Path) -> Path:
    """Episodes of 5 frames, one of a single one: fewer than two views span."""
    lengths = [5, 5, 5, 1, 5, 5]
    frames = np.random.default_rng(0).integers(0, 255, (sum(lengths), 36, 36), dtype=np.uint8)
    np.savez(
        folder / "cut.npz",
        frames=frames,
        actions=np.arange(sum(lengths)) % 3,
        episode_ends=np.cumsum(lengths),
    )
    return folder / "cut.npz"


CASES: dict[str, tuple[Callable[[Path], Path], str, int, list[str]]] = {
    "video": (
        videos, "cut.npy", 1,
        ["frames=4", "size=16", "local_size=8", "patch=8", "stride=1"],
    ),
    "audio": (
        sounds, "is silent", 1,
        ["frames=32", "local_frames=16", "mels=32", "patch", "8", "8", "mean=-8", "std=4"],
    ),
    "text": (texts, "is no JSON", 1, ["vocab=300", "length=16", "local_length=8"]),
    "tabular": (rows, "has 2 cells, the header names 4", 1, []),
    "rl": (
        episodes, "its views span 2", 1,
        ["size=36", "local_size=36", "horizon=1"],
    ),
}  # fmt: skip
"""By modality: what makes the data, what is said of the bad record, how many samples it is, options."""


@pytest.mark.parametrize("name", CASES)
def test_a_bad_record_is_skipped_said_counted_and_listed(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, words, count, options = CASES[name]
    (tmp_path / "data").mkdir()
    out, data = tmp_path / "run", make(tmp_path / "data")
    command = ["train", name, "--data", str(data), "--out", str(out), "--batch-size", "4", "--steps", "12"]
    command += ["--data.workers", "0", "--loggers", "none", "--modality.mask-group", "4"]
    for option in options:
        command += [f"--modality.{option}" if option[0].isalpha() else option]
    assert cli.main([*command, *quiet(name)]) == 0, capfd.readouterr().err
    said = capfd.readouterr().err
    notes = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines() if '"note"' in x]
    listed = [n["text"] for n in notes if words in n["text"]]
    assert len(listed) == count, notes
    assert json.loads((out / "summary.json").read_text())["skipped"] == count
    assert said.count("cannot be read and is skipped") == count
    assert words in said
    assert words in (out / "report.html").read_text()
    assert "Traceback" not in said


def quiet(name: str) -> list[str]:
    """No evaluation: these data have no classes, and the bad record is met by the training."""
    evals = ["state", "knn", "collapse"] if name == "rl" else ["knn", "linear", "collapse"]
    return [word for each in evals for word in (f"--evals.{each}.every", "0")]
