"""Masks for vision transformers of other libraries, put between their own modules while they run.

A hidden token is replaced after the patch embedding, before positions, as here and in iBOT; or left out after
positions, before the blocks, as in MAE. The networks know nothing of it: a hook stands on one of their modules for a
call.
Shapes: R rows, N tokens, P tokens before them, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.plans import Masking
from multissl.encoders.wrapped import Wrapped
from multissl.layers.tokenizers import visible


class Places(NamedTuple):
    """Where a network's tokens can be reached."""

    patches: nn.Module
    """Gives the embedded patches, [R, N, D], [R, H, W, D], or as a convolution [R, D, H, W]."""
    tokens: nn.Module
    """Gives all tokens with their positions, [R, P+N, D], as the blocks take them."""


class MaskedWrapped(Wrapped):
    """A wrapped vision transformer that takes masks where its network lets tokens be reached."""

    mask_token: Tensor

    def take_masks(self, maskings: frozenset[Masking]) -> None:
        """Say what can be done with a mask, and hold a token for what is replaced.

        Weights from before there was such a token load all the same.
        """
        self.maskings = maskings
        if "replace" in maskings:
            self.mask_token = nn.Parameter(torch.zeros(1, self.dim))
            self.register_load_state_dict_pre_hook(_keep_mask_token)

    @abstractmethod
    def places(self) -> Places:
        """Return where the network's tokens can be reached."""

    def token_parameters(self) -> Iterable[Tensor]:
        """Return the network's tokens and the mask token."""
        return [*super().token_parameters(), *([self.mask_token] if "replace" in self.maskings else [])]

    def prepare_for(self, maskings: frozenset[Masking]) -> None:
        """Train the mask token only where tokens are replaced."""
        if "replace" in self.maskings:
            self.mask_token.requires_grad_("replace" in maskings)

    @contextmanager
    def masked(self, views: Views, masking: Masking) -> Iterator[None]:
        """Let the network see views under their mask."""
        mask = views.mask if masking in ("replace", "drop") else None
        if mask is None:
            yield
            return
        patches, tokens = self.places()
        count = mask.hidden.shape[1]

        def replace(module: nn.Module, _: Any, out: Tensor) -> Tensor:
            hidden, token = mask.hidden, self.mask_token.to(out.dtype)  # [R, N], [1, D]
            if isinstance(module, nn.Conv2d):
                return torch.where(hidden.view(-1, 1, *out.shape[2:]), token.view(1, -1, 1, 1), out)
            return torch.where(hidden.view(*out.shape[:-1], 1), token, out)

        def drop(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            before = out.shape[1] - count
            seen = visible(mask)[:, :, None].expand(-1, -1, out.shape[2])  # [R, N - hidden, D]
            return torch.cat([out[:, :before], out[:, before:].gather(1, seen)], dim=1)

        replaces = masking == "replace"
        hook = patches.register_forward_hook(replace) if replaces else tokens.register_forward_hook(drop)
        try:
            yield
        finally:
            hook.remove()


def _keep_mask_token(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, MaskedWrapped)
    state.setdefault(f"{prefix}mask_token", module.mask_token.detach())
