"""Views that are no squares: their shapes, what they show, their masks, places and the trainings on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from multissl.cli import main
from multissl.config import from_dict, to_dict
from multissl.contract.data import Sample
from multissl.contract.plans import ViewPlan
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.crops import center, crop_box, pair
from multissl.option_values import parsed
from multissl.options import open_recipe
from multissl.random import RowRandom

SIZE, LOCAL, PATCH = (32, 48), (16, 24), 8


def modality(**options: object) -> Image:
    return Image.Config(size=SIZE, local_size=LOCAL, patch=PATCH, **options).build()  # type: ignore[return-value, arg-type]


def gradient(height: int, width: int) -> np.ndarray:
    """A picture whose red is the row and whose green is the column, in shares of 250."""
    down, across = np.mgrid[0:height, 0:width]
    blue = np.zeros_like(down)
    shares = (down + 0.5) / height, (across + 0.5) / width, blue
    return (250 * np.stack(shares, -1)).round().astype(np.uint8)


def test_an_option_is_one_number_or_two() -> None:
    hint = int | tuple[int, int]
    assert parsed(hint, ["32"], "--a") == 32
    assert parsed(hint, ["32", "48"], "--a") == parsed(hint, ["32,48"], "--a") == SIZE
    for words in (["32", "48", "64"], ["x"], ["32", "x"], []):
        with pytest.raises(ValueError, match="--a"):
            parsed(hint, words, "--a")
    recipe, _ = open_recipe(
        "image", ["--modality.size", "32", "48", "--modality.local_size", "16", "--modality.patch", "8"]
    )
    again = from_dict(type(recipe.modality), to_dict(recipe.modality))
    assert (again.size, again.local_size) == (SIZE, 16)
    assert pair(again.local_size) == (16, 16)


@pytest.mark.parametrize("size", [(32, 44), (0, 32), (-8, 32), (20, 32)])
def test_sides_that_no_patch_divides_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"modality\.size=.*want a multiple of patch=8"):
        Image.Config(size=size, local_size=16, patch=8)


def test_views_masks_and_tokens_have_the_shape_of_the_option() -> None:
    image = modality(mask_group=4)
    spec = image.streams()["image"]
    assert (spec.shape, spec.grid, spec.num_tokens) == ((3, 32, 48), (4, 6), 24)
    plan = ViewPlan(num_clean=1, num_global=2, num_local=1, mask_ratio=(0.2, 0.5), coords=True, target=True)
    data = [Sample(gradient(60, 90 + i), i) for i in range(4)]
    raw = image.collate(data, {"image": plan}, RowRandom((0, 0), 0, 4, 4))
    views = {v.role: v for v in image.views(raw, {"image": plan}, RowRandom((0, 1), 0, 4, 4))}
    assert views["clean"].x.shape == (4, 3, *SIZE)
    assert views["global"].x.shape == (8, 3, *SIZE)
    assert views["local"].x.shape == (4, 3, *LOCAL)
    mask = views["global"].mask
    assert mask is not None
    assert mask.hidden.shape == (8, 24)
    assert 0 < int(mask.hidden.sum()) < 8 * 24
    coords, target = views["global"].coords, views["global"].target
    assert coords is not None
    assert target is not None
    assert (coords.shape, target.shape) == ((8, 24, 2), (8, 24, 3 * PATCH * PATCH))


def test_places_of_tokens_are_where_they_were_cut_from() -> None:
    image = modality(flip=0.5, jitter=0, grayscale=0, solarize=0, blur="none", mean=(0, 0, 0), std=(1, 1, 1))
    plan = ViewPlan(num_global=3, num_local=2, coords=True)
    data = [Sample(gradient(120, 200), i) for i in range(4)]
    raw = image.collate(data, {"image": plan}, RowRandom((0, 0), 0, 4, 4))
    for views in image.views(raw, {"image": plan}, RowRandom((0, 1), 0, 4, 4)):
        assert views.coords is not None
        high, wide = (side // PATCH for side in views.x.shape[-2:])
        shown = (
            views.x.unflatten(2, (high, PATCH)).unflatten(4, (wide, PATCH)).mean((3, 5))
        )  # [R, 3, high, wide]
        places = shown[:, :2].flatten(2).mT * 255 / 250
        torch.testing.assert_close(places, views.coords, atol=0.02, rtol=0)


def test_crops_keep_the_shape_of_things() -> None:
    ratio = [each * (48 / 32) for each in (1.0, 1.0)]
    draws = torch.rand(200, 10, 4, generator=torch.Generator().manual_seed(0)).tolist()
    boxes = [crop_box(200, 300, draw, (0.1, 0.6), ratio) for draw in draws]
    assert max(abs(w / h - 1.5) for _, _, h, w in boxes) < 0.03


@pytest.mark.parametrize(("height", "width"), [(60, 90), (60, 60), (90, 60), (33, 400), (32, 48)])
def test_the_center_covers_the_view_and_distorts_nothing(height: int, width: int) -> None:
    image = torch.from_numpy(gradient(height, width)).permute(2, 0, 1)
    view = center(image, SIZE, 256 / 224)
    assert view.shape == (3, *SIZE)
    if (height, width) == SIZE:
        assert view is image
        return
    inner = view.float()
    down = (inner[0, -2] - inner[0, 1]).mean() * height / 250 / 30  # pixels of the file for one of the view
    across = (inner[1, :, -2] - inner[1, :, 1]).mean() * width / 250 / 46
    assert abs(down / across - 1) < 0.08


OBJECTIVES = {
    "dino": [],
    "mae": ["--objective", "mae"],
    "ijepa": ["--objective", "ijepa"],
    "vicregl": ["--objective", "vicregl"],
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_train_on_rectangles_and_leave_a_page(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for i in range(24):
        folder = data / f"c{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(folder / f"{i}.png")
    sizes = ["--modality.size", "32", "48", "--modality.local_size", "16", "24", "--modality.patch", "8"]
    small = ["--encoders.image.dim", "24", "--encoders.image.depth", "2", "--encoders.image.heads", "2"]
    words = ["train", "image", *OBJECTIVES[name], "--data", str(data), *sizes, *small]
    words += ["--batch_size", "8", "--steps", "2", "--data.workers", "0", "--out", str(tmp_path / "run")]
    words += ["--modality.mask_group", "8"]
    assert main(words) == 0
    assert (tmp_path / "run" / "report.html").is_file()
