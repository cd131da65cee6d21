"""Any encoder of Hugging Face's transformers: vision models first, text, spectrogram and waveform models by the stream.

The network is built from a config (no network access) or from the config of a local folder or hub name; weights are
fetched only where `pretrained` asks for them, as safetensors. They carry Hugging Face's names behind `net.`.
Shapes: R rows, P class and register tokens, N tokens, D width.
"""

from __future__ import annotations

import inspect
import math
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
from multissl.encoders.published import change_config, describe_config, read_config, read_state
from multissl.encoders.wrapped import ReadsPublishedNames, by_size, mean_of, tokens_of
from multissl.registry import require

UNSAID = {"model_type": "vit"}
"""`config` where nobody has changed it: beside a model it says nothing."""


MASKINGS: dict[str, frozenset[Masking]] = {
    **dict.fromkeys(
        (
            "vit",
            "deit",
            "vit_msn",
            "ijepa",
            "dinov2",
            "dinov2_with_registers",
            "clip_vision_model",
            "siglip_vision_model",
        ),
        frozenset({"none", "replace", "drop"}),
    ),
    "dinov3_vit": frozenset({"none", "replace"}),
}
"""What can be done with a mask, by model type."""


class HuggingFaceEncoder(MaskedWrapped, ReadsPublishedNames):
    """A transformers `AutoModel`; vision transformers take masks."""

    @dataclass(kw_only=True, slots=True)
    class Config(Encoder.Config):
        """Options of a Hugging Face model."""

        model: str = ""
        """Local folder or hub name whose config is taken; without one `config` describes the model."""
        config: dict[str, Any] = field(default_factory=lambda: dict(UNSAID))
        """model_type and fields of its config. Without a model, the size of the input, its channels and its vocabulary
        come from the stream; with one, the type is the model's and the fields change what it says. Fields of the
        network alone: no switch of transformers' loaders, and no code that a model brings along, is taken from here."""
        pretrained: bool = False
        """Start a run from the weights of `model`."""
        pooling: Literal["mean", "cls", "pooler"] = "mean"
        """What stands for a row: the mean of the tokens, the first token, or the model's own pooler_output."""
        prefix: int = -1
        """Tokens before those of the input (class, registers); -1: those in excess of the patches, for pictures."""

        def __post_init__(self) -> None:
            if not self.model and "model_type" not in self.config:
                raise ValueError("config names no model_type: add one, such as vit, or name a model")
            if self.pretrained and not self.model:
                raise ValueError("pretrained=True without a model: name a folder or a hub name in model")

        def maskings_for(self, spec: StreamSpec) -> frozenset[Masking]:
            """Return what the model's type lets be done with a mask."""
            kind = read_config(self.model).model_type if self.model else self.config["model_type"]
            return MASKINGS.get(kind, frozenset({"none"}))

        def token_side(self) -> int:
            """Return the side of a patch of a vision transformer that takes masks; 0 for other models."""
            if self.model:
                config = read_config(self.model)
                change_config(config, {} if self.config == UNSAID else self.config)
            else:
                config = describe_config(self.config, {})
            side = config.patch_size if config.model_type in MASKINGS else 0
            return side if isinstance(side, int) else 0

    def __init__(self, cfg: Config, spec: StreamSpec) -> None:
        super().__init__()
        self.cfg, self.spec = cfg, spec
        self.name = input_name(spec)
        transformers = require("transformers")
        # None replaces what the config says: the name of a hub repository of kernels, that is code, would do.
        net: Any = transformers.AutoModel.from_config(
            model_config(cfg, spec),
            trust_remote_code=False,
            attn_implementation=None,
            experts_implementation=None,
        )
        lists = [m for m in net.modules() if isinstance(m, nn.ModuleList)]
        self.wrap(net, list(max(lists, key=len, default=[])))
        sizes = getattr(net.config, "hidden_sizes", None)
        self.dim = sizes[-1] if sizes else net.config.hidden_size
        self.take_masks(MASKINGS.get(net.config.model_type, frozenset({"none"})))
        self.accepts = set(inspect.signature(net.forward).parameters)
        if "pixel_values" not in self.accepts and self.name == "pixel_values" and spec.shape[0] == 1:
            self.name = "input_values"  # spectrograms [R, T, F] without a channel, as AST reads them
        if cfg.pooling != "pooler" and isinstance(getattr(net, "pooler", None), nn.Module):
            net.pooler.requires_grad_(False)
        for name, parameter in net.named_parameters():
            if name.endswith(
                ("mask_token", "masked_spec_embed")
            ):  # nothing is masked here: it would never learn
                parameter.requires_grad_(False)

    def load_pretrained(self) -> None:
        """Take the weights of `model` where `pretrained` asks for them."""
        if self.cfg.pretrained:
            loader: Any = require("transformers").AutoModel
            found = loader.from_pretrained(
                self.cfg.model, config=self.net.config, use_safetensors=True, trust_remote_code=False
            )
            self.net.load_state_dict(found.state_dict())

    def forward(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item; items of one size share one call."""
        if inner > self.depth:
            raise ValueError(f"inner={inner}: the model has {self.depth} blocks")
        if masking == "none" or not any(v.masks for v in views):
            return by_size(views, lambda v: self._features(v, inner))
        assert masking in self.maskings, masking
        features: list[Features] = []
        for v in views:
            with self.masked(v, masking):
                features.append(self._features(v, inner, masking == "drop"))
        return features

    def places(self) -> Places:
        """Return the embeddings of patches, and those of all tokens around them."""
        for module in self.net.modules():
            for name in ("patch_embeddings", "patch_embedding"):
                if name in dict(module.named_children()):
                    return Places(module.get_submodule(name), module)
        raise ValueError(f"{self.net.config.model_type} has no embeddings of patches")

    def read_published(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return tensors under the network's own names, of any of transformers' names in memory or on disk."""
        return read_state(self.net, state, config)

    def _features(self, v: Views, inner: int, dropped: bool = False) -> Features:
        x = self.input(v.x)
        given: dict[str, Any] = {self.name: x[:, 0] if self.name == "input_values" else x}
        if v.valid is not None and "attention_mask" in self.accepts:
            given["attention_mask"] = v.valid.long()
        if "interpolate_pos_encoding" in self.accepts:
            given["interpolate_pos_encoding"] = True
        out = self.net(**given, output_hidden_states=inner > 0)
        every = tokens_of(out.last_hidden_state)  # [R, P+N, D]
        first = self._prefix(every, v.x, v.mask.num_hidden or 0 if dropped and v.mask else 0)
        tokens = every[:, first:]
        match self.cfg.pooling:
            case "pooler":
                if getattr(out, "pooler_output", None) is None:
                    kind = self.net.config.model_type
                    raise ValueError(f"{kind} has no pooler_output: use pooling=mean or pooling=cls")
                pooled = out.pooler_output.flatten(1)  # convolutions give [R, D, 1, 1]
            case "cls":
                pooled = every[:, 0]
            case _:
                real = v.valid if v.valid is not None and v.valid.shape == every.shape[:2] else None
                pooled = mean_of(tokens, None if real is None else real[:, first:])
        taps = [tokens_of(t) for t in out.hidden_states[-inner:]] if inner else []
        blocks = () if self.training or not taps else self._pooled(taps, every, pooled, v, first)
        return Features(
            pooled=pooled, tokens=tokens, inner=tuple(t[:, first:] for t in taps), inner_pooled=blocks
        )

    def _pooled(
        self, taps: Sequence[Tensor], every: Tensor, pooled: Tensor, v: Views, first: int
    ) -> tuple[Tensor, ...]:
        """What stands for a row in each of the last blocks; nothing where that is more than tokens behind a norm."""
        bare = torch.equal(every, taps[-1])  # CLIP norms its pooler's token alone
        norm = nn.Identity() if bare else final_norm_of(self.net)
        if norm is None or self.cfg.pooling == "pooler":
            return ()
        whole = [norm(t) for t in taps[:-1]]
        if self.cfg.pooling == "cls":
            return (*(t[:, 0] for t in whole), pooled)
        valid = None if v.valid is None or v.valid.shape != taps[0].shape[:2] else v.valid[:, first:]
        return (*(mean_of(t[:, first:], valid) for t in whole), pooled)

    def _prefix(self, every: Tensor, x: Tensor, dropped: int = 0) -> int:
        """How many tokens stand before those of the input x, of which some were left out."""
        if self.cfg.prefix >= 0:
            return self.cfg.prefix
        patch = getattr(self.net.config, "patch_size", None)
        if x.ndim != 4 or patch is None or getattr(self.net.config, "hidden_sizes", None):
            return 0
        high, wide = (patch, patch) if isinstance(patch, int) else patch
        steps = [
            getattr(self.net.config, name, size)
            for name, size in (("time_stride", high), ("frequency_stride", wide))
        ]
        places = zip(x.shape[2:], (high, wide), steps, strict=True)
        excess = every.shape[1] + dropped - math.prod((size - cut) // step + 1 for size, cut, step in places)
        return excess if 0 <= excess < every.shape[1] and excess <= 16 else 0


NORMS = ("layernorm", "norm", "post_layernorm", "vision_model.post_layernorm")
"""What transformers calls the norm behind the last block of its vision and text models."""


def final_norm_of(net: nn.Module) -> nn.Module | None:
    """Return the norm behind a network's last block, None where it has none under a usual name."""
    modules = dict(net.named_modules())
    return next((modules[name] for name in NORMS if name in modules), None)


def input_name(spec: StreamSpec) -> str:
    """What Hugging Face calls the input of a stream."""
    if spec.kind == "grid" and len(spec.shape) == 3:
        return "pixel_values"
    if spec.kind == "grid" and len(spec.shape) == 2 and spec.shape[0] == 1:
        return "input_values"
    if spec.kind == "sequence":
        return "input_ids"
    raise ValueError(
        f"the huggingface encoder reads pictures [C, H, W], waveforms [1, T] and sequences, this stream is a "
        f"{spec.kind} of shape {spec.shape}: use transformer"
    )


def model_config(cfg: HuggingFaceEncoder.Config, spec: StreamSpec) -> Any:
    """Return the model's config: that of `model` with changes, or a new one that fits the stream."""
    if cfg.model:
        config = read_config(cfg.model)
        change_config(config, {} if cfg.config == UNSAID else cfg.config)
        return config
    fitting: dict[str, Any] = {}
    if input_name(spec) == "pixel_values":
        channels, high, wide = spec.shape
        fitting = {"num_channels": channels, "image_size": high if high == wide else (high, wide)}
        fitting |= {"max_length": high, "num_mel_bins": wide} if channels == 1 else {}
    elif spec.kind == "sequence":
        fitting = {"vocab_size": spec.vocab, "max_position_embeddings": spec.shape[0] + 2}
    return describe_config(cfg.config, fitting)
