"""An exported folder to Hugging Face's hub, by huggingface_hub; without network or token one line, soon."""

from __future__ import annotations

import re
from pathlib import Path

from multissl.registry import require
from multissl.weights.reach import check_reachable

HUB = "hf:"


def check_push(target: str) -> None:
    """Raise a ValueError where a target is no name, the hub is out of reach, or there is no token; sends nothing."""
    if not re.fullmatch(r"hf:[\w.-]+/[\w.-]+", target):
        raise ValueError(f"--push {target}: want hf:USER/NAME")
    hub = require("huggingface_hub")
    try:
        check_reachable()
    except ValueError as error:
        reason = str(error).removeprefix("it is not in the cache, and ").partition(": give a file")[0]
        raise ValueError(f"--push {target}: {reason}; leave --push out, and upload --out later") from None
    if not hub.get_token():
        raise ValueError(f"--push {target}: there is no token; log in with `hf auth login`, or set HF_TOKEN")


def push(target: str, folder: Path) -> str:
    """Upload a folder, and return where it lies then."""
    hub, name = require("huggingface_hub"), target.removeprefix(HUB)
    try:
        hub.create_repo(name, exist_ok=True, repo_type="model")
        hub.upload_folder(repo_id=name, folder_path=str(folder), repo_type="model")
    except Exception as error:  # of the network, of the hub, of rights
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"--push {target}: {type(error).__name__}: {reason}; the files are in {folder}: upload them again with "
            f"hf upload {name} {folder}"
        ) from None
    return f"https://huggingface.co/{name}"
