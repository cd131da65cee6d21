"""When frames are shown: clocks that are fine stay as they are, single stamps are mended, others are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from multissl.modalities.video.clock import Clock, read_clock, runs_well

TICKS = 3600
"""Of 1/90,000 s for a frame of 25 a second."""
WRAP = 2**33
SHOWN = [7200 + TICKS * n for n in range(40)]
DECODED = [SHOWN[0]] + [SHOWN[n + k] for n in range(1, 40, 3) for k in (2, 0, 1)]
"""The same in the order of decoding: I P B B P B B."""


def clock(
    stamps: Sequence[int | None], rate: Any = Fraction(25), form: str = "mov,mp4", named: Any = None
) -> Clock:
    packets = [SimpleNamespace(pts=p, size=9) for p in stamps] + [SimpleNamespace(pts=None, size=0)]
    return read_clock(
        SimpleNamespace(
            container=SimpleNamespace(demux=lambda _: packets, format=SimpleNamespace(name=form)),
            time_base=Fraction(1, 90_000),
            guessed_rate=named or rate,
            average_rate=rate,
            codec_context=SimpleNamespace(framerate=rate),
        )
    )


def with_stamps(stamps: list[int], **changes: int | None) -> list[int | None]:
    """The stamps with those of some numbers changed, `at3=None`."""
    return [changes.get(f"at{n}", p) for n, p in enumerate(stamps)]


@pytest.mark.parametrize(
    "stamps",
    [
        SHOWN,
        DECODED,
        [p - 10**6 for p in DECODED],
        [p + 2**50 for p in DECODED],
        [0, TICKS, 2 * TICKS, 3 * TICKS + 90_000 * 3599, 90_000 * 3600],  # a camera that waited an hour
        [90_000 * 7200 * n for n in range(5)],  # a picture every two hours
        [round(1.4**n) for n in range(20, 60)],
        [90 * n for n in range(40)],  # 1000 frames per second
        [*SHOWN, SHOWN[-1]],
        [7],
    ],
)
def test_a_good_clock_stays_as_it_is_to_the_bit(stamps: list[int]) -> None:
    times, found = clock(stamps)
    expected = np.unique(stamps)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(times, (expected - expected[0]) * float(Fraction(1, 90_000)))


@pytest.mark.parametrize("stamps", [SHOWN, DECODED], ids=["shown", "decoded"])
@pytest.mark.parametrize("wrong", [None, -(2**63) + 1, 2**62, -WRAP * 9])
@pytest.mark.parametrize(
    "places", [(0,), (1,), (2,), (17,), (18,), (39,), (0, 17), (1, 2), (16, 17, 18), (0, 1), (38, 39)]
)
def test_single_bad_stamps_get_the_time_of_their_frame(
    stamps: list[int], wrong: int | None, places: tuple[int, ...]
) -> None:
    times, found = clock(with_stamps(stamps, **{f"at{n}": wrong for n in places}))
    assert found is not None
    assert len(found) == 40
    np.testing.assert_allclose(times, np.arange(40) / 25, atol=1e-9)
    assert set(found) >= set(stamps) - {stamps[n] for n in places}


def test_an_uneven_clock_keeps_its_times_and_leaves_out_what_has_none() -> None:
    uneven = [TICKS * n for n in (0, 1, 2, 9, 10, 11, 30, 31, 32, 33, 60, 61)]
    _, found = clock(with_stamps(uneven, at4=None))
    np.testing.assert_array_equal(found, uneven[:4] + uneven[5:])
    _, found = clock(with_stamps(uneven, at0=-(2**60)))
    np.testing.assert_array_equal(found, uneven)


@pytest.mark.parametrize("last", [1, 2, 4, 20, 38])
def test_a_counter_that_runs_over_is_no_pause(last: int) -> None:
    over = [(p - SHOWN[40 - last]) % WRAP for p in SHOWN]
    np.testing.assert_allclose(clock(over).times, np.arange(40) / 25, atol=1e-9)
    np.testing.assert_allclose(clock([p - 2**40 for p in over]).times, np.arange(40) / 25, atol=1e-9)


@pytest.mark.parametrize(
    "stamps",
    [
        [None] * 40,
        [0] * 40,
        list(range(40)),  # a frame each tick
        [*DECODED[:20], *DECODED[:20]],  # two files, one after the other
        [*SHOWN[20:], *[p - 1000 for p in SHOWN[:20]]],
        [p if n % 3 else None for n, p in enumerate(SHOWN)],
        [p if n < 20 else None for n, p in enumerate(SHOWN)],
        [2**40 * n * (-1) ** n for n in range(40)],
        [-(2**63) + 1, *[2**63 - 1] * 39],
    ],
)
def test_a_clock_that_cannot_be_believed_is_counted(stamps: list[int | None]) -> None:
    times, found = clock(stamps)
    assert found is None
    np.testing.assert_array_equal(times, np.arange(40) / 25)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(None, 25), (Fraction(0), 25), (90_000, 25), (Fraction(1, 10**6), 25), (Fraction(10), 10)],
)
def test_frames_are_counted_at_a_rate_that_can_be(rate: Any, expected: int) -> None:
    np.testing.assert_array_equal(clock([None] * 5, rate).times, np.arange(5) / expected)


def test_the_middle_one_of_the_named_rates_counts() -> None:
    for named in (Fraction(25, 12), Fraction(1000), 90_000):
        np.testing.assert_array_equal(clock([None] * 5, Fraction(25), named=named).times, np.arange(5) / 25)


def test_frames_stamped_alike_are_counted_where_packets_hold_several() -> None:
    late = [p + TICKS * (9 < n < 20) for n, p in enumerate(SHOWN)]
    assert clock(late, form="mpeg").stamps is None
    assert clock(late, form="matroska,webm").stamps is not None


def test_second_fields_without_a_stamp_are_no_frames() -> None:
    fields = [p for stamp in SHOWN for p in (stamp, None)]
    np.testing.assert_array_equal(clock(fields).stamps, SHOWN)
    halves = [
        p if n % 2 else None for n, p in enumerate(SHOWN)
    ]  # a frame each, of which every other one is stamped
    assert len(clock(halves).times) == 40


@pytest.mark.parametrize(
    ("times", "well"),
    [
        ([0.0, 0.04, 0.08], True),
        ([0.0, 0.04, 3000.0], True),
        ([5.0], True),
        ([-1e14, -1e14, 0.0], False),
        ([-1e14, 0.0, 0.04, 0.08], False),
        ([0.0, 0.08, 0.04], False),
        ([0.0, np.nan, 0.08], False),
        ([0.0, 0.04, np.inf], False),
        ([3.0, 3.0, 3.0], False),
        ([0.0, 1e-5, 2e-5], False),
    ],
)
def test_times_that_no_video_has_are_told_from_those_it_may_have(times: list[float], well: bool) -> None:
    assert runs_well(np.array(times)) is well
