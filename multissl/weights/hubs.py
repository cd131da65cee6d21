"""Weights by a name on a hub: `hf:NAME` by huggingface_hub, `timm:NAME` by timm. No code of a hub runs.

What the library has in its cache needs no network; without one the answer is a line, after a few seconds at most.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from multissl.registry import require, suggest
from multissl.weights.containers import FILES, INDEX, PREPROCESSOR, Source, files_of, open_file, read_config
from multissl.weights.reach import check_hub, check_reachable

INPUTS = ("input_size", "mean", "std", "crop_pct")
"""What timm says of the pictures that a model reads."""


def open_place(text: str | Path) -> Source:
    """Return what a place of weights holds: a file, a folder, `LAYOUT:FILE`, `hf:NAME` or `timm:NAME`."""
    hub, colon, name = str(text).partition(":")
    if colon and hub == "hf":
        return open_file(name) if Path(name).exists() else fetch_hugging_face(name)
    if colon and hub == "timm":
        return open_timm(name)
    return open_file(text)


def fetch_hugging_face(name: str) -> Source:
    """Return the weights and config of a model on Hugging Face's hub, from the cache where they are there."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"hf:{name} is no name of a model: want hf:USER/NAME, or a folder")
    check_hub(f"hf:{name}")
    hub: Any = require("huggingface_hub")
    errors: Any = require("huggingface_hub.errors")

    def fetch(file: str, local: bool) -> Path | None:
        try:
            return Path(hub.hf_hub_download(name, file, local_files_only=local))
        except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
            return None

    try:
        for local in (True, False):
            if not local:
                check_reachable()
            for file in FILES:
                path = fetch(file, local)
                if path is None:
                    continue
                if file.endswith(INDEX):
                    for part in dict.fromkeys(files_of(path).values()):
                        fetch(part, local)
                config = fetch("config.json", local)
                fetch(PREPROCESSOR, local)  # of which `inputs` reads the size of views
                return open_file(path)._replace(config=read_config(config) if config else {})
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"hf:{name} cannot be fetched ({reason[:200]})") from None
    raise ValueError(f"hf:{name} holds none of {', '.join(FILES)}: name a model with weights for PyTorch")


def open_timm(name: str) -> Source:
    """Return the weights of a timm model, and what timm says of it; `local-dir:FOLDER` names a folder."""
    local = name.startswith("local-dir:")
    check_hub(f"timm:{name}")
    timm: Any = require("timm")
    if not local and not timm.is_model(name):
        raise ValueError(
            f"timm has no model {name!r}{suggest(name.partition('.')[0], timm.list_models(f'{name[:3]}*'))}"
        )
    if not local and not timm.is_model_pretrained(name):
        raise ValueError(f"timm:{name} has no published weights: name one of timm.list_pretrained()")
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the hub, the network or the file make it raise
        reason = " ".join(str(error).split())
        raise ValueError(f"timm:{name} cannot be fetched ({reason[:200]})") from None
    attention = [
        m.num_heads
        for m in model.modules()
        if type(m).__name__.endswith("Attention") and vars(m).get("num_heads")
    ]
    architecture = model.pretrained_cfg.get("architecture", name)
    config = {"architecture": architecture, **({"num_heads": attention[0]} if attention else {})}
    config["pretrained_cfg"] = {n: model.pretrained_cfg[n] for n in INPUTS if n in model.pretrained_cfg}
    return Source(model.state_dict(), None, config, timm_layout(architecture, model))


def timm_layout(architecture: str, model: Any) -> str:
    """Return the layout of a timm model, "" where its tensors tell."""
    kind = type(model).__name__
    if kind != "VisionTransformer" or any(part in architecture for part in ("clip", "siglip")):
        return ""
    return "timm_dinov2" if "dinov2" in architecture else "timm_vit"
