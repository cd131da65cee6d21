"""The chain of colors in its two forms: rows that are hit on a processor, all rows at once where it is compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from multissl.modalities.image import ops
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.draws import draw_blur, draw_changes
from multissl.random import RowRandom

ROWS = 24
BYTES = torch.randint(256, (ROWS, 3, 20, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def drawn(**options: Any) -> dict[str, Tensor]:
    cfg = Image.Config(**{"grayscale": 0.3, "solarize": 0.4, "jitter": 0.7, "hue": 0.5, **options})
    rng = RowRandom((3,), 0, ROWS // 2, ROWS // 2)
    changes = draw_changes(cfg, "global", 2, rng)
    return changes | (draw_blur([0.3, 0.9], rng) if cfg.blur != "none" else {})


def whole(x: Tensor, changes: dict[str, Tensor], *rest: Any) -> Tensor:
    """The form that is compiled, run as it is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "by_rows", lambda x: False)
        return ops.photometric(x, changes, *rest)


def test_what_is_drawn_changes_some_rows_and_not_others() -> None:
    changes = drawn()
    for name in ("flip", "jitter", "grayscale", "solarize", "blur"):
        assert changes[name].dtype == torch.bool
        assert 0 < changes[name].sum() < ROWS, name
    assert not changes["solarize"][: ROWS // 2].any(), "only the second view is solarized"
    assert len(changes["jitter order"].unique(dim=0)) > 10, "orders differ between rows"


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("blur", ["official", "none"])
def test_all_rows_at_once_are_what_they_are_alone(channels: int, blur: str) -> None:
    x = BYTES[:, :1].expand(-1, channels, -1, -1) if channels != 3 else BYTES
    mean, std = MEAN[:1].expand(channels), STD[:1].expand(channels)
    changes = drawn(blur=blur)
    expected = ops.photometric(x, changes, mean, std, 5)
    torch.testing.assert_close(whole(x, changes, mean, std, 5), expected, atol=2e-5, rtol=0)


def test_a_row_is_the_same_alone_and_in_any_company() -> None:
    changes = drawn()
    together = whole(BYTES, changes, MEAN, STD)
    for row in (0, 7, 19):
        alone = {name: values[row : row + 1] for name, values in changes.items()}
        torch.testing.assert_close(
            ops.photometric(BYTES[row : row + 1], alone, MEAN, STD),
            together[row : row + 1],
            atol=2e-5,
            rtol=0,
        )


def test_crops_with_channels_last_are_read_as_they_lie() -> None:
    changes = drawn()
    last = BYTES.contiguous(memory_format=torch.channels_last)
    expected = ops.photometric(BYTES, changes, MEAN, STD)
    for function in (ops.photometric, whole):
        x = function(last, changes, MEAN, STD)
        assert x.is_contiguous()
        torch.testing.assert_close(x, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiler_takes_the_whole_chain(backend: str) -> None:
    torch._dynamo.reset()
    function = torch.compile(ops.photometric_as_written, backend=backend, fullgraph=True, dynamic=False)
    changes = drawn()
    expected = ops.photometric(BYTES, changes, MEAN, STD)
    torch.testing.assert_close(function(BYTES, changes, MEAN, STD, 9), expected, atol=2e-5, rtol=0)
    torch._dynamo.reset()
