"""Any image model of timm (Wightman, github.com/huggingface/pytorch-image-models) as an encoder.

Pooled is what the model's own head reads before its classifier; tokens are its last map or its patch tokens. Weights
carry timm's names behind `net.`. Batch norm as in `encoders.resnet`.
Shapes: R rows, P class and register tokens, N tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multissl.contract.data import Views
from multissl.contract.encoder import Encoder
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, StreamSpec
from multissl.encoders.masked import MaskedWrapped, Places
from multissl.encoders.wrapped import by_size, mean_of, picture_only, tokens_of
from multissl.registry import require, suggest

MASKINGS: dict[str, frozenset[Masking]] = {
    "vision_transformer": frozenset({"none", "replace", "drop"}),
    "deit": frozenset({"none", "replace", "drop"}),
    "eva": frozenset({"none", "replace"}),
}
"""What can be done with a mask, by timm's module."""


class TimmEncoder(MaskedWrapped):
    """A timm model without its classifier; its vision transformers take masks, those with rotary positions replace."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of a timm model."""

        name: str = "vit_small_patch16_224"
        """As in `timm.list_models()`; size and channels of the input come from the stream."""
        pretrained: bool = False
        """Start a run from the published weights; fetches them from the network."""
        drop_path: float = 0.0
        """Share of rows that skip a residual branch while training."""
        pooling: Literal["head", "mean"] = "head"
        """head: what the classifier would read; mean: the mean of the tokens."""
        options: dict[str, Any] = field(default_factory=dict)
        """More arguments of the model, such as patch_size=4."""

        def __post_init__(self) -> None:
            if not 0 <= self.drop_path < 1:
                raise ValueError(f"drop_path={self.drop_path}: want a share of at least 0 and below 1")

        def maskings_for(self, spec: StreamSpec) -> frozenset[Masking]:
            """Return what the model's family lets be done with a mask."""
            return MASKINGS.get(family_of(self.name), frozenset({"none"}))

        def token_side(self) -> int:
            """Return the side of a patch of a vision transformer; 0 for other models, or where timm has no such one."""
            if not require("timm").is_model(self.name) or family_of(self.name) not in MASKINGS:
                return 0
            check_options(self.options, "encoders.options")
            with torch.device("meta"):
                net: Any = require("timm").create_model(self.name, **self.options)
            height, width = net.patch_embed.patch_size
            return height if height == width else 0

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        picture_only("timm", spec)
        self.cfg, self.spec = cfg, spec
        net: Any
        net, self.created_with = create_with(cfg, spec, pretrained=False)
        # a map of a single place is another program than larger ones
        self.any_size = "img_size" not in self.created_with and min(spec.shape[1:]) > reduction_of(net)
        self.wrap(net, blocks_of(net))
        self.dim, self.prefix = net.num_features, getattr(net, "num_prefix_tokens", 0)
        head = getattr(net, "head_hidden_size", self.dim)
        self.gives_blocks = bool(self.prefix) and hasattr(net, "forward_intermediates")
        self.take_masks(cfg.maskings_for(spec))
        if cfg.pooling == "head" and head != self.dim:
            raise ValueError(
                f"the head of {cfg.name} makes {head} numbers of tokens of {self.dim}: use pooling=mean"
            )

    def load_pretrained(self) -> None:
        """Take timm's published weights where `pretrained` asks for them."""
        if self.cfg.pretrained:
            self.net.load_state_dict(create(self.cfg, self.spec, pretrained=True).state_dict())

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item; items of one size share one call."""
        if masking == "none" or not any(v.masks for v in views):
            return by_size(views, lambda v: self._features(self.input(v.x), inner))
        assert masking in self.maskings, masking
        features: list[Features] = []
        for v in views:
            with self.masked(v, masking):
                features.append(self._features(self.input(v.x), inner))
        return features

    def places(self) -> Places:
        """Return timm's patch embedding, and what stands before its blocks to drop patches."""
        return Places(self.net.patch_embed, self.net.patch_drop)

    def _features(self, x: Tensor, inner: int) -> Features:
        net, taps = self.net, ()
        pooled_taps: tuple[Tensor, ...] = ()
        if inner:
            if not self.gives_blocks:
                raise ValueError(f"{self.cfg.name} hands out no inner tokens: take a vision transformer")
            last, every = net.forward_intermediates(
                x, indices=inner, output_fmt="NLC", return_prefix_tokens=True
            )
            taps = [tap for tap, _ in every]
            if not self.training:
                whole = [net.norm(torch.cat([prefix, tap], 1)) for tap, prefix in every]
                pooled_taps = tuple(self._pooled(tokens) for tokens in whole)
        else:
            last = net.forward_features(x)
        if last.ndim == 4 and getattr(net, "output_fmt", "NCHW") == "NHWC":
            last = last.permute(0, 3, 1, 2)
        tokens = tokens_of(last)[:, self.prefix :]  # [R, N, D]
        back = last.permute(0, 2, 3, 1) if getattr(net, "output_fmt", "NCHW") == "NHWC" else last
        pooled = mean_of(tokens) if self.cfg.pooling == "mean" else self._pooled(back)
        return Features(pooled=pooled, tokens=tokens, inner=tuple(taps), inner_pooled=pooled_taps)

    def _pooled(self, last: Tensor) -> Tensor:
        """What stands for a row, of tokens [R, P+N, D] behind the final norm, or of a map in the network's order."""
        if self.cfg.pooling == "mean":
            return mean_of(last[:, self.prefix :])
        return self.net.forward_head(last, pre_logits=True)  # [R, D]


