"""Training in one line: a recipe, or data with the names of a model and a method, which make one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

from multissl import registry
from multissl.encoders.transformer import SIZES
from multissl.options import open_recipe
from multissl.recipe import Recipe
from multissl.registry import suggest
from multissl.run.train import Result
from multissl.run.train import train as run_recipe

METHODS: dict[str, tuple[str, ...]] = {
    "dino": (
        "--objective", "dino", "--objective.ibot_weight", "0", "--objective.koleo_weight", "0", "--objective.centering",
        "ema",
    ),
    "dinov2": (),
    "ibot": ("--objective", "dino", "--objective.koleo_weight", "0", "--objective.centering", "ema",
             "--objective.tied_heads", "true"),
    "simclr": ("--objective", "infonce"),
    "mocov3": ("--objective", "moco"),
}  # fmt: skip
"""Options of methods that share an objective, or go by another name than it; any other objective is one by its own."""


@overload
def train(
    data: Recipe,
    folder: Path | str,
    default: Recipe | None = None,
    *,
    file: Path | None = None,
    accept_data: bool = False,
    trust: bool = False,
) -> Result: ...


@overload
def train(
    data: str | Path,
    folder: Path | str | None = None,
    default: None = None,
    *,
    model: str = "vit/s",
    method: str = "dinov2",
    recipe: str = "image/dinov2_small_data",
    accept_data: bool = False,
    trust: bool = False,
    **options: Any,
) -> Result: ...


def train(
    data: Recipe | str | Path,
    folder: Path | str | None = None,
    default: Recipe | None = None,
    *,
    model: str = "",
    method: str = "",
    recipe: str = "",
    file: Path | None = None,
    accept_data: bool = False,
    trust: bool = False,
    **options: Any,
) -> Result:
    """Train on data by a method with a model, or run a recipe, in a folder; return how it ended.

    `model` is `timm/NAME`, `hf/FOLDER`, `resnet/50`, `vit/s` (ti, s, b, l, g) or an encoder of `multissl list`;
    `method` is one of `METHODS` or an objective. Options of the recipe follow by name, as `steps=1000` or
    `**{"optim.lr": 1e-3}`. The folder is `runs/METHOD-MODEL` without one. The same call resumes; with `trust` from
    checkpoints, too, that an older version pickled.
    """
    if isinstance(data, Recipe):
        unused = [
            name for name, value in {"model": model, "method": method, "recipe": recipe}.items() if value
        ]
        if folder is None or unused or options:
            raise ValueError(
                f"a recipe is trained in a folder, and {', '.join([*unused, *options]) or 'nothing else'} is "
                "said in it: multissl.train(recipe, folder)"
            )
        return run_recipe(data, folder, default, file=file, accept_data=accept_data, trust=trust)
    model, method = model or "vit/s", method or "dinov2"
    made, usual = recipe_for(data, model, method, options, recipe)
    folder = folder or Path("runs") / re.sub(r"[^\w.]+", "-", f"{method}-{model}").strip("-")
    return run_recipe(made, folder, usual, accept_data=accept_data, trust=trust)


def recipe_for(
    data: str | Path, model: str, method: str, options: Mapping[str, Any], recipe: str = ""
) -> tuple[Recipe, Recipe]:
    """Return the recipe of data, a model and a method, and the one it was made from.

    That is DINOv2's for small data, unless another is named; sizes of views are left to the data where it leaves them.
    """
    base = recipe or "image/dinov2_small_data"
    usual, _ = open_recipe(base, [])
    stream = next(iter(usual.encoders))
    words = [*model_words(stream, model), *method_words(method)]
    for name, value in {**options, "data": os.fspath(data)}.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return open_recipe(base, words)


def model_words(stream: str, model: str) -> list[str]:
    """Return the options that make a stream's encoder the model of a name."""
    kind, _, name = model.partition("/")
    flag = f"--encoders.{stream}"
    if kind == "vit":
        if name not in SIZES:
            raise ValueError(f"model={model!r}: want vit/ and one of {', '.join(SIZES)}")
        return [word for option, size in SIZES[name].items() for word in (f"{flag}.{option}", str(size))]
    options = {"timm": ("timm", "name"), "hf": ("huggingface", "model"), "resnet": ("resnet", "depth")}
    if kind in options and name:
        encoder, option = options[kind]
        return [flag, encoder, f"{flag}.{option}", name]
    known = registry.names("encoders")
    if model not in known:
        raise ValueError(
            f"model={model!r}: want timm/NAME, hf/FOLDER, resnet/DEPTH, vit/SIZE or an encoder{suggest(model, known)}"
        )
    return [flag, model]


def method_words(method: str) -> list[str]:
    """Return the options that make the objective a method."""
    if method in METHODS:
        return [*METHODS[method]]
    known = registry.names("objectives")
    if method not in known:
        raise ValueError(f"no method is called {method!r}{suggest(method, [*METHODS, *known])}")
    return ["--objective", method]
