"""What evaluators declare of themselves is so: which features they read, and what they choose on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from multissl import registry
from multissl.contract.data import Views
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.plans import Masking
from tests.evaluators.clusters import START
from tests.evaluators.every import CASES

NAMES = sorted(registry.GROUPS["evaluators"])


class PooledAlone(FrozenEncoders):
    """Encoders whose tokens nobody may look at."""

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        assert masking == "none"
        features = self.function(views, masking, 0)
        return [Features(pooled=f.pooled, tokens=f.pooled[:, None] * float("nan")) for f in features]


@pytest.mark.parametrize("name", NAMES)
def test_pooled_features_are_enough_for_those_that_say_so(name: str) -> None:
    evaluator = registry.resolve(name, "evaluators")
    assert evaluator.version >= 1
    if evaluator.reads != "pooled":
        return
    case = CASES[name]
    pytest.importorskip(case.needs)
    if name == "linear_probe":
        case = replace(case, options={"l2": (0.01,), "max_steps": 20})
    whole = case.encoders()
    pooled = PooledAlone(whole.function, whole.device)
    modality = case.modality()
    figures = case.build(name).run(pooled, modality, START)
    assert figures
    assert figures == case.build(name).run(case.encoders(), modality, START)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_chosen_on_the_scored_split_under_the_usual_name(name: str) -> None:
    assert "scored split" not in CASES[name].build(name).selected_on
