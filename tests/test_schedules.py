from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from multissl.schedules import HeldCosine, Schedule, constant, ramp


def test_the_warm_up_includes_both_its_ends() -> None:
    s = Schedule(base=1.0, final=0.1, warmup=5)
    assert [s.at(i, 20) for i in (0, 4, 5)] == [0.0, 1.0, 1.0]
    assert s.at(20, 20) == s.at(99, 20) == 0.1
    assert s.at(19, 20) > 0.1


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "steps"])
@pytest.mark.parametrize("warmup", [1, 2, 5])
@pytest.mark.parametrize("freeze", [0, 3])
def test_a_warm_up_of_any_length_begins_at_its_start(shape: Any, warmup: int, freeze: int) -> None:
    s = Schedule(base=1.0, final=0.5, start=0.25, warmup=warmup, shape=shape, freeze=freeze)
    s = replace(s, freeze=0) if shape == "steps" else s
    assert s.at(s.freeze, 20) == 0.25
    assert s.at(s.freeze + warmup, 20) == 1.0
    assert warmup == 1 or s.at(s.freeze + warmup - 1, 20) == 1.0


def test_a_ramp_stays_at_its_end() -> None:
    s = ramp(0.04, 0.07, 4)
    assert [s.at(i, 100) for i in (0, 3, 4, 50, 100)] == [0.04, 0.07, 0.07, 0.07, 0.07]


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("total", [1, 9, 20])
def test_the_final_value_is_that_of_the_last_step_and_of_later_ones(shape: Any, total: int) -> None:
    s = Schedule(base=1.0, final=0.1, shape=shape)
    assert s.at(total - 1, total) > 0.1
    assert [s.at(total + more, total) for more in (0, 1, 5)] == [0.1] * 3


def test_frozen_steps_come_first() -> None:
    s = Schedule(base=1.0, final=0.0, freeze=3)
    assert [s.at(i, 10) for i in (0, 2, 3)] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_middle_is_the_mean(shape: str) -> None:
    s = Schedule(base=1.0, final=0.0, shape=shape)  # type: ignore[arg-type]
    assert s.at(50, 100) == pytest.approx(0.5)


def test_constant_is_constant() -> None:
    assert {constant(0.3).at(i, 10) for i in range(12)} == {0.3}


def test_steps_fall_by_a_factor_from_each_drop_on() -> None:
    s = Schedule(base=1.0, final=0.0, warmup=3, start=0.2, shape="steps", drops=(5, 8))
    found = [s.at(i, 10) for i in (0, 2, 3, 4, 5, 7, 8, 10, 20)]
    assert found == pytest.approx([0.2, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_a_held_cosine_has_its_final_value_at_its_last_step_and_after() -> None:
    schedule = HeldCosine(base=1.0, final=0.2, warmup=4, cosine=5)
    values = [schedule.at(step, 12) for step in range(12)]
    assert values == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.88284271, 0.6, 0.31715729, 0.2, 0.2, 0.2, 0.2])
    whole = HeldCosine(base=1.0, final=0.2, warmup=4)
    assert whole.at(4, 12) == 1.0
    assert whole.at(11, 12) == pytest.approx(0.2)


def test_a_cosine_that_is_cut_off_still_ends_at_its_final_value() -> None:
    schedule = Schedule(base=1.0, final=0.2, warmup=2, cut=0.5)
    values = [schedule.at(step, 10) for step in range(10)]
    raw = [math.cos(math.pi * step / 11) for step in range(8)]  # 12 steps, of which 8 are left
    assert values[2:] == pytest.approx([0.2 + 0.8 * (r - raw[-1]) / (1 - raw[-1]) for r in raw])
    assert values[-1] == pytest.approx(0.2)
    assert schedule.at(10, 10) == 0.2
    assert schedule.at(2, 3) == 0.2
