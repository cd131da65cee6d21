"""Archives: the same files inside a folder, a tar, a zip and packed tars are the same samples."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from multissl.contract.data import Unreadable
from multissl.modalities.image.files import SUFFIXES, load
from multissl.sources.archives import ARCHIVES, members
from multissl.sources.copies import equal_contents
from multissl.sources.opening import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTISSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder_of(root: Path, shape: tuple[int, int] = (12, 10)) -> Path:
    for i in range(24):
        path = root / ("train" if i % 3 else "test") / f"class{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (*shape, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(path)
    (root / "notes.txt").write_text("not a picture")
    return root


def packed(root: Path, path: Path, prefix: str = "") -> Path:
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for i, name in enumerate(names):
                method = zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED
                file.write(root / name, prefix + name, method)
        return path
    kind = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".txz": "w:xz", ".bz2": "w:bz2"}.get(
        path.suffix, "w"
    )
    with tarfile.open(path, kind) as file:  # type: ignore[call-overload]
        for name in names:
            file.add(root / name, prefix + name)
    return path


def seen(place: Path) -> list[tuple[str, str, str, bytes]]:
    """What a source says of every sample: its split, its class, its name and its pixels."""
    rows = []
    for split in ("train", "test"):
        data = open_source(str(place), split, SUFFIXES)
        for sample in data:
            name = sample.data if isinstance(sample.data, str) else sample.data.name
            rows.append(
                (split, data.classes[sample.label], os.path.basename(name), load(sample, 3).numpy().tobytes())
            )
    return sorted(rows)


@pytest.mark.parametrize("prefix", ["", "./", "mine/", "a/b/"])
@pytest.mark.parametrize("suffix", ARCHIVES)
def test_an_archive_of_a_folder_holds_the_samples_of_the_folder(
    tmp_path: Path, suffix: str, prefix: str
) -> None:
    root = folder_of(tmp_path / "all")
    assert seen(packed(root, tmp_path / f"mine{suffix}", prefix)) == seen(root)


def test_members_that_are_no_samples_are_counted(tmp_path: Path, said: list[str]) -> None:
    root = folder_of(tmp_path / "all")
    with zipfile.ZipFile(packed(root, tmp_path / "a.zip"), "a") as file:
        file.writestr("__MACOSX/train/class0/._01.png", b"a shadow of a Mac")
    open_source(str(tmp_path / "a.zip"), "train", SUFFIXES)
    assert "took 24 of 26 members; left out: hidden (their names begin with a dot) 1, .txt 1" in "\n".join(
        said
    )


def test_a_packed_tar_is_unpacked_once_and_again_when_it_changes(tmp_path: Path, cache: Path) -> None:
    root = folder_of(tmp_path / "all")
    archive = packed(root, tmp_path / "a.tar.gz")
    first = seen(archive)
    (copy,) = cache.rglob("*.tar")
    times = copy.stat().st_mtime_ns
    assert seen(archive) == first
    assert copy.stat().st_mtime_ns == times
    shutil.rmtree(root)
    packed(folder_of(root, (16, 16)), archive)
    assert seen(archive) != first
    assert len([*cache.rglob("*.tar")]) == 2


def test_equal_members_of_zips_are_copies(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 9, 5000, dtype=np.uint8).tobytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("a.png", "a-much-longer-name.png"):
            file.writestr(name, content)
        file.writestr("c.png", bytes(5000))
    assert equal_contents([*members(str(tmp_path / "a.zip"))]).sets.tolist() == [0, 0, 2]


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_damaged_archives_end_in_a_line_or_in_samples_that_are_left_out(tmp_path: Path, suffix: str) -> None:
    good = packed(folder_of(tmp_path / "all"), tmp_path / f"good{suffix}").read_bytes()
    draw = random.Random(0)
    for number in range(12):
        bad = bytearray(good)
        if number % 2:
            bad = bad[: draw.randrange(len(bad))]
        else:
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path = tmp_path / f"bad{number}{suffix}"
        path.write_bytes(bytes(bad))
        for line in refusals_of(path):
            assert str(path) in line
            assert "\n" not in line


def refusals_of(path: Path) -> list[str]:
    """Why an archive, or some of its samples, cannot be read."""
    try:
        data = open_source(str(path), "all", SUFFIXES)
    except ValueError as error:
        return [str(error)]
    lines = []
    for i in range(len(data)):
        try:
            load(data[i], 3)
        except Unreadable as error:
            lines.append(str(error).replace(data[i].data.path, str(path)))
    return lines


def test_what_a_zip_cannot_be_read_for_is_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.png", b"1" * 100)
    with pytest.raises(ValueError, match=r"a\.png is packed by method 14, known are stored and deflated"):
        list(members(str(tmp_path / "lzma.zip")))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.png", b"1" * 100)
    locked = bytearray(content.getvalue())
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(bytes(locked))
    with pytest.raises(ValueError, match=r"a\.png is encrypted: unpack it, and name the folder"):
        list(members(str(tmp_path / "locked.zip")))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    zeros = bytes(80 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", zeros)
    data = open_source(str(tmp_path / "bomb.zip"), "all", SUFFIXES)
    with pytest.raises(Unreadable, match="times its packed size"):
        load(data[0], 3)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as file:
        entry = tarfile.TarInfo("a.png")
        entry.size = len(zeros)
        file.addfile(entry, io.BytesIO(zeros))
    with pytest.raises(ValueError, match="times its packed size"):
        open_source(str(tmp_path / "bomb.tar.gz"), "all", SUFFIXES)
    assert not [*cache.rglob("*.tar")]
