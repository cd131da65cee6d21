"""Masks are found by the names of pictures, in folders and in archives."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from multissl.sources.archives import members
from multissl.sources.companions import Rule, companion, label_maps
from multissl.sources.opening import open_source
from multissl.sources.payloads import Slice


@pytest.mark.parametrize(
    ("rule", "stem", "renamed"),
    [
        ("images=masks", "/d/images/train/a", "/d/masks/train/a"),
        ("images=masks", "/images/d/images/a", "/images/d/masks/a"),
        ("images=masks", "/d/pictures/a", None),
        ("_leftImg8bit=_gtFine", "d/a_leftImg8bit", "d/a_gtFine"),
        ("=_mask", "d/a", "d/a_mask"),
        ("=", "d/a", "d/a"),
    ],
)
def test_a_rule_changes_a_folder_or_the_end_of_a_name(rule: str, stem: str, renamed: str | None) -> None:
    assert Rule.of(rule).applied(stem) == renamed


@pytest.mark.parametrize("text", ["masks", "a/b=c", "a=b/c"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="want OLD=NEW"):
        Rule.of(text)


def test_the_first_file_that_is_there_is_taken_and_never_the_picture_itself(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/b.jpg", "images/b.png", "masks/a.npy", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rules = [[Rule.of("images=masks")], [Rule.of("=")]]
    find = lambda name: companion(str(tmp_path / "images" / name), rules, (".png", ".npy"))  # noqa: E731
    assert find("a.png") == str(tmp_path / "masks/a.png")
    assert find("b.jpg") == str(tmp_path / "images/b.png")
    assert find("b.png") is None
    assert companion(b"bytes", rules, (".png",)) is None
    (tmp_path / "masks/b.npy").touch()
    assert find("b.png") == str(tmp_path / "masks/b.npy")


def test_members_of_an_archive_have_theirs_in_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("x.jpg", "x.png", "y.jpg"):
            (tmp_path / name).write_bytes(name.encode())
            tar.add(tmp_path / name, name)
    parts = {part.name: part for part in members(str(tmp_path / "a.tar"))}
    found = companion(parts["x.jpg"], [[Rule.of("=")]], (".png",))
    assert isinstance(found, Slice)
    assert found.read() == b"x.png"
    assert companion(parts["y.jpg"], [[Rule.of("=")]], (".png",)) is None


NAMES = [f"images/{name}" for name in ("a.jpg", "b.jpg", "c.jpg")] + [
    "masks/a.png",
    "masks/b.png",
    "masks/alone.png",
]


@pytest.mark.parametrize("packed", [False, True])
def test_masks_beside_pictures_are_counted_and_are_no_pictures(
    tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    for name in [*NAMES, "images/c_mask.png"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    place = shutil.make_archive(str(tmp_path / "set"), "zip", root) if packed else str(root)
    source = open_source(place, "all", (".jpg", ".png"), "image")
    found = [item.name if isinstance(item, Slice) else item for item in source.data]
    assert sorted(Path(name).name for name in found) == ["a.jpg", "alone.png", "b.jpg", "c.jpg"]
    assert "masks or depth maps of pictures beside them 3" in capsys.readouterr().err


def test_names_that_only_sound_like_masks_stay() -> None:
    assert label_maps(["labels/a.png", "photos/a.png", "unmask/images_mask.png", "x_L.png", "x.png"]) == set()
    assert label_maps(["s/train/1.png", "s/trainannot/1.png", "s/y.png", "s/y_depth.png"]) == {
        "s/trainannot/1.png", "s/y_depth.png",
    }  # fmt: skip
