"""Heads of teachers: those that stand behind an encoder in a run's checkpoint or a training file, and what they are."""

from __future__ import annotations

import re

from multissl.layers.frozen import PrototypeTeacher
from multissl.layers.heads import PrototypeHead
from multissl.weights.containers import Source
from multissl.weights.training_files import fill_part, parts_of
from multissl.weights.unwrapping import State, unwrap

HEADS = ("dino_head", "ibot_head")
PATCHES = "patch_embed.proj.weight"
INSTEAD = (
    "name a run of dino that keeps a checkpoint, or a training file of DINO, iBOT or DINOv2 (such as "
    "teacher_checkpoint.pth); --objective distill learns features and wants no heads"
)


def heads_of(source: Source) -> dict[str, State]:
    """Return the tensors of heads by what objectives call them; of the averaged network where a file holds two."""
    if source.training:
        return {name: dict(head) for name, head in source.training.heads.items()}
    parts = parts_of(source.contents)
    side = "teacher" if any(name.startswith("teacher.") for name in parts) else "student"
    return {name: parts[f"{side}.{name}"] for name in HEADS if f"{side}.{name}" in parts}


def known_heads(source: Source) -> dict[str, PrototypeHead.Config]:
    """Return what the heads of a run or file are, by name. Raises a ValueError where there are none."""
    found = {name: head_config(head) for name, head in heads_of(source).items()}
    if found:
        return found
    if source.training:
        raise ValueError(f"it was trained by {source.training.objective}, which has no prototypes: {INSTEAD}")
    raise ValueError(f"it holds an encoder without its heads: {INSTEAD}")


def head_config(head: State) -> PrototypeHead.Config:
    """Return the options of a head that has these tensors. Raises a ValueError where it is none of DINO's family."""
    layers = sorted(
        (int(m[1] or 0), name) for name in head if (m := re.fullmatch(r"mlp\.(?:(\d+)\.)?weight", name))
    )
    linears = [name for _, name in layers if head[name].dim() == 2]
    last = head.get("last_layer.weight_v", head.get("last_layer.weight"))
    if last is None or last.dim() != 2 or not linears:
        raise ValueError(
            f"its head has {', '.join([*head][:3])}, where one of DINO has mlp and last_layer: {INSTEAD}"
        )
    first = head[linears[0]]
    return PrototypeHead.Config(
        prototypes=len(last),
        bottleneck=last.shape[1],
        hidden=len(first),
        layers=len(linears),
        gain="none" if "last_layer.weight" in head else "trainable",
        norm="batch" if any(name.endswith("running_mean") for name in head) else "none",
        bias=linears[0].replace("weight", "bias") in head,
    )


def fill_heads(teacher: PrototypeTeacher, source: Source) -> None:
    """Fill a teacher's heads. Raises a ValueError where one is missing or is another."""
    given = heads_of(source)
    for name, head in teacher.heads.items():
        problem = fill_part(head, given[name]) if name in given else "it is not there"
        if problem:
            option = f"{teacher.option}.{'head' if name == 'dino_head' else name}"
            raise ValueError(f"its {name} is not what {option} says ({problem}): leave that to the weights")


def check_patches(teacher: PrototypeTeacher, source: Source) -> None:
    """Refuse a teacher that was trained on patches of another size than its student's, token by token compared."""
    own, theirs = teacher.spec.patch, patch_of(source, teacher.stream)
    if own and theirs and own != theirs:
        mine, other = (" x ".join(map(str, patch)) for patch in (own, theirs))
        raise ValueError(
            f"it reads patches of {other} and the student of {mine}, and tokens are compared place by place: give the "
            f"modality patches of {other} (images: --modality.patch {theirs[-1]}), or take --objective distill, which "
            "resamples grids"
        )


def patch_of(source: Source, stream: str) -> tuple[int, ...]:
    """Return the size of the patches that a network was trained on, () where nothing tells."""
    if source.training:
        return source.training.streams[stream].patch if stream in source.training.streams else ()
    kernels = [t for name, t in unwrap(source.contents).state.items() if name.endswith(PATCHES)]
    return tuple(kernels[0].shape[2:]) if kernels else ()
