"""Folders of many files: each file is asked for its size once at a time, folders that stay are listed once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import listing
from multissl.sources import identity, payloads
from multissl.sources.base import Request
from multissl.sources.copies import equal_contents
from multissl.sources.folder import FolderSource
from multissl.sources.payloads import FOLDER, GONE, Paths, Some
from multissl.sources.walking import walk

OLD = 10**18


def put(root: Path, names: list[str], content: bytes = b"x") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_names_have_the_numbers_that_runs_of_before_wrote_down() -> None:
    for names in ([b"a/0.png", "ü/€.png".encode(), b""], [b"a.png", b"\xff\xfe.png"]):
        expected = [identity._number(os.fsdecode(name)) for name in names]
        assert identity._numbers_of_names(names).tolist() == expected


def test_sizes_of_files_folders_and_what_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "FIRST", 2)
    monkeypatch.setattr(payloads, "AT_ONCE", 2)
    names = [f"{i}.png" for i in range(7)]
    for i, name in enumerate(names):
        put(tmp_path, [name], b"x" * i)
    (tmp_path / "folder").mkdir()
    files = Paths(str(tmp_path), [*names, "folder", "gone.png"])
    for slow in (1e9, -1.0):  # one after the other, and several at a time
        monkeypatch.setattr(payloads, "SLOW", slow)
        assert files.sizes(np.arange(9)).tolist() == [*range(7), FOLDER, GONE]
        assert files.sizes(np.array([5, 1])).tolist() == [5, 1]
    keys = identity.keys_of(files)
    assert keys.contents[:7].tolist() == [*range(7)]
    assert keys.contents[8] == identity.GONE


def test_files_that_are_compared_by_their_sizes_first_are_equal_as_any(tmp_path: Path) -> None:
    put(tmp_path, ["a", "b"], b"equal")
    put(tmp_path, ["c"], b"other")
    put(tmp_path, ["d", "e"], b"")
    put(tmp_path, ["f"], b"of another size")
    names = ["a", "b", "c", "d", "e", "f"]
    files = Paths(str(tmp_path), names)
    for fast, slow in (
        (files, [str(tmp_path / name) for name in names]),
        (Some(files, [5, 1, 0]), [str(tmp_path / names[i]) for i in (5, 1, 0)]),
    ):
        one, other = equal_contents(fast), equal_contents(slow)
        assert one.sets.tolist() == other.sets.tolist()
        assert one.compared.tolist() == other.compared.tolist()
    assert equal_contents(files).sets.tolist() == [0, 0, 2, 3, 4, 5]


def test_a_folder_that_has_stayed_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, ["a/0.png", "a/1.png", "b/c/2.png"])
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        os.utime(folder, ns=(OLD, OLD))
    listed: list[str] = []
    original = os.scandir

    def counted(path: Any = ".") -> Any:
        listed.append(os.path.relpath(path, tmp_path))
        return original(path)

    monkeypatch.setattr(os, "scandir", counted)
    request, source = Request(str(tmp_path), (".png",), "image"), FolderSource()
    first = source.stamp(request)
    assert sorted(listed) == [".", "a", "b", "b/c"]
    assert source.stamp(request) == first
    assert len(listed) == 4
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "3.png")
    assert source.stamp(request) != first
    assert listed[4:] == ["a"]
    assert source.stamp(request) != first
    assert listed[4:] == ["a", "a"], "it changed a moment ago, and could change again within the same time"


def test_a_link_to_itself_and_one_to_nothing_are_files(tmp_path: Path) -> None:
    put(tmp_path, ["a/0.png"])
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "a" / "lost.png").symlink_to("nowhere.png")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    assert sorted(walk(str(tmp_path))) == ["a/0.png", "a/lost.png", "a/self.png"]


def test_one_changed_file_among_many_is_seen(tmp_path: Path) -> None:
    listing.make_files(tmp_path / "files", 60, folders=6)
    before = listing.listed(str(tmp_path / "files"))
    assert before.files == 60
    assert listing.listed(str(tmp_path / "files")).summary == before.summary
    next((tmp_path / "files" / "class0003").iterdir()).write_bytes(b"another size")
    assert listing.listed(str(tmp_path / "files")).summary != before.summary


@pytest.mark.slow
def test_the_benchmark_measures_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing.measure_files(20_000, str(tmp_path / "files"))
    listing.measure_csv(2_000, str(tmp_path))
    said = capsys.readouterr().out
    assert said.count("20,000 files listed") == 2
    assert "unchanged data is known again: True; a changed file is seen: True" in said
    assert "2,000 rows: ours" in said
