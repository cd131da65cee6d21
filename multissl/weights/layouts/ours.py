"""Our own names, and those of a network of another library inside one of our encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from multissl.weights.layouts.base import Layout, unwrapped
from multissl.weights.unwrapping import State

CLASSIFIERS = ("net.fc.", "net.head.", "net.classifier.")


class Ours(Layout):
    """An encoder's own names: whatever no other layout recognizes is compared with them."""

    name = "ours"

    def recognizes(self, names: Collection[str], encoder: nn.Module) -> bool:
        """Return True: this is the last that is asked."""
        return True

    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Take the prefixes of wrappers off, where the encoder has no module that is called so."""
        own = encoder.state_dict().keys()
        return {name if name in own else unwrapped(name): tensor for name, tensor in state.items()}


class Library(Layout):
    """The names of a published network that an encoder here holds as `net`; its classifier is left out."""

    name = "library"

    def recognizes(self, names: Collection[str], encoder: nn.Module) -> bool:
        """Return whether the encoder is nothing but such a network, whatever the file is."""
        return all(name.startswith("net.") for name in encoder.state_dict())

    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Put `net.` in front of the names."""
        own = encoder.state_dict().keys()
        named = {f"net.{name.removeprefix('net.')}": tensor for name, tensor in state.items()}
        return {n: t for n, t in named.items() if n in own or not n.startswith(CLASSIFIERS)}
