"""What a naming of weights says of itself: which files are in it, and what our encoders call their tensors.

The same network is published under many names: cut or fused projections, prefixes of wrappers, heads beside it.
A layout turns one such naming into the names and shapes of an encoder here; loading then compares the two.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from multissl.encoders.transformer import TransformerEncoder
from multissl.weights.conventions import Context, Conventions, Resampling
from multissl.weights.unwrapping import Network, State, strip

PARTS = {".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."), ".mlp.w12.": (".mlp.w1.", ".mlp.w2.")}
"""Linears that some code keeps in parts."""
AXES: dict[str, tuple[int, ...]] = {
    r"pos_embed": (2, 3),
    r"cls_token|mask_token": (1, 2, 3),
    r"register_tokens": (3,),
    r"patch_embed\.proj\.weight": (2, 3, 4, 5),
    r"blocks\..*(norm\d|ls\d).*|(norm|norm_pre|fc_norm|prefix_norm)\.(weight|bias)": (1,),
    r"blocks\..*(attn|mlp).*\.weight": (2,),
    r"blocks\..*bias": (1,),
    r"blocks\..*relative|relative": (2,),
}
"""How many axes tensors have, by what they are called: regular expressions for whole official names."""
Renames = tuple[tuple[str, str], ...]
"""Pairs of a regular expression and what stands in its place, in order."""


class Layout(ABC):
    """Base of namings; made without options, and without state."""

    name: ClassVar[str]
    """How it is registered, for messages."""

    @abstractmethod
    def recognizes(self, names: Collection[str], encoder: nn.Module) -> bool:
        """Return whether tensors of these names are in this naming, and can fill such an encoder."""

    @abstractmethod
    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Return the tensors under the encoder's own names, in its shapes; what it does not know keeps its name."""

    def convention(self, state: Mapping[str, Tensor]) -> Resampling | None:
        """Return how the code that gave the names resamples position tables; None where the names do not tell."""
        return None


class Published(Layout):
    """A naming of transformers that `TransformerEncoder` can hold, by way of DINOv2's names, which are ours as well.

    `official` gives those names; sizes are read from their shapes, and `conventions` says the rest.
    """

    title: ClassVar[str]
    """What it is called in messages, such as "Meta's DINOv2"."""
    model_types: ClassVar[tuple[str, ...]] = ()
    """What Hugging Face's `config.json` calls these models."""
    renames: ClassVar[Renames] = ()
    """From its names to the official ones."""
    heads: ClassVar[tuple[str, ...]] = ()
    """How names begin that are no part of the encoder and may be left out, as regular expressions."""

    of_pictures: ClassVar[bool] = True
    """Whether its networks read pictures alone."""
    free: ClassVar[tuple[str, ...]] = ()
    """Options that its own code has too, so that an encoder may differ from the released networks in them."""

    @abstractmethod
    def matches(self, network: Network) -> bool:
        """Return whether the tensors are in this naming, by their names and shapes alone."""

    def read(self, network: Network, context: Context) -> State:
        """Return the tensors under official names; raise a ValueError where one has no shape that such tensors have."""
        check_axes(rename(self.without_heads(network.state), self.renames))
        state = self.official(network, context)
        check_axes(state)  # of tensors that this layout renames in a way of its own
        return state

    def official(self, network: Network, context: Context) -> State:
        """Return the tensors under official names, whole; what is unknown keeps its name. Called by `read`."""
        return complete(rename(self.without_heads(network.state), self.renames))

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how the network computes, from its official names and what lies beside them."""
        return Conventions()

    def without_heads(self, state: Mapping[str, Tensor]) -> State:
        """Return a state without what is no part of the encoder."""
        return {n: t for n, t in state.items() if not any(re.match(head, n) for head in self.heads)}

    def left_out(self, network: Network) -> list[str]:
        """Return the names of tensors that are no part of the encoder."""
        kept = self.without_heads(network.state)
        return [*network.others, *(n for n in network.state if n not in kept)]

    def recognizes(self, names: Collection[str], encoder: nn.Module) -> bool:
        """Return whether a transformer is to be filled from tensors in this naming."""
        if not isinstance(encoder, TransformerEncoder):
            return False
        state = dict(names) if isinstance(names, Mapping) else {name: torch.empty(0) for name in names}
        return self.matches(strip(state))

    def to_ours(self, state: Mapping[str, Tensor], encoder: nn.Module) -> State:
        """Give the official names and put our two parts in front."""
        assert isinstance(encoder, TransformerEncoder)
        return to_own(self.official(strip(state), Context(grid=encoder.tokenizer.grid)), encoder)


def to_own(state: Mapping[str, Tensor], encoder: nn.Module) -> State:
    """Return official names as the encoder's own."""
    own = {shorten(name): name for name in encoder.state_dict()}
    return {own.get(name, name): tensor for name, tensor in state.items()}


