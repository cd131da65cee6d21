"""Batched photometric operations: each equals torchvision's, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from multissl.modalities.image import ops

ROWS = torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))
FACTORS = torch.tensor([0.0, 0.6, 1.0, 1.4])
SHIFTS = torch.tensor([-0.1, 0.0, 0.07, 0.5])

PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Tensor]] = {
    "brightness": (ops.brightness, tv.adjust_brightness, FACTORS),
    "contrast": (ops.contrast, tv.adjust_contrast, FACTORS),
    "saturation": (ops.saturation, tv.adjust_saturation, FACTORS),
    "hue": (ops.hue, tv.adjust_hue, SHIFTS),
    "blur": (ops.blur, lambda x, s: tv.gaussian_blur(x, [9, 9], [s, s]), torch.tensor([0.1, 0.5, 1.3, 2.0])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_row_is_what_torchvision_makes_of_it(name: str) -> None:
    ours, theirs, parameters = PAIRS[name]
    expected = torch.stack([theirs(x, float(p)) for x, p in zip(ROWS, parameters, strict=True)])
    torch.testing.assert_close(ours(ROWS.clone(), parameters), expected, atol=2e-6, rtol=0)


def test_grayscale_solarize_flip_and_normalize_are_torchvision_s() -> None:
    torch.testing.assert_close(ops.grayscale(ROWS), tv.rgb_to_grayscale(ROWS, 3), atol=1e-6, rtol=0)
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    solarized = ops.solarize(bytes_.float() / 255)
    torch.testing.assert_close(solarized * 255, tv.solarize(bytes_, 128).float(), atol=1e-4, rtol=0)
    assert torch.equal(ops.flip(ROWS), tv.horizontal_flip(ROWS))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    torch.testing.assert_close(ops.normalize(ROWS, mean, std), tv.normalize(ROWS, list(mean), list(std)))


def test_hue_and_saturation_survive_gray_pixels() -> None:
    gray = torch.full((1, 3, 4, 4), 0.3)
    for op, parameter in ((ops.hue, 0.3), (ops.saturation, 1.4)):
        turned = op(gray.clone(), torch.tensor([parameter]))
        torch.testing.assert_close(turned, gray, atol=1e-4, rtol=0)  # the weights of gray add up to 0.9999


def test_jitter_takes_each_row_s_operations_in_its_own_order() -> None:
    names = ("brightness", "contrast", "saturation", "hue")
    order = torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3], [2, 0, 3, 1], [1, 3, 0, 2]])
    factors = torch.tensor([[0.7, 1.3, 0.8, 0.1]] * 4)
    hit = torch.tensor([True, True, False, True])
    expected = ROWS.clone()
    for row in (0, 1, 3):
        for number in order[row].tolist():
            expected[row] = PAIRS[names[number]][1](expected[row], float(factors[row, number]))
    found = ops.jitter(ROWS.clone(), hit, order, factors)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_rows_that_are_not_hit_are_not_computed() -> None:
    seen: list[int] = []

    def op(x: Tensor, p: Tensor) -> Tensor:
        seen.append(len(x))
        return x + p[:, None, None, None]

    x = torch.zeros(4, 3, 2, 2)
    hit = torch.tensor([False, True, False, True])
    found = ops.apply_to(x, hit, op, torch.arange(4.0))
    assert found.amax((1, 2, 3)).tolist() == [0, 1, 0, 3]
    ops.apply_to(x, torch.zeros(4, dtype=torch.bool), op, torch.arange(4.0))
    assert seen == [2]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_pass_the_operations_on_color_unchanged(channels: int) -> None:
    x = torch.rand(2, channels, 6, 6)
    one: Any = torch.tensor([0.5, 1.5])
    for op in (ops.saturation, ops.hue):
        assert torch.equal(op(x, one), x)
    assert torch.equal(ops.grayscale(x), x)
    assert not torch.equal(ops.brightness(x, one), x)
    assert not torch.equal(ops.contrast(x, one), x)
    assert ops.blur(x, one, 3).shape == x.shape
