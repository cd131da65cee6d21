"""Our own names, and those of a network of another library inside one of our encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from multissl.weights.layouts.base import Layout, unwrapped
from multissl.weights.unwrapping import State, strip

CLASSIFIERS = ("net.fc.", "net.head.", "net.classifier.", "net.pooler.", "net.head_drop.")


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
        return all(name.startswith("net.") or name == "mask_token" for name in encoder.state_dict())

    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Put `net.` in front of the names; prefixes of training code come off, counters of batch norm may lack."""
        own = encoder.state_dict()
        named = {f"net.{name.removeprefix('net.')}": tensor for name, tensor in state.items()}
        if not named.keys() & own.keys():
            named = {f"net.{name}": tensor for name, tensor in strip(state).state.items()}
        kept = {n: t for n, t in named.items() if n in own or not n.startswith(CLASSIFIERS)}
        lacking = {n: t for n, t in own.items() if n.endswith("num_batches_tracked") or n == "mask_token"}
        return lacking | kept