def rename(state: Mapping[str, Tensor], renames: Renames) -> State:
    """Return a state in which every pattern is replaced in every name."""
    renamed: State = {}
    for name, tensor in state.items():
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def fuse(state: Mapping[str, Tensor]) -> State:
    """Return a state in which linears in parts are whole; of a bias the key's may lack, and is 0."""
    state = dict(state)
    for whole, parts in PARTS.items():
        for first in [name for name in state if parts[0] in name]:
            names = [first.replace(parts[0], part) for part in parts]
            if names[1] not in state and whole == ".attn.qkv." and first.endswith("bias"):
                state[names[1]] = torch.zeros_like(state[first])
            if len({state[name].shape[1:] for name in names if name in state}) > 1:
                raise ValueError(f"{', '.join(names)} are parts of one linear, and not of equal width")
            if all(name in state for name in names):
                state[first.replace(parts[0], whole)] = torch.cat([state.pop(name) for name in names])
    return state


def check_axes(state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError where a tensor has not as many axes as those of its name, or is empty."""
    for name, tensor in state.items():
        axes = next((axes for pattern, axes in AXES.items() if re.fullmatch(pattern, name)), None)
        empty = (
            not tensor.numel() and name != "register_tokens"
        )  # none are kept as an empty tensor by some code
        if axes is not None and (tensor.dim() not in axes or empty):
            known = " or ".join(map(str, axes))
            raise ValueError(
                f"{name} is of shape {(*tensor.shape,)}: want {known} axes with something in each"
            )
    if "patch_embed.proj.weight" in state:
        dim = len(state["patch_embed.proj.weight"])
        for name in {"cls_token", "register_tokens", "pos_embed"} & state.keys():
            shape = state[name].shape
            if shape[-1] != dim or (len(shape) == 3 and shape[0] != 1):
                raise ValueError(f"{name} is of shape {(*shape,)} beside patches of {dim} channels")


def complete(state: Mapping[str, Tensor]) -> State:
    """Return official names with linears whole and with zeros for the biases that a network was built without."""
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): t for name, t in state.items()}  # chunks
    state = fuse(state)
    for name in [n for n in state if re.match(r"(blocks|patch_embed|pool)\..*\.weight$", n)]:
        if state[name].dim() < 2:
            continue
        bias = name.removesuffix("weight") + "bias"
        state.setdefault(bias, state[name].new_zeros(len(state[name])))
    for name, shape in {"cls_token": (1, 1, -1), "mask_token": (1, -1)}.items():
        if name in state:
            state[name] = state[name].reshape(shape)
    if "register_tokens" in state and not state["register_tokens"].numel():
        del state["register_tokens"]
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"].reshape(1, *state["pos_embed"].shape[-2:])
    return state


def names_of(network: Network, *needed: str) -> bool:
    """Return whether a network has all these names, regular expressions for whole names."""
    return all(any(re.fullmatch(each, name) for name in network.state) for each in needed)


def begins(names: Iterable[str], *starts: str) -> bool:
    """Return whether a name begins in one of these ways."""
    return any(name.startswith(starts) for name in names)


def shorten(name: str) -> str:
    """Return a name of our transformer without its two parts, as messages and DINOv2 have it."""
    return re.sub(r"^(tokenizer|trunk)\.", "", name)


def unwrapped(name: str) -> str:
    """Return a name without the prefixes of training code: of wrappers, teachers and models around a backbone."""
    return re.sub(r"^(module\.|backbone\.|teacher\.|dinov2\.|dinov2_with_registers\.)+", "", name)
