"""Masks of a film's first frame carried to all others by the likeness of patches, as DAVIS scores them: J and F.

DINO's `eval_video_segmentation.py` (Caron et al. 2021, arXiv 2104.14294, section 4.2.2) carries them (`propagation`);
the scores are those of DAVIS (Perazzi et al. 2016; Pont-Tuset et al. 2017, arXiv 1704.00675): J is intersection over
union of an object, F the mean of precision and recall of its boundary, within 0.8 % of the picture's diagonal. Each is
a mean over the frames of a film without the first and the last, then over objects. Nothing is trained or chosen.
Films are folders of frames with a mask each, read at the size of the view; DAVIS has 480 pixels on the short side.
Shapes: T frames, h x w tokens, C objects (the background is one), H, W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.abilities import IGNORED, HasPixelLabels
from multissl.contract.data import Unreadable
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.plans import ViewPlan
from multissl.contract.verdict import Verdict
from multissl.evaluators.dense.propagation import propagate, sharpen
from multissl.evaluators.dense.reading import BATCH, grid_of, pixel_modality, raw_patches, space_of
from multissl.evaluators.verdicts import GATES, UNTRAINED, first_and_last, judged
from multissl.inference import Featurize, Tokens, featurized, stream_of
from multissl.statistics import LEVEL

BOUND = 0.008
"""How far apart boundaries may lie, as a share of the diagonal."""


class Object(NamedTuple):
    """How well one object of a film was followed, from 0 to 100."""

    j: float
    f: float


class VideoPropagation(Evaluator):
    """J and F of masks that are carried through films, means over objects, in percent."""

    titles: ClassVar[dict[str, str]] = {
        "j_and_f": "video propagation, J&F, %", "j": "video propagation, J, %", "f": "video propagation, F, %",
    }  # fmt: skip

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the propagation of masks."""

        size: int | tuple[int, int] = 0
        """Side of the views in pixels, or their height and width; 0: the modality's own size."""
        frames: int = 7
        """Last frames that masks are taken from, beside the first one."""
        radius: int = 12
        """Patches that are looked around in each direction; 0: everywhere."""
        neighbors: int = 5
        """Most similar patches whose masks count."""
        temperature: float = 0.1
        """Temperature of their likeness."""
        films: int = 0
        """Films of the split, the first ones; 0: all."""
        split: str = "val"
        """Which films are scored."""
        margin: float = 1.0
        """Points of J&F above the untrained encoder that would matter."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("films")
            space_of(self.size)
            if self.frames < 0 or self.radius < 0 or self.neighbors < 1 or not self.temperature > 0:
                raise ValueError(
                    f"frames={self.frames}, radius={self.radius}, neighbors={self.neighbors}, "
                    f"temperature={self.temperature}: want 0 or more, 0 or more, 1 or more, more than 0"
                )

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`j_and_f`, `j` and `f` in percent."""
        if (films := pixel_modality(self, modality, "classes", self.cfg.split)) is None:
            return {}
        return self._measured(Tokens(encoders), films, encoders.device)

    def baselines(self, modality: Modality) -> dict[str, float]:
        """J&F by the pixels of patches, and of the first mask where it lies."""
        if (films := pixel_modality(self, modality, "classes", self.cfg.split)) is None:
            return {}
        raw, device = raw_patches(modality, self.cfg.stream), torch.device("cpu")
        if raw is None or not (made := self._measured(raw, films, device)):
            return {}
        return {"raw": made["j_and_f"], "first_mask": self._measured(None, films, device)["j_and_f"]}

    def baseline_names(self, modality: Modality) -> list[str]:
        """Those of what has to be beaten."""
        return ["raw", "first_mask"]

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the last J&F is above those of the untrained encoder, the raw input and the first mask."""
        if (measured := first_and_last("j_and_f", history)) is None:
            return None
        first, last = measured
        names = {"raw": GATES["raw"], "first_mask": "the first mask's"}
        gates = {UNTRAINED: first["j_and_f"]} | {said: first[n] for n, said in names.items() if n in first}
        return judged(
            "J&F of carried masks",
            last["j_and_f"],
            gates,
            {},
            margin=self.cfg.margin,
            level=level,
            best=100.0,
        )

    def _measured(
        self, featurize: Featurize | None, modality: HasPixelLabels, device: torch.device
    ) -> dict[str, float]:
        """Return J and F over all objects; without a function of features, of first masks that stay where they are."""
        cfg = self.cfg
        objects: list[Object] = []
        films: list[int] = []
        short = 0
        labeled = set(modality.with_pixel_labels(cfg.split, "classes"))
        every = modality.films(cfg.split)
        for number, frames in enumerate(every[: cfg.films or len(every)]):
            masks = self._masks(modality, frames, labeled)
            known = [place for place in frames if place in masks]
            if len(known) < 3 or frames[0] not in masks:
                short += 1
                continue
            first = masks[frames[0]]
            if featurize is None:
                guesses = dict.fromkeys(frames[1:], first)
            else:
                guesses = self._carried(featurize, modality, frames, first, device)
            found = followed(
                first, [(guesses[place], masks[place]) for place in known[1:-1] if place in guesses]
            )
            objects += found
            films += [number] * len(found)
        if short:
            self.warn(
                f"{short} films of the {cfg.split} split have fewer than three frames with a mask, or none first"
            )
        if not objects:
            self.warn_nothing_to_measure("no film has an object in the mask of its first frame")
            return {}
        groups = np.array(films)
        scores = np.array(objects)
        return {
            "j_and_f": estimate(scores.mean(1), groups),
            "j": estimate(scores[:, 0], groups),
            "f": estimate(scores[:, 1], groups),
        }

    def _masks(self, modality: HasPixelLabels, frames: list[int], labeled: set[int]) -> dict[int, Tensor]:
        """Return the masks of a film's frames that have one and can be read, by position."""
        data, masks = modality.dataset(self.cfg.split), dict[int, Tensor]()
        for place in frames:
            if place in labeled:
                try:
                    masks[place] = modality.pixel_labels(data[place], "classes", space_of(self.cfg.size))
                except Unreadable as bad:
                    self.warn(f"a mask cannot be read: {bad.reason}")
        return masks

    def _carried(
        self,
        featurize: Featurize,
        modality: HasPixelLabels,
        frames: list[int],
        first: Tensor,
        device: torch.device,
    ) -> dict[int, Tensor]:
        """Return the mask [H, W] of every later frame that can be read, by position."""
        cfg = self.cfg
        made = featurized(
            featurize, modality, cfg.split, frames, BATCH, device, stream_of(modality, cfg.stream),
            ViewPlan(num_clean=1, size=space_of(cfg.size)),
        )  # fmt: skip
        if not made.places or made.places[0] != frames[0]:
            self.warn("a film whose first frame cannot be read is left out")
            return {}
        grid = grid_of(made.features.shape[1], *first.shape)
        numbers = objects_of(first)
        layers = torch.stack([(first == n).float() for n in numbers])  # [C, H, W]
        small = F.interpolate(layers[None], grid, mode="nearest")[0]
        soft = propagate(
            made.features.to(device), small.to(device), frames=cfg.frames, radius=cfg.radius,
            neighbors=cfg.neighbors, temperature=cfg.temperature,
        )  # fmt: skip
        numbered = torch.tensor(numbers, dtype=torch.uint8)
        patch = first.shape[0] // grid[0]
        return {
            place: numbered[sharpen(mask, patch).cpu()]
            for place, mask in zip(made.places[1:], soft, strict=True)
        }


