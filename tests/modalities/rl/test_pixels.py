"""Layouts and brightness of pictures, as functions of their arrays."""

from __future__ import annotations

import numpy as np
import pytest

from multissl.modalities.rl.pixels import as_bytes, layout_of


@pytest.mark.parametrize(("beyond", "refused"), [(0.0, False), (0.8e-3, False), (1.4e-3, True)])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, 6.0)])
def test_pixels_a_thousandth_beyond_their_space_are_rounding(
    low: float, high: float, beyond: float, refused: bool
) -> None:
    slack = beyond * (high - low)
    for values in ([low - slack, high], [low, high + slack]):
        array = np.array(values, np.float64)
        if refused:
            with pytest.raises(ValueError, match="mend its bounds"):
                as_bytes(array, low, high)
        else:
            assert as_bytes(array, low, high).tolist() == [0, 255]


def test_an_axis_of_up_to_four_is_no_side_of_a_picture_however_small() -> None:
    assert layout_of((9, 3, 4), rgba=True) == layout_of((9, 8, 4), rgba=True) == "hwc"
