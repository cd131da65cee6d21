"""A Gram anchor: a frozen earlier teacher whose similarities between patches a student keeps (DINOv3).

It is a copy of the teacher as it was when the run, or the stage that brings the anchor in, began, and becomes the
teacher of the day every so many steps, a few times. It may see the student's crops at a larger size and without changes
of color; its patch features are then resampled to the student's grid. DINOv3, arXiv 2508.10104, section 4.
Shapes: R rows (views times samples), N tokens of a global view, D width.
State: the frozen copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from multissl.config import Component
from multissl.config import Config as BaseConfig
from multissl.contract.data import Views
from multissl.contract.encoder import Encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec, tokens_along
from multissl.layers.teacher import Teacher
from multissl.losses.gram import Negatives, gram_loss, shrink


class GramAnchor(Component, nn.Module):
    """The frozen copy of a teacher's encoders, and the loss; built with (encoders of the teacher, stream, spec)."""

    group: ClassVar[str] = "layers"

    @dataclass(kw_only=True, slots=True)
    class Config(BaseConfig):
        """Options of a Gram anchor."""

        weight: float = 0.0
        """Weight of the loss (DINOv3: 2); 0 leaves it out, with the copy."""
        size: tuple[int, ...] = ()
        """Height and width in pixels of the crops that the copy sees, such as 512 512, the student's own in more detail
        and in their plain colors; empty: the student's views as they are."""
        every: int = 0
        """Steps of the run or stage after which the copy becomes the teacher of the day (DINOv3: 10000); 0: never."""
        refreshes: int = 3
        """How often it does so at most."""
        negatives: Negatives = "kept"
        """What becomes of negative similarities: kept; clipped to 0 on both sides; or on the teacher's side alone."""

        def __post_init__(self) -> None:
            for name in ("weight", "every", "refreshes"):
                if getattr(self, name) < 0:
                    raise ValueError(f"objective.gram.{name}={getattr(self, name)}: want 0 or more")

    def __init__(self, cfg: Config, encoders: Encoders, stream: str, spec: StreamSpec) -> None:
        super().__init__()
        self.cfg, self.grid, self.larger = cfg, spec.grid, spec.grid
        self.seen = cfg.size or spec.shape[1:]
        if cfg.size:
            self.larger = _grid_of(cfg.size, spec, any_size=encoders[stream].any_size)
        self.teacher = Teacher(Teacher.Config(rule="frozen"), {"encoders": encoders})

    def check_stage(self, before: StreamSpec) -> None:
        """Refuse a copy that would see less than it learned to, on views of the stage `before`."""
        learned = before.shape[1:]
        if len(learned) == len(self.seen) and any(n < m for n, m in zip(self.seen, learned, strict=True)):
            sees, saw = (" x ".join(map(str, size)) for size in (self.seen, learned))
            raise ValueError(
                f"objective.gram.weight={self.cfg.weight:g} with an anchor that sees {sees}, where the stage before "
                f"learned on views of {saw}: its patches would be coarser than those it is to keep. Want views, or "
                f"objective.gram.size, of {saw} or more, or objective.gram.weight=0"
            )

    def forward(self, tokens: Tensor, views: Views) -> Tensor:
        """Return the loss of the student's tokens [R, N, D] of these global views."""
        shown = views.with_mask(None)
        if self.cfg.size:
            if views.larger is None:
                raise ValueError(
                    "objective.gram.size: the batch holds no larger views, ask for them in plans()"
                )
            shown = replace(shown, x=views.larger, larger=None)
        with torch.no_grad():
            (seen,) = self.teacher.encoders.encode([shown], "none")
        target = seen.tokens
        if self.larger != self.grid:
            target = shrink(target, (self.larger[0], self.larger[1]), (self.grid[0], self.grid[1]))
        return gram_loss(tokens, target, self.cfg.negatives, views.real_tokens(tokens.shape[1]))

    def begin(self, encoders: Encoders) -> None:
        """Become what a teacher's encoders are, before anything is trained or sharded."""
        self.teacher.encoders.load_state_dict(encoders.state_dict())

    def after_step(self, students: Mapping[str, nn.Module], progress: Progress) -> None:
        """Become the teacher of the day where it is time; `progress` is that of the step just made."""
        every, done = self.cfg.every, progress.step + 1
        if every and done % every == 0 and done // every <= self.cfg.refreshes:
            self.teacher.become(students, progress)

    def shard_units(self) -> list[nn.Module]:
        """Return the blocks of the copy."""
        return self.teacher.shard_units()


def _grid_of(size: tuple[int, ...], spec: StreamSpec, *, any_size: bool) -> tuple[int, ...]:
    """Return the grid of larger views. Raises a ValueError where they do not tile, or nothing could read them."""
    space, given = spec.shape[1:], f"objective.gram.size={' '.join(map(str, size))}"
    if spec.kind != "grid" or len(space) != 2 or len(size) != 2:
        raise ValueError(f"{given}: want a height and a width, of views with two axes; leave it empty")
    if spec.stride or any(n < p or n % p for n, p in zip(size, spec.patch, strict=True)):
        raise ValueError(f"{given} does not divide into patches of {spec.patch}: want multiples of them")
    if size[0] < space[0] or size[1] < space[1]:
        raise ValueError(
            f"{given} is smaller than the student's views, {space[0]} x {space[1]}: the anchor shows them in more "
            "detail. Want more, or leave it empty for views as they are"
        )
    if size[0] * space[1] != size[1] * space[0]:
        raise ValueError(
            f"{given} has not the shape of the student's views, {space[0]} x {space[1]}: scale both sides"
        )
    if not any_size:
        raise ValueError(f"{given}: the encoder reads one size alone, leave it empty or take another encoder")
    return tokens_along(size, spec.patch)
