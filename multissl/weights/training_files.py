"""What a training of DINO, iBOT, DINOv2 or DINOv3 left beside its encoder: student, heads and centers.

Their files hold `student` and `teacher`, each with `backbone` and heads (`dino_head` and `ibot_head`, in DINO and iBOT
`head`), flat or as dictionaries, and the losses' centers. An objective that has such parts goes on from them. A file of
a teacher alone gives the student the same. iBOT's one head may have prototypes of tokens of their own (`last_layer2`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multissl.contract.abilities import ContinuesTraining
from multissl.contract.encoder import Encoders
from multissl.weights.containers import Source
from multissl.weights.loading import load_state, tell
from multissl.weights.unwrapping import DEEPEST, WRAPPERS, State, plain

PART = re.compile(r"(?:model\.|state_dict\.)?(student|teacher)\.(backbone|dino_head|ibot_head|head)\.(.+)")
CENTER = re.compile(
    r"(?:model\.|state_dict\.)?(dino_loss\.center|ibot_patch_loss\.center|ibot_loss\.center2?)"
)
OURS = {
    "head": "dino_head",
    "dino_loss.center": "dino_center",
    "ibot_patch_loss.center": "ibot_center",
    "ibot_loss.center": "dino_center",
    "ibot_loss.center2": "ibot_center",
}
"""What an objective calls parts that have another name there."""
PARAMETRIZED = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
"""What newer versions of torch call the two tensors of a weight norm."""


def fill_parts(objective: nn.Module, encoders: Encoders, source: Source, adapted: bool = False) -> None:
    """Fill the parts of an objective that a training file holds, and say in a line which; what does not fit stays.

    The encoders and their slow copy hold the file's averaged network already; the student then gets its own, unless
    encoders are `adapted` (LoRA): what is added to both sides belongs to one network.
    """
    parts = parts_of(source.contents)
    if not parts or not isinstance(objective, ContinuesTraining):
        return
    filled, left = list[str](), list[str]()
    if not adapted and len(encoders) == 1 and {"student.backbone", "teacher.backbone"} <= parts.keys():
        (stream,) = encoders
        state = {f"student.backbone.{name}": tensor for name, tensor in parts["student.backbone"].items()}
        load_state(
            encoders[stream], state, None, stream,
            layout=source.layout, config=source.config, path=source.path, quiet=True,
        )  # fmt: skip
        filled.append("student.backbone")
    for name, part in objective.parts().items():
        side, _, rest = name.partition(".")
        other = f"{'teacher' if side == 'student' else 'student'}.{rest}"
        given = parts.get(name, parts.get(other))
        if given is None:
            continue
        problem = fill_part(part, given)
        (left if problem else filled).append(f"{name} ({problem})" if problem else name)
    if filled:
        tell("beside the encoder the objective goes on from the file's %s", ", ".join(filled))
    if left:
        tell("of the training that the file holds these do not fit and begin anew: %s", ", ".join(left))


def fill_part(part: nn.Module | Tensor, given: State) -> str:
    """Fill a module, or a center [K], from tensors by its names; return why they do not fit, "" where they do."""
    if isinstance(part, Tensor):
        (center,) = given.values()
        if center.numel() != part.numel():
            return f"it has {center.numel():,} prototypes, the objective {part.numel():,}"
        with torch.no_grad():
            part.copy_(center.flatten())
        return ""
    own = part.state_dict()
    if lacking := sorted(own.keys() ^ given.keys()):
        return f"other layers: {lacking[0]}"
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            return f"{name} is {tuple(given[name].shape)}, the objective's {tuple(tensor.shape)}"
    part.load_state_dict(given)
    return ""


def parts_of(contents: Mapping[str, Any]) -> dict[str, State]:
    """Return the parts of a training file by the names that an objective has for them; {} of another file."""
    parts: dict[str, State] = {}
    for name, tensor in flat(contents):
        bare = WRAPPERS.sub("", name)
        if found := PART.fullmatch(bare):
            side, part, rest = found.groups()
            for theirs, ours in PARAMETRIZED.items():
                rest = rest.replace(theirs, ours)
            parts.setdefault(f"{side}.{OURS.get(part, part)}", {})[rest] = tensor
        elif found := CENTER.fullmatch(bare):
            parts[OURS[found[1]]] = {"center": tensor}
    for side in ("student", "teacher"):
        part_tokens(parts, side)
    return parts


def part_tokens(parts: dict[str, State], side: str) -> None:
    """Make two heads of iBOT's one, which has prototypes of tokens behind the layers of views where none are shared."""
    head = parts.get(f"{side}.dino_head", {})
    tokens = {n.replace("last_layer2", "last_layer"): n for n in head if n.startswith("last_layer2.")}
    second = {name: head.pop(theirs) for name, theirs in tokens.items()}
    if any(name not in head or not torch.equal(tensor, head[name]) for name, tensor in second.items()):
        parts[f"{side}.ibot_head"] = head | second


def flat(tree: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of dictionaries, one inside the other, by their keys joined with dots."""
    for name, tensor in plain(tree).items():
        yield f"{before}{name}", tensor
    for name, inner in tree.items():
        if isinstance(inner, Mapping) and depth < DEEPEST:
            yield from flat(inner, f"{before}{name}.", depth + 1)
