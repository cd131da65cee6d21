"""Masks and depth maps beside pictures: cut as the picture is, checked, and named where they are wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from multissl.contract.abilities import IGNORED
from multissl.contract.data import Unreadable
from multissl.contract.plans import ViewPlan
from multissl.inference import readable_views
from multissl.modalities.image import pixel_labels
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.pixel_labels import as_classes, as_depths

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
OPTIONS = {"size": 16, "local_size": 8, "patch": 8, "blur": "none", "mean": (0.0,) * 3, "std": (1.0,) * 3}


def write(folder: Path, name: str, values: np.ndarray, mode: str | None = None) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Pictures.fromarray(values, mode).save(folder / name)


def scenes(folder: Path, count: int = 3, height: int = 24, width: int = 40) -> None:
    """Pictures whose brightness is ten times their mask, in halves."""
    for i in range(count):
        mask = np.zeros((height, width), np.uint8)
        mask[:, width // 2 :] = 3
        write(folder, f"images/{i}.png", np.repeat(mask[:, :, None] * 10, 3, 2))
        write(folder, f"masks/{i}.png", mask)


def opened(folder: Path, **options: object) -> Image:
    return Image.Config(data=str(folder / "images"), **{**OPTIONS, **options}).build().fit()  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [(), (24, 40), (8, 24)])
def test_a_mask_is_cut_as_its_picture_is(tmp_path: Path, whole: bool, size: tuple[int, ...]) -> None:
    scenes(tmp_path)
    modality = opened(tmp_path, clean_whole=whole)
    sample = modality.dataset("all")[0]
    mask = modality.pixel_labels(sample, "classes", size)
    views, _ = readable_views(modality, [sample], "image", plan=ViewPlan(num_clean=1, size=size))
    seen = views.x[0, 0] * 255 / 10
    assert mask.shape == seen.shape
    assert set(mask.unique().tolist()) == {0, 3}
    inside = (seen - seen.round()).abs() < 0.05  # the edge is a mixture in the picture, and never in the mask
    assert inside.float().mean() > 0.8
    assert torch.equal(mask[inside].float(), seen[inside].round())


def test_pictures_without_a_mask_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pixel_labels.log, "warning", lambda text, *values: said.append(text % values))
    scenes(tmp_path)
    (tmp_path / "masks/1.png").unlink()
    modality = opened(tmp_path)
    assert modality.with_pixel_labels("all", "classes") == [0, 2]
    assert said == ["1 of 3 pictures of the all split have no mask beside them and are left out"]
    with pytest.raises(Unreadable, match=r"1\.png has no mask beside it"):
        modality.pixel_labels(modality.dataset("all")[1], "classes")


def test_sizes_colors_and_classes_that_are_wrong_name_the_file(tmp_path: Path) -> None:
    scenes(tmp_path)
    write(tmp_path, "masks/0.png", np.zeros((24, 41), np.uint8))
    write(tmp_path, "masks/1.png", np.zeros((24, 40, 3), np.uint8))
    write(tmp_path, "masks/2.png", np.full((24, 40), 300, np.uint16))
    modality = opened(tmp_path)
    data = modality.dataset("all")
    with pytest.raises(
        Unreadable, match=r"masks/0\.png has 41 x 24 pixels, its picture .*images/0\.png 40 x 24"
    ):
        modality.pixel_labels(data[0], "classes")
    with pytest.raises(Unreadable, match=r"masks/1\.png.*one value for each pixel, not colors"):
        modality.pixel_labels(data[1], "classes")
    with pytest.raises(Unreadable, match=r"masks/2\.png.*holds the class 300: want 0 to 254"):
        modality.pixel_labels(data[2], "classes")


def test_a_palette_is_read_as_numbers(tmp_path: Path) -> None:
    scenes(tmp_path, 1)
    mask = Pictures.fromarray(np.full((24, 40), 2, np.uint8), "L").convert("P")
    mask.putpalette([9, 9, 9] * 256)
    mask.putdata([2] * 960)
    mask.save(tmp_path / "masks/0.png")
    modality = opened(tmp_path)
    assert modality.pixel_labels(modality.dataset("all")[0], "classes").unique().tolist() == [2]


def test_values_that_are_no_class_are_ignored_and_zero_may_be_one_of_them() -> None:
    values = np.array([[0, 1, 11, 255]])
    assert as_classes(values, (255, 11)).tolist() == [[0, 1, IGNORED, IGNORED]]
    assert as_classes(values, (255,), reduce_zero_label=True).tolist() == [[IGNORED, 0, 10, IGNORED]]
    with pytest.raises(ValueError, match="want whole ones"):
        as_classes(np.array([[0.5]]))


def test_depths_are_in_units_and_zero_where_they_are_unknown(tmp_path: Path) -> None:
    assert as_depths(np.array([[0, 500, 2500]], np.uint16), 1000).tolist() == [[0.0, 0.5, 2.5]]
    assert as_depths(np.array([[np.nan, np.inf, -1.0]]), 1).tolist() == [[0.0, 0.0, 0.0]]
    scenes(tmp_path, 1)
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth/0.npy", np.full((24, 40), 7.0))
    modality = opened(tmp_path)
    assert modality.with_pixel_labels("all", "depth") == [0]
    assert modality.pixel_labels(modality.dataset("all")[0], "depth").unique().tolist() == [7.0]


def test_films_are_folders_in_the_order_of_their_frames(tmp_path: Path) -> None:
    for name in ("b/10.png", "b/9.png", "a/1.png", "a/2.png"):
        write(tmp_path, f"JPEGImages/{name}", np.zeros((16, 16, 3), np.uint8))
    modality = Image.Config(**OPTIONS, data=str(tmp_path / "JPEGImages")).build()  # type: ignore[arg-type]
    assert isinstance(modality, Image)
    data = modality.dataset("all")
    names = [[Path(data[i].data).name for i in frames] for frames in modality.films("all")]
    assert names == [["1.png", "2.png"], ["9.png", "10.png"]]


@pytest.mark.parametrize("options", [{"masks": ("masks",)}, {"depths": ("a/b=c",)}, {"depth_unit": 0.0}])
def test_options_that_say_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"modality.{next(iter(options))}="):
        Image.Config(**{**OPTIONS, **options})  # type: ignore[arg-type]


def png(values: np.ndarray) -> dict[str, object]:
    """A cell as Hugging Face writes pictures."""
    file = io.BytesIO()
    Pictures.fromarray(values).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def rows(folder: Path, column: str, count: int = 12, **more: list[object]) -> Path:
    """Pictures whose brightness is ten times their mask, which is their number modulo 3, in columns of a table."""
    masks = [np.full((24, 40), i % 3, np.uint8) for i in range(count)]
    columns: dict[str, list[Any]] = {
        "image": [png(np.repeat(mask[:, :, None] * 10, 3, 2)) for mask in masks],
        column: [png(mask) for mask in masks],
        **more,
    }
    folder.mkdir(exist_ok=True)
    parquet.write_table(arrow.table(columns), folder / "scenes.parquet", row_group_size=5)
    return folder / "scenes.parquet"


@pytest.mark.parametrize(
    ("column", "option"), [("mask", ()), ("label", ()), ("Annotation", ()), ("parts", ("image=parts",))]
)
def test_a_mask_stands_in_a_column_beside_its_picture(
    tmp_path: Path, column: str, option: tuple[str, ...]
) -> None:
    modality = Image.Config(data=str(rows(tmp_path, column)), masks=option, **OPTIONS).build().fit()  # type: ignore[arg-type]
    assert isinstance(modality, Image)
    for split, count in (("train", 11), ("val", 1)):
        assert modality.with_pixel_labels(split, "classes") == list(range(count))
        for sample in map(modality.dataset(split).__getitem__, range(count)):
            assert sample.label == -1, "a picture is no class"
            views, _ = readable_views(modality, [sample], "image")
            mask = modality.pixel_labels(sample, "classes")
            assert torch.equal(mask, (views.x[0, 0] * 255 / 10).round().to(torch.uint8))


def test_rows_without_a_mask_are_counted_and_a_class_is_no_mask(tmp_path: Path) -> None:
    path = rows(tmp_path, "label", label=[*range(6), *range(6)])
    modality = Image.Config(data=str(path), **OPTIONS).build().fit()  # type: ignore[arg-type]
    assert isinstance(modality, Image)
    data = modality.dataset("train")
    assert sorted(set(data.class_numbers())) == [0, 1, 2, 3, 4, 5]
    assert modality.with_pixel_labels("train", "classes") == []
    with pytest.raises(Unreadable, match="sample 0 has no mask beside it"):
        modality.pixel_labels(data[0], "classes")


def test_masks_that_are_named_as_classes_are_refused_with_the_way_out(tmp_path: Path) -> None:
    cfg = Image.Config(data=str(rows(tmp_path, "parts")), label="parts", **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"modality.label=parts: .* set modality.masks=image=parts"):
        cfg.build().dataset("train")
