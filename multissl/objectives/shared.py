"""What lets several objectives share a batch and encoders: one plan out of many, each one's part, equal encodes once.

Shapes: V views of B samples, R = V*B rows, view-major, D width, N tokens.  State and collectives: none.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import EncodeFunction
from multissl.contract.learning import Features
from multissl.contract.plans import Masking, Plans, ViewPlan

MASKS = ("mask_ratio", "mask_share", "context_ratio", "corrupt")
"""What all terms that mask a stream must agree on: a view has one set of masks."""


def merge(asked: Mapping[str, Plans]) -> dict[str, ViewPlan]:
    """One plan per stream out of the terms' plans, by name; refuses masks that cannot be the same."""
    merged: dict[str, ViewPlan] = {}
    for stream in dict.fromkeys(s for plans in asked.values() for s in plans):
        plans = {name: p[stream] for name, p in asked.items() if stream in p}
        masked = {name: p for name, p in plans.items() if p.mask_ratio is not None}
        for name, p in masked.items():
            first = next(iter(masked))
            check_masks(stream, (first, masked[first]), (name, p))
        lead = next(iter(masked.values()), ViewPlan())
        for name, p in plans.items():
            if lead.corrupt and p.num_global and not p.corrupt:
                raise ValueError(
                    f"{next(iter(masked))} corrupts the global views of {stream}, which {name} reads whole: "
                    "train them apart, or let both corrupt"
                )
        sizes = {name: p.size for name, p in plans.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {size or 'its own'}" for name, size in sizes.items())
            raise ValueError(
                f"terms ask for views of {stream} of different sizes ({listed}): give all the same"
            )
        larger = {p.larger for p in plans.values() if p.larger}
        if len(larger) > 1:
            raise ValueError(
                f"terms ask for larger views of {stream} of the sizes {sorted(larger)}: give all the same"
            )
        most = {
            n: max(getattr(p, n) for p in plans.values())
            for n in ("num_clean", "num_global", "num_local", "inner", "num_masks")
        }
        merged[stream] = replace(
            lead,
            size=next(iter(sizes.values())),
            larger=next(iter(larger), ()),
            **most,
            **{n: any(getattr(p, n) for p in plans.values()) for n in ("target", "coords")},
        )
    return merged


def check_masks(stream: str, one: tuple[str, ViewPlan], other: tuple[str, ViewPlan]) -> None:
    """Refuse two settings of the masks of one stream, with the names of both terms."""
    names = [*MASKS, "num_masks", "num_contexts", "target_aspect"] if one[1].context_ratio else MASKS
    for option in names:
        a, b = getattr(one[1], option), getattr(other[1], option)
        if a != b:
            raise ValueError(
                f"{one[0]} and {other[0]} ask for different masks of {stream} ({option} {a} and {b}), and a view has "
                "one set of masks: give both terms the same, or leave one of them out"
            )


def handed(batch: Batch, plans: Plans) -> Batch:
    """The part of a batch that a term's plans ask for: its streams, its number of views, its masks."""
    found = []
    for views in batch:
        plan = plans.get(views.stream, ViewPlan())
        count = plan.count(views.role)
        if count:
            masks = views.masks[: plan.all_masks] if plan.mask_ratio else ()
            found.append(replace(views, masks=masks).part(0, min(count, views.num_views)))
    return Batch(found)


class Remembered(EncodeFunction):
    """Encoders that run equal encodes once; lives for one forward pass, or it would hold that pass's features.

    Equal are the same rows of the same tensors, treated in the same way, with or without gradient alike; rows of a
    longer item are found in it. What a call lacks goes through the encoders in one call.
    """

    def __init__(self, encoders: EncodeFunction) -> None:
        self.encoders = encoders
        self.known: dict[Hashable, list[tuple[int, Views, Features]]] = {}

    def encode(self, views: Sequence[Views], masking: Masking = "none", inner: int = 0) -> list[Features]:
        """Features of every item, remembered or new."""
        places = [place(v, masking) for v in views]
        found = [self.find(*at, len(v.x), inner) for at, v in zip(places, views, strict=True)]
        lacking = [i for i, features in enumerate(found) if features is None]
        if lacking:
            fresh = self.encoders.encode([views[i] for i in lacking], masking, inner)
            for i, features in zip(lacking, fresh, strict=True):
                found[i] = features
                key, start = places[i]
                # The views are kept, so that no other tensor can come to lie where they are.
                self.known.setdefault(key, []).append((start, views[i], features))
        return cast(list[Features], found)

    def find(self, key: Hashable, start: int, rows: int, inner: int) -> Features | None:
        """The features of `rows` rows from `start` on, if an encode made them."""
        for first, views, f in self.known.get(key, []):
            low, high = start - first, start - first + rows
            if low >= 0 and high <= len(views.x) and len(f.inner) >= inner:
                taps = f.inner[len(f.inner) - inner :]
                return Features(
                    pooled=f.pooled[low:high],
                    tokens=f.tokens[low:high],
                    inner=tuple(t[low:high] for t in taps),
                )
        return None


def place(views: Views, masking: Masking) -> tuple[Hashable, int]:
    """What an encoder reads of some views: the memory their rows are part of, and the first row in it."""
    read: list[Tensor | None] = [views.x, views.valid, views.condition, views.coords]
    if masking in ("replace", "drop") and views.mask is not None:
        read.append(views.mask.hidden)
    start = int(views.x.storage_offset()) // max(1, views.x.stride(0))
    memory = [None if t is None else _memory(t, start) for t in read]
    return (views.stream, masking, torch.is_grad_enabled(), *memory), start


def _memory(t: Tensor, start: int) -> tuple[Hashable, ...]:
    origin = int(t.storage_offset()) - start * t.stride(0)
    return (t.untyped_storage().data_ptr(), t.dtype, t.shape[1:], t.stride(), origin)
