"""Stages that papers train after a first one: high resolution, Gram anchoring, small pictures first, a cool-down.

Each function looks at the recipe that the stage follows and returns a `Stage` for `recipe.then(...)`. What a paper does
not say is chosen here and called ours.
"""

from __future__ import annotations

from typing import Any

from multissl.objectives.dino import DINO
from multissl.recipe import Recipe
from multissl.stages import Stage

Size = int | tuple[int, int]


def high_resolution(
    recipe: Recipe,
    size: Size,
    steps: int = 10_000,
    *,
    local_size: Size = 0,
    rate: float = 0.1,
    batch_size: int = 0,
) -> Stage:
    """Return a short stage of larger pictures (DINOv2, arXiv 2304.07193, section 4 and appendix B.2: 518 pixels).

    All schedules are those of the recipe, compressed to these steps. `local_size` 0 leaves that of local views, as
    `batch_size` 0 does. The paper lowers the learning rate and does not say how far: a tenth (`rate`) is ours.
    """
    changes = _compressed(recipe, steps / recipe.steps) | _scaled(recipe, rate) | {"modality.size": size}
    changes |= {"modality.local_size": local_size} if local_size else {}
    changes |= {"batch_size": batch_size} if batch_size else {}
    return Stage(name="high_resolution", steps=steps, changes=changes)


def gram_anchoring(
    recipe: Recipe,
    size: tuple[int, int],
    steps: int,
    *,
    weight: float = 2.0,
    every: int = 10_000,
    refreshes: int = 3,
    rate: float = 0.1,
) -> Stage:
    """Return a stage that keeps the similarities between patches as they were at its start (DINOv3, arXiv 2508.10104).

    `size` is that of the crops which the frozen teacher sees, in the paper twice the student's; it is renewed every so
    many steps (`every`), `refreshes` times at most; rate, decay and temperature stay constant. The paper's rate goes on
    unchanged, as its first training has a constant one; a tenth of its peak (`rate`) after a cosine is ours. The paper
    also halves the loss of local views, which is not done here.
    """
    anchor = {"weight": weight, "size": size, "every": every, "refreshes": refreshes}
    changes = _held(recipe) | _scaled(recipe, rate) | {f"objective.gram.{n}": v for n, v in anchor.items()}
    return Stage(name="gram", steps=steps, changes=changes)


def small_first(
    recipe: Recipe, size: Size, local_size: Size, *, share: float = 0.75, name: str = "full_size"
) -> Recipe:
    """Return a recipe that trains on small pictures first and goes on at its own sizes (FastDINOv2, arXiv 2507.03779).

    The small pictures take `share` of its steps. Differs from the paper: schedules are laid out over each of the two
    stages, where the paper's one schedule goes over both; crops are cut at the small size, as the paper's code does
    where its text shrinks full ones; and no patches of noise are laid over pictures.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: want more than 0 and less than 1 of the steps for small pictures")
    first = max(1, round(share * recipe.steps))
    sizes: dict[str, Any] = _sizes(recipe)
    rest = _compressed(recipe, (recipe.steps - first) / recipe.steps) | sizes
    small = recipe.modality.replace(size=size, local_size=local_size)
    return recipe.replace(modality=small, steps=first).then(
        Stage(name=name, steps=recipe.steps - first, changes=rest)
    )


def _sizes(recipe: Recipe) -> dict[str, Any]:
    """Return the sizes of a recipe's pictures as changes that restore them."""
    modality: Any = recipe.modality
    return {"modality.size": modality.size, "modality.local_size": modality.local_size}


def cool_down(recipe: Recipe, steps: int) -> Stage:
    """Return a stage in which the learning rate falls on a line to `optim.final_lr`; decay and temperature are held.

    For recipes whose rate is constant before (`optim.lr_shape` constant), so that one long training can be cooled down
    from any of its checkpoints.
    """
    if recipe.optim.lr_shape != "constant":
        raise ValueError(
            f"optim.lr_shape={recipe.optim.lr_shape} has cooled down already: want constant before a cool-down"
        )
    return Stage(name="cool_down", steps=steps, changes=_held(recipe) | {"optim.cooldown": steps})


def _scaled(recipe: Recipe, rate: float) -> dict[str, Any]:
    return {"optim.lr": rate * recipe.optim.lr}


def _compressed(recipe: Recipe, share: float) -> dict[str, Any]:
    """Return changes that shorten what a recipe counts in steps to a share."""
    spans = {"optim.warmup": recipe.optim.warmup, "optim.cooldown": recipe.optim.cooldown}
    if isinstance(recipe.objective, DINO.Config):
        spans["objective.teacher_temperature_steps"] = recipe.objective.teacher_temperature_steps
        spans["objective.freeze_last_layer"] = recipe.objective.freeze_last_layer
    return {name: round(share * steps) for name, steps in spans.items() if steps}


def _held(recipe: Recipe) -> dict[str, Any]:
    """Return changes that keep decay and temperature at the values with which a recipe ends, and the rate at its peak.

    A teacher's momentum is laid out anew: that of the end, 1, would hold the teacher.
    """
    optim = recipe.optim
    decay = optim.weight_decay if optim.final_weight_decay is None else optim.final_weight_decay
    changes: dict[str, Any] = {"optim.lr_shape": "constant", "optim.warmup": 0, "optim.cooldown": 0}
    changes |= {"optim.weight_decay": decay, "optim.final_weight_decay": None}
    if isinstance(recipe.objective, DINO.Config):
        changes |= {"objective.teacher_temperature_steps": 0, "objective.freeze_last_layer": 0}
    return changes
