"""Self-supervised learning beyond images: modality adapters, shared objectives, one distributed trainer.

`multissl.train(recipe, folder)` runs a recipe, `multissl.train("pictures/", model="timm/resnet50", method="dino")`
makes one first; `multissl.load(folder).encode(samples)` uses what it made, `multissl.evaluate(folder,
protocols=("knn",))` measures it, or other weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multissl.version import __version__

__all__ = ["Recipe", "Stage", "__version__", "evaluate", "export", "load", "train"]

if TYPE_CHECKING:
    from multissl.exporting.export import export
    from multissl.recipe import Recipe
    from multissl.run.evaluate import evaluate
    from multissl.run.model import load
    from multissl.simple import train
    from multissl.stages import Stage


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can answer --help without importing torch.
    if name == "Recipe":
        from multissl.recipe import Recipe

        return Recipe
    if name == "Stage":
        from multissl.stages import Stage

        return Stage
    if name == "evaluate":
        from multissl.run.evaluate import evaluate

        return evaluate
    if name == "export":
        from multissl.exporting.export import export

        return export
    if name == "load":
        from multissl.run.model import load

        return load
    if name == "train":
        from multissl.simple import train

        return train
    raise AttributeError(f"module 'multissl' has no attribute {name!r}")
