"""A run's encoder as a plain module: from a tensor as users have it to features, with nothing else of a run around it.

Copies what it holds, so that training it leaves the model as it is. Constants of the preparation (means, filter banks,
quantiles) keep their precision whatever the weights are converted to, as half of them would be another input.
Shapes: B samples, N tokens, D width, P width of a space that streams share.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, Self, get_args

from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder, Tower
from multissl.contract.preparation import Preparation
from multissl.registry import suggest

ModulePool = Literal["own", "mean", "tokens", "embedding"]
"""own: as the encoder pools; mean: the mean of the real tokens; tokens: every token; embedding: the unit vector in the
space that streams share."""


class Constants(nn.Module):
    """Tensors that move between devices and keep their precision."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = {f"constant{number}": name for number, name in enumerate(tensors)}
        for attribute, name in self.names.items():
            self.register_buffer(attribute, tensors[name].clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the tensors where `fn` moves them; what it does to their precision is not done."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for attribute, tensor in before.items():
            self.register_buffer(attribute, tensor.to(self.get_buffer(attribute).device))
        return self

    def forward(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: self.get_buffer(attribute) for attribute, name in self.names.items()}


class FeatureModule(nn.Module):
    """An encoder behind its preparation: tensors to features [B, D], or tokens [B, N, D] where these are asked for."""

    def __init__(
        self,
        encoder: Encoder,
        preparation: Preparation,
        stream: str,
        pool: ModulePool = "own",
        trainable: bool = False,
    ) -> None:
        super().__init__()
        if pool not in (known := get_args(ModulePool)):
            raise ValueError(f"pool={pool!r}: want how features are pooled{suggest(pool, known)}")
        if pool == "embedding" and not isinstance(encoder, Tower):
            raise ValueError(
                f"pool=embedding: {stream} of this run leads to no space that streams share; want own, mean or tokens"
            )
        encoder = copy.deepcopy(encoder)
        if pool != "embedding" and isinstance(encoder, Tower):
            encoder = encoder.encoder  # its head is not used
        encoder.attend_plainly()
        encoder.locked, encoder.autocast = False, None
        self.encoder, self.preparation, self.constants = (
            encoder,
            preparation,
            Constants(preparation.constants),
        )
        self.stream, self.pool, self.trainable, self.dim = stream, pool, trainable, encoder.dim
        for parameter in self.parameters():
            parameter.requires_grad_(trainable)
        if trainable:
            encoder.prepare_for(frozenset({"none"}))
        self.train(False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the features of samples; `mask`, bool, says what of each is real, for streams that have padding."""
        if mask is not None and not self.preparation.takes_mask:
            raise ValueError(
                f"{self.stream} has no padding, give no mask: this module reads {self.preparation.reads}"
            )
        view, valid = self.preparation(x, mask, self.constants())
        features = self.encoder([Views(x=view, stream=self.stream, role="clean", valid=valid)])[0]
        if self.pool == "tokens":
            return features.tokens
        if self.pool == "mean":
            return _mean(features.tokens, valid)
        if features.embedding is None or self.pool == "own":
            return features.pooled
        return nn.functional.normalize(features.embedding, dim=1)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; one that is not trainable stays in evaluation mode."""
        return super().train(mode and self.trainable)

    def describe(self) -> dict[str, Any]:
        """Return what a program that calls it has to know, as JSON values."""
        return {"stream": self.stream, "pool": self.pool, "width": self.dim, **self.preparation.describe()}


def _mean(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of the real tokens [B, N, D] over N."""
    if valid is None or valid.shape[1] != tokens.shape[1]:  # an encoder that sees no padding apart
        return tokens.mean(1)
    weight = valid[:, :, None].to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
