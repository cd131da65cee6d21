"""From what a training wrote to the tensors of one network: nested dictionaries and prefixes of names taken off.

Training files hold several networks: a student and its average, heads, decoders, predictors. The averaged one is taken
where both are there, and what was taken is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

State = dict[str, Tensor]
"""Tensors by name, as a module's `state_dict` gives them."""
INSIDE = (
    "teacher",
    "target_encoder",
    "model_ema",
    "ema",
    "student",
    "encoder",
    "model",
    "module",
    "state_dict",
    "model_state",
)
"""What dictionaries of training files call networks, the averaged ones first."""
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module)\.")
"""What wrappers around a module put into its names."""
NETWORKS = (
    "teacher.backbone.",
    "teacher.",
    "momentum_backbone.",
    "base_encoder.",
    "encoder_q.",
    "student.backbone.",
    "student.",
    "backbone.",
    "visual.trunk.",
    "visual.",
    "v.",
)
"""What flat names begin with where a network is one of several, the first that is there is taken."""
CLASSES = (
    "vit.",
    "vision_model.",
    "videomae.",
    "audio_spectrogram_transformer.",
    "wav2vec2.",
    "hubert.",
    "bert.",
    "roberta.",
    "dinov2.",
    "dinov2_with_registers.",
    "dinov3_vit.",
    "data2vec_vision.",
    "ijepa.",
    "w2v_encoder.w2v_model.",
)
"""What transformers puts before the names of a network inside a model with heads."""


class Network(NamedTuple):
    """The tensors of one network, and where in a file they were."""

    state: State
    source: str
    """The keys and prefixes that led to it, "" where the file holds nothing else."""
    others: tuple[str, ...]
    """Names of tensors that were left: of heads and of other networks."""


def unwrap(tree: Mapping[str, Any]) -> Network:
    """Return the network that a file's contents are of; a ValueError where they hold no tensors."""
    path: list[str] = []
    while not any(isinstance(v, Tensor) for v in tree.values()):
        inner = next((key for key in INSIDE if isinstance(tree.get(key), Mapping)), None)
        if inner is None:
            raise ValueError(
                f"no tensors and none of {', '.join(INSIDE)} among {', '.join(map(str, tree))[:200]}"
            )
        path.append(inner)
        tree = tree[inner]
    state = {str(name): value for name, value in tree.items() if isinstance(value, Tensor)}
    return strip(state, path)


def strip(state: Mapping[str, Tensor], path: list[str] | None = None) -> Network:
    """Return the network among flat names: wrappers off, prefixes off, parts of other networks set aside."""
    path, others = list(path or []), []
    names = {name: WRAPPERS.sub("", name) for name in state}
    current = {new: state[old] for old, new in names.items()}
    while True:
        prefix = next((p for p in (*NETWORKS, *CLASSES) if any(name.startswith(p) for name in current)), None)
        if prefix is None and current and all(name.startswith("encoder.") for name in current):
            prefix = "encoder."
        if prefix is None:
            return Network(current, " / ".join(path), tuple(others))
        others += [name for name in current if not name.startswith(prefix)]
        current = {n.removeprefix(prefix): t for n, t in current.items() if n.startswith(prefix)}
        path.append(prefix.rstrip("."))
