"""Self-supervised learning beyond images: modality adapters, shared objectives, one distributed trainer.

`multissl.train(recipe, folder)` runs a recipe, `multissl.load(folder).encode(samples)` uses what it made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multissl.version import __version__

__all__ = ["Recipe", "__version__", "load", "train"]

if TYPE_CHECKING:
    from multissl.recipe import Recipe
    from multissl.run.train import load, train


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can answer --help without importing torch.
    if name == "Recipe":
        from multissl.recipe import Recipe

        return Recipe
    if name in ("load", "train"):
        from multissl.run import train as run

        return getattr(run, name)
    raise AttributeError(f"module 'multissl' has no attribute {name!r}")
