"""A run knows its data again: what was appended, removed, shuffled, changed or replaced is named before it goes on."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multissl import cli
from multissl.contract.modality import Modality
from multissl.modalities.audio.adapter import Audio
from multissl.modalities.image.adapter import Image
from multissl.modalities.rl.adapter import RL
from multissl.modalities.tabular.adapter import Tabular
from multissl.modalities.text.adapter import Text
from multissl.modalities.video.adapter import Video
from multissl.run.identity import Identity, identity_of
from multissl.sources.identity import keys_of
from multissl.sources.payloads import Joined, Paths, Some
from tests.helpers.paired_data import pairs, png

COUNT = 24
Items = list[tuple[str, int]]
"""Names and seeds of what is written, in order."""


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(1, 255, size + seed % 7, dtype=np.uint8).tobytes()


def files(folder: Path, items: Items, suffix: str, content: Callable[[int], bytes]) -> None:
    for name, seed in items:
        path = folder / f"c{seed % 2}" / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(seed))


def wav(seed: int) -> bytes:
    data = noise(seed, 40_000)
    data = data[: len(data) // 2 * 2]
    head = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + head
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


def image(folder: Path, items: Items) -> Modality:
    files(folder, items, ".png", lambda seed: png(seed * 5) + bytes(seed))
    return Image(Image.Config(data=str(folder)))


def video(folder: Path, items: Items) -> Modality:
    for name, seed in items:
        for frame in range(2):
            path = folder / f"c{seed % 2}" / name / f"{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(seed * 5) + bytes(seed))
    return Video(Video.Config(data=str(folder)))


def audio(folder: Path, items: Items) -> Modality:
    files(folder, items, ".wav", wav)
    return Audio(Audio.Config(data=str(folder)))


def text(folder: Path, items: Items) -> Modality:
    rows = [
        {"text": f"{'abcdefgh'[seed % 8]} words of number {seed}", "label": seed % 2} for _, seed in items
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Text(Text.Config(data=str(folder / "a.jsonl")))


def tabular(folder: Path, items: Items) -> Modality:
    rows = [f"{seed * 1.5},{'xyz'[seed % 3]},{seed % 2}" for _, seed in items]
    (folder / "a.csv").write_text("\n".join(["number,word,target", *rows]) + "\n")
    return Tabular(Tabular.Config(data=str(folder / "a.csv")))


def rl(folder: Path, items: Items) -> Modality:
    frames = np.stack(
        [np.frombuffer(noise(seed * 7, 5 * 64), np.uint8).reshape(5, 8, 8) for _, seed in items]
    )
    np.savez(
        folder / "a.npz", frames=frames.reshape(-1, 8, 8), actions=np.arange(5 * len(items)) % 5 % 3,
        episode_ends=5 * np.arange(1, len(items) + 1),
    )  # fmt: skip
    return RL(RL.Config(data=str(folder / "a.npz"), size=8, local_size=8, patch=4))


def paired(folder: Path, items: Items) -> Modality:
    for name, seed in items:
        (folder / f"{name}.png").write_bytes(png(seed * 5) + bytes(seed))
        (folder / f"{name}.txt").write_text(f"the words of number {seed}")
    return pairs(str(folder))


MAKERS = [image, video, audio, text, tabular, rl, paired]
BEGIN: Items = [(f"n{i:03}", i) for i in range(COUNT)]
CHANGES: dict[str, Items] = {
    "appended": [*BEGIN, ("n900", 100), ("n901", 101)],
    "removed": BEGIN[:-4],
    "shuffled": [BEGIN[i] for i in np.random.default_rng(3).permutation(COUNT)],
    "changed": [(name, seed + 200 * (i == 3)) for i, (name, seed) in enumerate(BEGIN)],
    "replaced": [(f"m{i:03}", 300 + i) for i in range(COUNT)],
}
SAID = {
    "appended": "were appended|came in",
    "removed": "were removed",
    "shuffled": "shuffled",
    "changed": "sizes, values or labels of some have changed",
    "replaced": "were replaced|sizes, values or labels of some have changed",
}


def identity(make: Callable[[Path, Items], Modality], folder: Path, items: Items) -> Identity:
    folder.mkdir(parents=True)
    return identity_of(make(folder, items).fit(), with_validation=True)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_every_modality_names_what_became_of_its_data(
    make: Callable[[Path, Items], Modality], tmp_path: Path
) -> None:
    before = identity(make, tmp_path / "before", BEGIN).summary()
    assert {*before} - {"test"} == {"train", "val"}
    assert identity(make, tmp_path / "moved", BEGIN).differences(before) == []
    for change, items in CHANGES.items():
        if change == "shuffled" and make in (image, video, audio, paired):
            continue  # files of a folder have no order but that of their names
        lines = identity(make, tmp_path / change, items).differences(before, "rows")
        assert lines, change
        assert any(said in line for line in lines for said in SAID[change].split("|")), (change, lines)


def test_files_whose_names_were_exchanged_have_changed(tmp_path: Path) -> None:
    before = identity(image, tmp_path / "before", BEGIN).summary()
    items = [("n000", 2), ("n001", 1), ("n002", 0), *BEGIN[3:]]
    lines = identity(image, tmp_path / "after", items).differences(before)
    assert lines == ["train: 22 samples as before, but sizes, values or labels of some have changed"]


def test_only_splits_that_both_know_are_compared(tmp_path: Path) -> None:
    made = tabular(tmp_path, BEGIN).fit()
    both, one = (identity_of(made, with_validation=flag) for flag in (True, False))
    assert both.differences(one.summary()) == one.differences(both.summary()) == []
    assert identity_of(Image(Image.Config()), with_validation=True).summary() == {}  # drawn from the options


def test_payloads_are_known_by_name_and_size_in_any_nesting(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 4), ("c", 5)):
        (tmp_path / name).write_bytes(bytes(size))
    paths = Paths(str(tmp_path), ["a", "b", "c", "gone"])
    keys = keys_of(Joined([paths, Some(paths, [2, 0])]))
    assert keys.contents.tolist() == [3, 4, 5, 1, 5, 3]
    assert keys.names[4] == keys.names[2] != keys.names[0] == keys.names[5]
    os.rename(tmp_path, tmp_path.with_name("elsewhere"))
    moved = keys_of(Paths(str(tmp_path.with_name("elsewhere")), ["a", "b", "c", "gone"]))
    assert (moved.names == keys.names[:4]).all()
    tmp_path.mkdir()


def test_a_run_stops_at_other_data_and_goes_on_where_that_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    items: Items = [(f"n{i:03}", i) for i in range(80)]
    tabular(tmp_path, items)
    words = [
        "train", "tabular", "--data", "a.csv", "--batch_size", "8", "--data.workers", "0", "--out", "run",
        "--save.every", "2", "--loggers", "none",
    ]  # fmt: skip

    def start(*more: str) -> tuple[int, str]:
        code = cli.main([*words, *more])
        return code, capsys.readouterr().err

    assert start("--steps", "4")[0] == 0
    data = json.loads(Path("run/data.json").read_text())
    assert [entry["from_step"] for entry in data["entries"]] == [0]
    tabular(tmp_path, [*items, *(("n", 500 + i) for i in range(10))])
    for _ in range(2):  # refused again the second time: nothing was written down
        code, said = start("--steps", "6")
        assert code == 2
        assert "is not what run was trained on up to step 4" in said
        assert "rows, 8 were appended" in said
        assert "--accept-data" in said
    assert start("--steps", "6", "--accept-data")[0] == 0
    data = json.loads(Path("run/data.json").read_text())
    assert [entry["from_step"] for entry in data["entries"]] == [0, 5]
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if line["kind"] == "eval"].count(
        0
    ) == 2  # the floors, measured again
    assert start("--steps", "8")[0] == 0  # the data is now the run's own
    tabular(tmp_path, items)
    assert start("--steps", "10")[0] == 2
