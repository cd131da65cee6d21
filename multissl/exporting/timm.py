"""timm: weights that a model of `timm.create_model` loads, and the line that creates it.

Plain vision transformers become timm's VisionTransformer, with the options that the line says; ResNets of the published
widths keep their names; what a run trained by the `timm` encoder stays what it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from multissl.encoders.resnet import ResNetEncoder
from multissl.encoders.timm import TimmEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.exporting.base import Exporter, Subject
from multissl.exporting.pictures import check_pictures, refused, statistics_of
from multissl.files import replace_tensors
from multissl.layers.transformer import ffn_width
from multissl.modalities.image.adapter import Image
from multissl.registry import require
from multissl.weights.layouts.dinov2 import official_names

CODE = """\
import functools

import timm
import torch
from safetensors.torch import load_file

model = {create}
model.load_state_dict(load_file({path!r}))
model.eval()
mean, std = torch.tensor({mean}).view(-1, 1, 1), torch.tensor({std}).view(-1, 1, 1)


def encode(pictures):  # float32 [B, 3, H, W], values 0 to 1
    with torch.no_grad():
        return {pooled}.numpy()
"""
POOLED = "model((torch.from_numpy(pictures) - mean) / std)"
RESNETS = (18, 34, 50)


class Timm(Exporter):
    """One file, model.safetensors."""

    name = "timm"
    reads = "timm.create_model"
    file = "model.safetensors"

    def check(self, subject: Subject) -> None:
        """Refuse what no model of timm is."""
        require("timm")
        check_pictures(self.name, subject)
        encoder = subject.encoder
        if isinstance(encoder, TransformerEncoder):
            check_transformer(encoder)
        elif isinstance(encoder, ResNetEncoder):
            cfg = encoder.cfg
            if cfg.depth not in RESNETS or cfg.width != 64 or cfg.stem != "imagenet":
                raise refused(
                    self.name,
                    f"its ResNets have depth 18, 34 or 50, width 64 and stem=imagenet, this one has depth {cfg.depth}, "
                    f"width {cfg.width} and stem={cfg.stem}",
                )
        elif not isinstance(encoder, TimmEncoder):
            raise refused(self.name, f"timm has no model like {type(encoder).__name__}")
        elif encoder.cfg.pooling != "head":
            raise refused(self.name, "encoders.pooling is mean, and timm's models pool by their head")

    def write(self, subject: Subject, folder: Path) -> None:
        """Write the weights under timm's names."""
        encoder = subject.encoder
        state = weights_of(encoder) if isinstance(encoder, TransformerEncoder) else inner_state(encoder)
        replace_tensors(
            folder / self.file, {name: t.detach().cpu().contiguous() for name, t in state.items()}
        )

    def code(self, subject: Subject, folder: Path) -> str:
        """Return the lines that create the model and load its weights."""
        assert isinstance(subject.model.modality, Image)
        mean, std = statistics_of(subject.model.modality)
        create, pooled = created(subject.encoder)
        path = str(folder / self.file)
        return CODE.format(create=create, path=path, mean=[*mean], std=[*std], pooled=pooled)

    def cases(self, subject: Subject) -> list[tuple[Tensor, ...]]:
        """Return pictures of one size where positions would be resampled, which timm does by its own convention."""
        convolutions = isinstance(subject.encoder, ResNetEncoder)
        return subject.cases(other_sizes=convolutions)

    def card(self, subject: Subject) -> dict[str, Any]:
        """Return what the hub sorts it by."""
        return {"library_name": "timm", "pipeline_tag": "image-feature-extraction"}


def check_transformer(encoder: TransformerEncoder) -> None:
    """Raise a ValueError where timm's VisionTransformer has no such form."""
    cfg, spec = encoder.cfg, encoder.spec
    reasons = {
        "position.kind is neither learned nor sincos": cfg.position.kind not in ("learned", "sincos"),
        "position.grid is not that of the pictures": encoder.tokenizer.grid
        != tuple(n // p for n, p in zip(spec.shape[1:], spec.patch, strict=True)),
        "encoders.pooling is neither cls nor mean": cfg.pooling not in ("cls", "mean"),
        "encoders.conv_stem is on": cfg.conv_stem,
        "encoders.norm_pre is on": cfg.norm_pre,
        "encoders.norm_order is post": cfg.norm_order != "pre",
        "encoders.final_norm is not tokens": cfg.final_norm != "tokens",
        "encoders.act is not gelu": cfg.act != "gelu",
        "encoders.causal is on": cfg.causal,
        "tokens overlap": bool(spec.stride),
    }
    for reason, holds in reasons.items():
        if holds:
            raise refused("timm", f"its VisionTransformer has no such form: {reason}")


def created(encoder: Any) -> tuple[str, str]:
    """Return the expressions that create a model like an encoder, and that pool what it makes of pictures."""
    if isinstance(encoder, ResNetEncoder):
        channels = encoder.net.conv1.in_channels
        return f'timm.create_model("resnet{encoder.cfg.depth}", num_classes=0, in_chans={channels})', POOLED
    if isinstance(encoder, TimmEncoder):
        words = "".join(f", {name}={value!r}" for name, value in encoder.created_with.items())
        return f"timm.create_model({encoder.cfg.name!r}{words})", POOLED
    cfg, spec = encoder.cfg, encoder.spec
    hidden = ffn_width(cfg.dim, cfg.ffn, cfg.ffn_ratio) * (2 if cfg.ffn == "swiglu" else 1)
    options = {
        "img_size": tuple(spec.shape[1:]),
        "patch_size": tuple(spec.patch),
        "in_chans": spec.shape[0],
        "embed_dim": cfg.dim,
        "depth": cfg.depth,
        "num_heads": cfg.heads,
        "mlp_ratio": (hidden + 0.5) / cfg.dim,  # it is multiplied and cut
        "init_values": cfg.layerscale or None,
        "class_token": cfg.class_token,
        "reg_tokens": cfg.registers,
        "no_embed_class": True,
        "global_pool": "token" if cfg.pooling == "cls" else "avg",
        "fc_norm": False,
        "num_classes": 0,
        "dynamic_img_size": True,
    }
    words = [f"    {name}={value!r},\n" for name, value in options.items()]
    if cfg.ffn == "swiglu":
        words += ["    mlp_layer=timm.layers.SwiGLUPacked,\n", "    act_layer=torch.nn.SiLU,\n"]
    words.append(f"    norm_layer=functools.partial(torch.nn.LayerNorm, eps={cfg.norm_eps!r}),\n")
    return f'timm.create_model(\n    "vit_base_patch16_224",\n{"".join(words)})', POOLED


def weights_of(encoder: TransformerEncoder) -> dict[str, Tensor]:
    """Return a transformer's weights under timm's names: the class token holds the row of its position."""
    state = official_names(encoder.state_dict())
    table = encoder.tokenizer.pos_embed
    assert table is not None
    rows = encoder.tokenizer.class_rows
    if rows:
        state["cls_token"] = state["cls_token"] + table[:, :1]
    state["pos_embed"] = table[:, rows:]
    state.pop("mask_token", None)
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
    renames = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        named[name] = tensor
    return named


def inner_state(encoder: Any) -> dict[str, Tensor]:
    """Return the state of the network inside an encoder."""
    return dict(encoder.net.state_dict())
