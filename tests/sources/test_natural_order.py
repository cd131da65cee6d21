"""Files of one sequence come in the order in which their names are counted."""

from __future__ import annotations

import pytest

from multissl.sources.names import natural_key


@pytest.mark.parametrize(
    "names",
    [
        ["frame0.png", "frame1.png", "frame2.png", "frame9.png", "frame10.png", "frame100.png"],
        ["frame000.png", "frame001.png", "frame010.png", "frame100.png"],
        ["1.jpg", "2.jpg", "11.jpg"],
        ["a2_frame9.png", "a2_frame10.png", "a10_frame1.png"],
        ["Frame1.png", "frame2.png", "FRAME3.PNG", "frame10.png"],
        ["frame01.png", "frame1.png", "frame2.png"],
        ["frame1.jpg", "frame1.png"],
        ["shot.png", "shot-1.png", "shot-2.png", "shot-10.png"],
        ["clip1.2.png", "clip1.10.png"],
        ["b²1.png", "b²2.png", "b²10.png"],
        ["\u0669.png", "\u0661\u0660.png", "11.png", "\uff11\uff12.png"],  # Arabic and wide digits
        ["f" + "8" * 5000, "f" + "9" * 5000, "f1" + "0" * 5000],
        ["", "1.png", ".png", "a.png", "é1.png"],
        ["1\udcff.png", "10\udcff.png"],
    ],
)
def test_names_of_a_sequence_sort_as_they_are_counted(names: list[str]) -> None:
    for turn in range(len(names)):
        assert sorted(names[turn:][::-1] + names[:turn], key=natural_key) == names
