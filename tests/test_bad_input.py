"""What a user gets wrong, from the command line: one line that names option, value and way out, and an exit code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from multissl import cli

TINY = [
    "--modality.size", "16", "--modality.local-size", "8", "--modality.patch", "4", "--modality.mask-group", "4",
    "--objective.head.prototypes", "16", "--objective.ibot-head.prototypes", "16", "--objective.koleo-group", "4",
    "--encoders.image.dim", "12", "--encoders.image.depth", "1", "--encoders.image.heads", "2",
    "--batch-size", "4", "--steps", "3", "--data.workers", "0", "--loggers", "none",
    "--evals.knn.every", "0", "--evals.collapse.every", "0",
]  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve good pictures in two class folders."""
    for i in range(12):
        folder = tmp_path / "data" / ("ab"[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.RandomState(i).randint(0, 256, (24, 24, 3), dtype=np.uint8)
        Picture.fromarray(noise).save(folder / f"{i}.jpg")
    return tmp_path / "data"


def train(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Return the exit code and what was printed."""
    return cli.main(["train", "image", *TINY, *args]), " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--batch-size", "1", "--modality.mask-group", "1"], ["koleo", "batch"]),
        (["--objective.mask-ratio", "0.1", "1.2"], ["mask_ratio", "1.2", "high < 1"]),
        (["--modality.size", "17"], ["modality.size=17", "multiple of patch=4", "16 or 20"]),
        (["--data", "/no/such/folder"], ["modality.data", "/no/such/folder"]),
        (["--objective.teacher.ema", "1.5"], ["ema=1.5", "0 to 1"]),
    ],
)
def test_a_wrong_value_stops_before_training(
    args: list[str], words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = train(capfd, "--out", str(tmp_path / "run"), *args)
    assert code == 2
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("step_*"))


def test_an_empty_folder_is_told_apart_from_one_without_pictures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    code, said = train(capfd, "--out", str(tmp_path / "run"), "--data", str(tmp_path / "data"))
    assert code == 2
    assert "modality.data" in said
    assert "Traceback" not in said


def test_a_pickle_offered_as_weights_is_refused_unread(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        code, said = train(capfd, "--out", str(tmp_path / "run"), "--init", str(tmp_path / name))
        assert code == 2, said
        assert name in said
        assert "Traceback" not in said
    torch.save({"w": torch.zeros(1)}, tmp_path / "zip.pt")
    assert train(capfd, "--out", str(tmp_path / "run"), "--init", str(tmp_path / "zip.pt"))[0] == 2
    assert not (tmp_path / "sprung").exists()


def test_broken_and_odd_files_among_good_ones_do_not_stop_a_run(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = (pictures / "a" / "0.jpg").read_bytes()
    (pictures / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    (pictures / "b" / "words.jpg").write_text("this is no picture")
    Picture.new("RGB", (1, 1), (200, 10, 10)).save(pictures / "a" / "dot.png")
    Picture.new("RGB", (20_000, 8), (10, 200, 10)).save(pictures / "b" / "wide.png")
    run = tmp_path / "run"
    code, said = train(capfd, "--out", str(run), "--data", str(pictures), "--steps", "8")
    assert code == 0, said
    notes = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines() if '"note"' in x]
    assert {"cut.jpg", "words.jpg"} <= {w for n in notes for w in ("cut.jpg", "words.jpg") if w in n["text"]}
    assert json.loads((run / "summary.json").read_text())["skipped"] == 2
    assert "cut.jpg" in said


def test_a_folder_that_cannot_be_written_stops_with_its_name(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, said = train(capfd, "--out", str(tmp_path / "file" / "run"), "--data", str(pictures))
    assert code == 2
    assert "--out" in said
    assert "give another --out" in said
