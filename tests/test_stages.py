"""Changes of options by their paths, and which recipes can be chained."""

from __future__ import annotations

from typing import Any

import pytest

from multissl.config import to_dict
from multissl.configs.shared.stages import cool_down, high_resolution, small_first
from multissl.engine.best import Best
from multissl.evaluators.drift import Drift
from multissl.evaluators.knn import KNN
from multissl.recipe import Recipe, recipe_of
from multissl.stages import Stage, changed
from tests.helpers.chain import HIGH, first, recipe


def stage(changes: dict[str, Any], **options: Any) -> Recipe:
    return first().then(Stage(name="next", steps=2, changes=changes, **options))


def test_changes_hold_together_and_leave_the_rest_alone() -> None:
    made = changed(
        first(), {"modality.size": 12, "modality.patch": 6, "modality.local_size": 6, "optim.lr": 1}
    )
    assert (made.modality.patch, made.optim.lr, made.batch_size) == (6, 1.0, 8)  # type: ignore[attr-defined]
    whole = changed(
        first(), {"evals": {"mine": {"kind": "knn", "k": [3]}}, "objective.head": {"prototypes": 8}}
    )
    assert whole.evals["mine"] == KNN.Config(k=(3,))
    assert whole.objective.head.prototypes == 8  # type: ignore[attr-defined]


def test_a_chain_survives_its_file() -> None:
    assert recipe_of(to_dict(recipe()), "file") == recipe()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown option": ({"modality.sizes": 8}, "no option 'sizes'; did you mean size"),
    "an unknown stream": ({"encoders.imag.dim": 8}, "encoders has no 'imag'"),
    "an option of a number": ({"steps.x": 8}, "steps.x cannot change"),
    "its steps": ({"steps": 8}, "give them as the stage's own steps"),
    "the seed": ({"seed": 1}, "seed cannot change"),
    "the data": ({"modality.data": "more"}, "a run has one set of data"),
    "another objective": (
        {"objective": {"kind": "vicreg"}},
        "objective=vicreg cannot take over what dino learned",
    ),
    "another optimizer": ({"optim": {"kind": "lars"}}, "set optimizer='reset'"),
    "a part and its whole": ({"optim.lr": 1.0, "optim": {"kind": "adamw"}}, "give one of the two"),
    "views that do not tile": ({"modality.size": 10}, "want a multiple of patch=4"),
    "early stopping": (
        {"best": {"figure": "knn", "patience": 2}},
        "leave it out (--best.patience 0)",
    ),
    "a guard against drift": ({"evals": {"drift": {"kind": "drift"}}}, "leave it out (--evals.drift none)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_stage_that_cannot_follow_is_refused_by_name(case: str) -> None:
    changes, named = REFUSED[case]
    with pytest.raises(ValueError, match="stage next") as error:
        stage(changes)
    assert named in str(error.value)


def test_what_may_end_a_stage_early_is_refused_in_the_first_one_too() -> None:
    for made in (
        first().replace(best=Best(figure="knn", patience=1)),
        first().replace(evals={"drift": Drift.Config()}),
    ):
        assert made.run_stages()
        with pytest.raises(ValueError, match="stage first"):
            made.then(HIGH)


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two are called 'high'"):
        first().then(HIGH, HIGH)


def test_another_optimizer_is_fine_where_its_moments_begin_anew() -> None:
    assert stage({"optim": {"kind": "lars"}}, optimizer="reset").run_stages()


def test_published_stages_compress_schedules_and_cool_down_only_what_is_warm() -> None:
    made = first().replace(steps=100)
    made.optim.warmup = 20
    assert high_resolution(made, 16, 10).changes["optim.warmup"] == 2
    chain = small_first(made, 4, 4)
    assert [(s.stop, s.recipe.modality.size) for s in chain.run_stages()] == [(75, 4), (100, 8)]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="has cooled down already"):
        cool_down(made, 10)
    made.optim.lr_shape = "constant"
    assert made.then(cool_down(made, 10)).run_stages()[1].recipe.optim.cooldown == 10
