"""What views show, measured on their pixels: areas and ratios of crops by role, their place, the order of colors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.contract.data import Sample
from multissl.contract.modality import Modality
from multissl.contract.plans import ViewPlan
from multissl.modalities.image import ops
from multissl.modalities.image.adapter import Image
from multissl.modalities.video.adapter import Video
from multissl.random import RowRandom

SIDE, COUNT, SIZE = 256, 300, 64
PLAIN: dict[str, Any] = {"flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "solarize": 0.0}
SCALES = {"global": (0.4, 0.8), "local": (0.05, 0.3)}
RATIO = (0.8, 1.6)


def ruler() -> np.ndarray:
    """A picture whose red is the column and whose green is the row, [SIDE, SIDE, 3]."""
    row, column = np.mgrid[:SIDE, :SIDE]
    return np.stack([column, row, np.zeros_like(row)], 2).astype(np.uint8)


def image(**options: Any) -> Modality:
    cfg = Image.Config(
        size=SIZE, local_size=SIZE, patch=8, blur="none", mean=(0.0,) * 3, std=(1.0,) * 3, **options
    )
    return cfg.build()


def video(**options: Any) -> Modality:
    sizes: dict[str, Any] = {
        "size": SIZE,
        "local_size": SIZE,
        "patch": 8,
        "frames": 2,
        "local_frames": 2,
        "tubelet": 1,
    }
    return Video.Config(**sizes, stride=1, mean=(0.0,) * 3, std=(1.0,) * 3, **options).build()


def samples(kind: str, count: int) -> list[Sample]:
    data = ruler() if kind == "image" else np.stack([ruler()] * 3)
    return [Sample(data, i) for i in range(count)]


def views(modality: Modality, kind: str, role: str, count: int = COUNT, per_sample: int = 1) -> Tensor:
    """The first frames of the views of a role, values 0 to 255, [R, 3, SIZE, SIZE]."""
    counts: dict[str, Any] = {"num_clean": 0, "num_global": 0, "num_local": 0, f"num_{role}": per_sample}
    plans, rng = {kind: ViewPlan(**counts)}, RowRandom((0, 1), 0, count, count)
    raw = modality.collate(samples(kind, count), plans, rng)
    x = modality.views(raw, plans, rng.fork("device")).of(kind, role).x * 255  # type: ignore[arg-type]
    return x[:, :, 0] if kind == "video" else x


def measured(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Area, ratio of width to height, and the middle (row, column) of what views show, in shares of the picture."""
    width = (x[:, 0, :, -1] - x[:, 0, :, 0]).mean(1) * SIZE / (SIZE - 1) / SIDE
    height = (x[:, 1, -1] - x[:, 1, 0]).mean(1) * SIZE / (SIZE - 1) / SIDE
    return width * height, width / height, x[:, 1].mean((1, 2)) / SIDE, x[:, 0].mean((1, 2)) / SIDE


KINDS: dict[str, Callable[..., Modality]] = {"image": image, "video": video}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", SCALES)
def test_crops_have_the_areas_of_their_role_and_the_ratios_that_are_asked_for(kind: str, role: str) -> None:
    count = COUNT if kind == "image" else 80
    options = {"global_scale": SCALES["global"], "local_scale": SCALES["local"], "ratio": RATIO, **PLAIN}
    area, ratio, row, column = measured(views(KINDS[kind](**options), kind, role, count))
    low, high = SCALES[role]
    tenth = 0.15 * (high - low)
    assert low - 0.02 <= area.min() <= low + tenth
    assert high - tenth <= area.max() <= high + 0.02
    assert abs(area.mean() - (low + high) / 2) < tenth
    assert RATIO[0] - 0.05 <= ratio.min() <= RATIO[0] + 0.1
    assert RATIO[1] - 0.2 <= ratio.max() <= RATIO[1] + 0.05
    assert abs(ratio.log().mean() - np.log(RATIO).mean()) < 0.1  # as likely wide as high, on a log scale
    for middle in (row, column):
        assert abs(middle.mean() - 0.5) < 0.05
        assert middle.std() > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_clean_views_show_the_middle(kind: str) -> None:
    for zoom, share in ((1.0, 1.0), (1.6, 1 / 1.6**2)):
        modality = KINDS[kind](clean_zoom=zoom, **PLAIN)
        area, ratio, row, column = measured(views(modality, kind, "clean", 2))
        torch.testing.assert_close(area, torch.full((2,), share), rtol=0, atol=0.03)
        for value, expected in ((ratio, 1.0), (row, 0.5), (column, 0.5)):
            torch.testing.assert_close(value, torch.full((2,), expected), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_turns_columns_and_no_rows_in_the_share_that_is_asked_for(kind: str) -> None:
    for chance in (0.0, 0.3, 1.0):
        x = views(KINDS[kind](**{**PLAIN, "flip": chance}), kind, "global", 100, 2)
        turned = (x[:, 0, :, -1] < x[:, 0, :, 0]).all(1)
        assert abs(turned.double().mean() - chance) < 0.1
        assert (x[:, 1, -1] > x[:, 1, 0]).all()
        assert not chance or chance == 1 or not torch.equal(turned[:100], turned[100:])


@pytest.mark.parametrize("kind", KINDS)
def test_colors_change_in_every_order_alike(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[int, ...]] = []

    def keep(x: Tensor, hit: Tensor, order: Tensor, factors: Tensor) -> Tensor:
        orders.extend(map(tuple, order.tolist()))
        assert hit.all()
        assert factors.shape == order.shape
        return x

    monkeypatch.setattr(ops, "jitter", keep)
    views(KINDS[kind](**{**PLAIN, "jitter": 1.0}), kind, "global", 100, 4)
    if kind == "video":  # one order for the frames of a clip
        assert orders[::2] == orders[1::2]
        orders = orders[::2]
    counts = Counter(orders)
    assert len(orders) == 400
    assert len(counts) == 24
    assert all(set(order) == {0, 1, 2, 3} for order in counts)
    assert max(counts.values()) < 45  # 16.7 of each, give or take 4


def test_an_order_is_the_order_in_which_colors_change() -> None:
    """Of two changes that do not commute, whichever comes first acts first."""
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    factors, hit = torch.tensor([[1.5, 0.4, 1.0, 0.0]]), torch.ones(1, dtype=torch.bool)
    bright, contrast = factors[:, 0], factors[:, 1]
    for order, expected in (
        ([0, 1, 2, 3], ops.contrast(ops.brightness(x, bright), contrast)),
        ([1, 0, 2, 3], ops.brightness(ops.contrast(x, contrast), bright)),
        ([3, 1, 2, 0], ops.brightness(ops.contrast(x, contrast), bright)),
    ):
        torch.testing.assert_close(ops.jitter(x.clone(), hit, torch.tensor([order]), factors), expected)


def test_strengths_lie_around_one_and_hues_around_zero() -> None:
    ends = torch.stack([torch.zeros(4), torch.full((4,), 0.5), torch.ones(4)])
    low, middle, high = ops.jitter_factors(ends, (0.4, 1.5, 0.2, 0.1)).tolist()
    assert low == pytest.approx([0.6, 0.0, 0.8, -0.1])
    assert middle == pytest.approx([1.0, 1.25, 1.0, 0.0])
    assert high == pytest.approx([1.4, 2.5, 1.2, 0.1])