def objects_of(mask: Tensor) -> list[int]:
    """Return the numbers in a mask, the background 0 first, whether it is there or not."""
    return [0, *(n for n in mask.unique().tolist() if n not in (0, IGNORED))]


def followed(first: Tensor, frames: list[tuple[Tensor, Tensor]]) -> list[Object]:
    """Return J and F of every object of a first mask, means over frames of a guess and its truth [H, W]."""
    return [
        Object(
            100 * float(np.mean([overlap(guess == n, truth == n) for guess, truth in frames])),
            100 * float(np.mean([boundary_score(guess == n, truth == n) for guess, truth in frames])),
        )
        for n in objects_of(first)[1:]
        if frames
    ]


def overlap(guess: Tensor, truth: Tensor) -> float:
    """Return intersection over union of two masks, bool [H, W]; 1 where both are empty."""
    union = int((guess | truth).sum())
    return int((guess & truth).sum()) / union if union else 1.0


def boundary_score(guess: Tensor, truth: Tensor) -> float:
    """Return the harmonic mean of precision and recall of a mask's boundary, bool [H, W]."""
    ours, theirs = boundary(guess), boundary(truth)
    if not bool(ours.any()) or not bool(theirs.any()):
        return float(bool(ours.any()) == bool(theirs.any()))
    reach = math.ceil(BOUND * math.hypot(*guess.shape))
    precision = float((ours & widened(theirs, reach)).sum() / ours.sum())
    recall = float((theirs & widened(ours, reach)).sum() / theirs.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Tensor) -> Tensor:
    """Return the pixels of a mask, bool [H, W], that differ from the one on the right, below, or both."""
    east, south, corner = mask.clone(), mask.clone(), mask.clone()
    east[:, :-1], south[:-1], corner[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ corner)
    edge[-1], edge[:, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1]
    edge[-1, -1] = False
    return edge


def widened(edge: Tensor, reach: int) -> Tensor:
    """Return the pixels within so many of an edge, bool [H, W]: the edge under a disk."""
    steps = torch.arange(-reach, reach + 1)
    disk = (steps[:, None].square() + steps.square() <= reach * reach).float()
    return F.conv2d(edge[None, None].float(), disk[None, None], padding=reach)[0, 0] > 0
