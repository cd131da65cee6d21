"""What some modules can tell and others cannot, as small classes to derive from; the engine asks by class.

State: none.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class DeclaresParameters:
    """A module that tells the optimizer what some parameters are, its own or those of modules inside it.

    Biases, norms and vectors are known by their kind, whatever they are called, and need no word.
    """

    def token_parameters(self) -> Iterable[Tensor]:
        """Return class, mask and register tokens and positions, decayed only where `optim.decay_tokens` says so."""
        return ()

    def patch_parameters(self) -> Iterable[Tensor]:
        """Return the projection of patches, whose learning rate `optim.patch_lr` scales."""
        return ()

    def undecayed_parameters(self) -> Iterable[Tensor]:
        """Return what has no weight decay though its kind does not show it."""
        return ()
