"""From what a training wrote to the tensors of one network: nested dictionaries and prefixes of names taken off.

Training files hold several networks: a student and its average, heads, decoders, predictors. The averaged one is taken
where both are there, and what was taken is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
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


DEEPEST = 10
"""Dictionaries inside one another that are looked into."""
UNREADABLE: tuple[tuple[Callable[[Tensor], bool], str], ...] = (
    (lambda t: t.is_meta, "is on the meta device and has no values: save the weights that were trained"),
    (lambda t: t.is_quantized, "is quantized: save t.dequantize()"),
    (lambda t: t.is_nested, "is a nested tensor, which no encoder here holds"),
    (lambda t: t.layout != torch.strided, "is sparse: save t.to_dense()"),
)
"""Kinds of tensors that cannot be copied, with what to do."""


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
            among = ", ".join(map(str, tree))[:200] or "nothing at all"
            raise ValueError(f"no tensors and none of {', '.join(INSIDE)} among {among}")
        if len(path) == DEEPEST:  # a dictionary of a pickle may hold itself
            raise ValueError(
                f"no tensors within {DEEPEST} dictionaries, one inside the other: {' / '.join(path)}"
            )
        path.append(inner)
        tree = tree[inner]
    return strip(plain(tree), path)


def plain(tree: Mapping[Any, Any]) -> State:
    """Return the tensors among values, by names that are texts; half precision becomes fp32, which resizing needs.

    Raises a ValueError where one holds no values that an encoder could copy.
    """
    state: State = {}
    for key, value in tree.items():
        if not isinstance(value, Tensor):
            continue
        problem = next((text for is_so, text in UNREADABLE if is_so(value)), "")
        if problem:
            raise ValueError(f"{key} {problem}")
        half = value.is_floating_point() and value.element_size() < 4
        state[str(key)] = value.detach().float() if half else value.detach()
    return state


def tensor_of(state: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor by its name; raise a ValueError where it is not there."""
    if name not in state:
        raise ValueError(f"these weights lack {name}: fetch the file again, or name another one")
    return state[name]


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
