"""No cost of a step grows faster than what it is made of, but for attention's own products."""

from __future__ import annotations

import pytest

from benchmarks.growth import AXES, exponents, measure


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_costs_grow_linearly_at_most(axis: str) -> None:
    for cost, power in exponents(measure(axis)).items():
        assert power <= 1.02, cost
