"""Every augmentation of images and videos meets as many of them as its own option says, whatever the others are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multissl.contract.plans import ViewPlan
from multissl.modalities.image.adapter import Image
from multissl.modalities.video.adapter import Video
from multissl.random import RowRandom

ROWS, SIDE, FRAMES = 2000, 5, 4
PLAN = ViewPlan(num_global=2, num_local=1)
OFF: dict[str, Any] = {"flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "solarize": 0.0}
PLAIN: dict[str, Any] = {
    "size": SIDE, "local_size": SIDE, "patch": SIDE, "mean": (0.0,) * 3, "std": (1.0,) * 3
}  # fmt: skip
RATE = 0.3
TOLERANCE = 0.05
"""Almost five standard deviations of a share of 2000 draws."""


def find_changed(kind: str, **options: Any) -> list[Tensor]:
    """Which samples each view changes, bool [ROWS] for both global views and a local one; all samples are alike."""
    one = torch.randint(256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    if kind == "image":
        modality = Image.Config(**{**PLAIN, **OFF, "blur": "none", "blur_kernel": 3, **options}).build()
        many = one.repeat(2 * ROWS, 1, 1, 1)
    else:
        modality = Video.Config(
            **{**PLAIN, **OFF, "frames": FRAMES, "local_frames": FRAMES, **options}
        ).build()
        many = one.repeat(2 * ROWS, FRAMES, 1, 1, 1)
        one = one[:, None]  # [3, T, S, S]
    raw = {"sample_id": torch.arange(ROWS), "global": many, "local": many[:ROWS]}
    batch = modality.views({kind: raw}, {kind: PLAN}, RowRandom((1, 0), 0, ROWS, ROWS))
    first_two, local = ((v.x - one / 255).flatten(1).abs().amax(1) > 1e-4 for v in batch)
    return [*first_two.chunk(2), local]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_nothing_is_changed_where_all_is_off(kind: str) -> None:
    assert not any(view.any() for view in find_changed(kind))


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("option", ["flip", "jitter", "grayscale"])
def test_an_option_is_the_share_of_the_samples_that_its_operation_changes(option: str, kind: str) -> None:
    for view in find_changed(kind, **{option: RATE}):
        assert view.float().mean().item() == pytest.approx(RATE, abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_only_the_second_global_view_is_solarized(kind: str) -> None:
    first, second, local = find_changed(kind, solarize=RATE)
    assert second.float().mean().item() == pytest.approx(RATE, abs=TOLERANCE)
    assert not first.any()
    assert not local.any()


@pytest.mark.parametrize(
    ("blur", "rates"), [("official", (0, 0.9, 0.5)), ("paper", (1, 0.1, 0.5)), ("half", (0.5, 0.5, 0.5))]
)
def test_blur_of_images_has_a_rate_for_each_view(blur: str, rates: tuple[float, float, float]) -> None:
    for view, rate in zip(find_changed("image", blur=blur), rates, strict=True):
        # a small sigma leaves an image as it is: a few in a hundred of those that are met
        assert view.float().mean().item() == pytest.approx(rate, abs=TOLERANCE + 0.03 * rate)