def family_of(name: str) -> str:
    """Return timm's module of a model."""
    return require("timm.models").model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2]


def reduction_of(net: Any) -> int:
    """Return how many pixels a place of the last map is wide, 1 where the model does not say."""
    levels = getattr(net, "feature_info", None)
    return int(levels[-1]["reduction"]) if levels else 1


def blocks_of(net: Any) -> list[nn.Module]:
    """The blocks or stages of a timm model, where it has them under one of the usual names."""
    for name in ("blocks", "stages", "layers"):
        if isinstance(found := getattr(net, name, None), nn.Sequential | nn.ModuleList):
            return list(found)
    return [getattr(net, f"layer{i}") for i in range(1, 5) if hasattr(net, f"layer{i}")]


def create(cfg: TimmEncoder.Config, spec: StreamSpec, pretrained: bool) -> nn.Module:
    """The timm model for a stream; it is given the size of its pictures where it wants to know."""
    return create_with(cfg, spec, pretrained)[0]


def create_with(
    cfg: TimmEncoder.Config, spec: StreamSpec, pretrained: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the timm model for a stream, and the options that it was created with."""
    timm = require("timm")
    if not timm.is_model(cfg.name):
        raise ValueError(
            f"timm has no model {cfg.name!r}{suggest(cfg.name.partition('.')[0], near(timm, cfg.name))}"
        )
    check_options(cfg.options, "encoders.options")
    channels, *size = spec.shape
    given = {"num_classes": 0, "in_chans": channels, **cfg.options}
    if cfg.drop_path:
        given["drop_path_rate"] = cfg.drop_path
    tries: list[dict[str, Any]] = [
        {"img_size": tuple(size), "dynamic_img_size": True},
        {"img_size": tuple(size)},
    ]
    for sized in tries:  # transformers take sizes of any view, window models one size, convolutions none
        state = torch.get_rng_state()
        try:
            return timm.create_model(cfg.name, pretrained=pretrained, **sized | given), sized | given
        except TypeError:
            torch.set_rng_state(state)
    return timm.create_model(cfg.name, pretrained=pretrained, **given), given


def check_options(options: Mapping[str, Any], where: str) -> None:
    """Refuse arguments of timm's loaders among those of a model: they would read other files or fetch weights."""
    models = require("timm.models")
    loaders = (models.create_model, models.build_model_with_cfg)
    reserved = {name for loader in loaders for name in inspect.signature(loader).parameters} - {"kwargs"}
    for name in options:
        if name in reserved:
            raise ValueError(
                f"{where} cannot hold {name!r}, an argument of timm's loader and not of the network: weights come with "
                "pretrained=True, or with --init FILE"
            )


def near(timm: Any, name: str) -> list[str]:
    """timm's models of the same family, for suggestions."""
    return timm.list_models(f"{name[:3]}*") or ["resnet18", "vit_small_patch16_224"]
