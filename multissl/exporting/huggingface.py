"""Hugging Face's format: a folder that `transformers.AutoModel.from_pretrained` opens, with its image processor.

Vision transformers as DINOv2 has them become Dinov2Model, or Dinov2WithRegistersModel; what a run trained by the
`huggingface` encoder stays what it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.encoders.huggingface import HuggingFaceEncoder
from multissl.encoders.transformer import TransformerEncoder
from multissl.exporting.base import Exporter, Subject
from multissl.exporting.pictures import check_pictures, refused, statistics_of, whole_number
from multissl.files import replace_text
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.crops import pair
from multissl.registry import require
from multissl.weights.layouts.huggingface_dinov2 import to_huggingface

CODE = """\
import torch
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained({path!r}).eval()
processor = AutoImageProcessor.from_pretrained({path!r})


def encode(pictures):  # uint8 [B, 3, H, W] that are cut to size already; leave the two options out for others
    inputs = processor(list(pictures), do_resize=False, do_center_crop=False, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    return {pooled}.numpy()
"""


class HuggingFace(Exporter):
    """config.json, model.safetensors and preprocessor_config.json."""

    name = "hf"
    reads = "transformers.AutoModel.from_pretrained"

    def check(self, subject: Subject) -> None:
        """Refuse what has no counterpart there."""
        require("transformers")
        check_pictures(self.name, subject)
        encoder = subject.encoder
        if isinstance(encoder, HuggingFaceEncoder):
            if encoder.cfg.prefix >= 0:
                raise refused(self.name, "encoders.prefix is set")
            return
        if not isinstance(encoder, TransformerEncoder):
            raise refused(self.name, f"transformers has no model like {type(encoder).__name__}")
        cfg, spec = encoder.cfg, encoder.spec
        reasons = {
            "position.kind is not learned": cfg.position.kind != "learned",
            "there is no class token": not cfg.class_token,
            "encoders.pooling is neither cls nor mean": cfg.pooling not in ("cls", "mean"),
            "encoders.conv_stem is on": cfg.conv_stem,
            "encoders.norm_pre is on": cfg.norm_pre,
            "encoders.norm_order is post": cfg.norm_order != "pre",
            "encoders.final_norm is not tokens": cfg.final_norm != "tokens",
            "encoders.key_bias is off": not cfg.key_bias,
            "encoders.act is not gelu": cfg.act != "gelu",
            "encoders.causal is on": cfg.causal,
            "tokens overlap": bool(spec.stride),
            "encoders.ffn_ratio is no whole number": not cfg.ffn_ratio.is_integer(),
            "patches or the grid of positions are not square": spec.patch[0] != spec.patch[1]
            or encoder.tokenizer.grid[0] != encoder.tokenizer.grid[1],
        }
        for reason, holds in reasons.items():
            if holds:
                raise refused(self.name, f"DINOv2's model of transformers has no such form: {reason}")

    def write(self, subject: Subject, folder: Path) -> None:
        """Build its model, fill it, and let it save itself."""
        encoder = subject.encoder
        if isinstance(encoder, HuggingFaceEncoder):
            net: Any = encoder.net
        else:
            assert isinstance(encoder, TransformerEncoder)
            net = model_of(encoder)
        net.save_pretrained(folder)
        assert isinstance(subject.model.modality, Image)
        options = json.dumps(processor_of(subject.model.modality), indent=1)
        replace_text(folder / "preprocessor_config.json", options)

    def code(self, subject: Subject, folder: Path) -> str:
        """Return the lines that load model and processor."""
        return CODE.format(path=str(folder), pooled=pooled_of(subject))

    def cases(self, subject: Subject) -> list[tuple[Tensor, ...]]:
        """Return pictures as bytes, of one size: positions are resampled to others by its own convention."""
        return [(whole_number(x),) for (x,) in subject.cases(other_sizes=False)]

    def card(self, subject: Subject) -> dict[str, Any]:
        """Return what the hub sorts it by."""
        return {"library_name": "transformers", "pipeline_tag": "image-feature-extraction"}


def model_of(encoder: TransformerEncoder) -> Any:
    """Return Dinov2Model or Dinov2WithRegistersModel with the weights of an encoder."""
    transformers = require("transformers")
    cfg, spec = encoder.cfg, encoder.spec
    patch = spec.patch[0]
    options: dict[str, Any] = {
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.heads,
        "mlp_ratio": int(cfg.ffn_ratio),
        "use_swiglu_ffn": cfg.ffn == "swiglu",
        "layer_norm_eps": cfg.norm_eps,
        "layerscale_value": cfg.layerscale or 1.0,
        "image_size": encoder.tokenizer.grid[0] * patch,
        "patch_size": patch,
        "num_channels": spec.shape[0],
    }
    if cfg.registers:
        config = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=cfg.registers)
        model: Any = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**options))
    model.load_state_dict(to_huggingface(encoder, "memory"))
    return model.eval()


def pooled_of(subject: Subject) -> str:
    """Return the expression that stands for what the encoder pools."""
    encoder = subject.encoder
    assert isinstance(encoder, HuggingFaceEncoder | TransformerEncoder)
    if encoder.cfg.pooling == "pooler":
        return "outputs.pooler_output.flatten(1)"
    if encoder.cfg.pooling == "cls":
        return "outputs.last_hidden_state[:, 0]"
    if isinstance(encoder, TransformerEncoder):
        return f"outputs.last_hidden_state[:, {encoder.tokenizer.prefix}:].mean(1)"
    (x,) = subject.module.preparation.example(1)
    with torch.no_grad():
        every = encoder.net(pixel_values=x).last_hidden_state
        tokens = encoder([Views(x=x, stream=subject.stream, role="clean")])[0].tokens
    if every.ndim > tokens.ndim:  # a map of a convolutional network
        return "outputs.last_hidden_state.flatten(2).mean(2)"
    return f"outputs.last_hidden_state[:, {every.shape[1] - tokens.shape[1]}:].mean(1)"


def processor_of(modality: Image) -> dict[str, Any]:
    """Return the options of an image processor that makes clean views of pictures."""
    cfg, (mean, std) = modality.cfg, statistics_of(modality)
    height, width = pair(cfg.size)
    size = {"height": height, "width": width}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "size": size if cfg.clean_whole else {"shortest_edge": round(max(height, width) * cfg.clean_zoom)},
        "do_center_crop": not cfg.clean_whole,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
