"""What some modalities, objectives and modules can do beyond what all can: small classes to derive from instead.

Whoever needs an ability asks with `isinstance`, and says what is missing where it is not there.
Shapes: S samples of a split, W words, R rows, L tokens of a row, P parts, H, W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from multissl.contract.data import Sample, Views
from multissl.contract.encoder import EncodeFunction
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective


class HasStates(Modality):
    """A modality that knows the state of the world behind its samples (where the ball is)."""

    @abstractmethod
    def states(self, split: str) -> tuple[Tensor, tuple[str, ...]]:
        """Return values [S, n] of a split, NaN where unknown, and their n names; n = 0 where the data has none."""

    def aims(self) -> tuple[str, ...]:
        """Return the names of the values that are worth finding; empty: all."""
        return ()


class HasTargets(Modality):
    """A modality whose label may be a quantity."""

    @abstractmethod
    def targets(self, split: str) -> Tensor | None:
        """Return the numbers to predict, float32 [S of the split], NaN where unknown; None where labels are classes."""


class HasRecordings(Modality):
    """A modality whose samples are recordings, which differ by more than what is heard."""

    @abstractmethod
    def parts(self, sample: Sample) -> tuple[Sample, Sample]:
        """Return two parts of a recording that do not overlap. Raises `Unreadable` where it has none."""


@dataclass(frozen=True, slots=True)
class HiddenWords:
    """Words of held-out text, each hidden whole in a row of its own."""

    views: list[Views]
    """Rows under a mask each."""
    nats: dict[str, np.ndarray]
    """By count model, what it pays for each word: float64 [W]."""


@dataclass(frozen=True, slots=True)
class Running:
    """Documents as rows that overlap by half, so that a token has half a row before it, or all of its document."""

    views: list[Views]
    first_seen: list[Tensor]
    """bool [R, L-1], True where a token, from the second of its row on, is in no earlier row."""
    documents: int
    """Their first tokens are predicted in no row."""
    symbols: int
    """Ids that a first token may be."""
    characters: int
    baseline: float
    """What a model that counts the characters before each, in the training documents, costs in bits per character."""


class HasText(Modality):
    """A modality of running text, which language models are measured on."""

    @abstractmethod
    def hidden_words(self, split: str, count: int) -> HiddenWords:
        """Return `count` words of a split (0: all), drawn with a fixed seed."""

    @abstractmethod
    def running(self, split: str, count: int) -> Running:
        """Return `count` documents of a split (0: all), drawn with a fixed seed."""


PixelLabel = Literal["classes", "depth"]
IGNORED = 255
"""The label of pixels that are of no class and count nowhere."""


class HasPixelLabels(Modality):
    """A modality whose samples may have a label for every pixel of their clean views: a class, or a depth."""

    @abstractmethod
    def with_pixel_labels(self, split: str, kind: PixelLabel) -> list[int]:
        """Return the positions of the samples of a split that have such labels; says how many have none."""

    @abstractmethod
    def pixel_labels(self, sample: Sample, kind: PixelLabel, size: tuple[int, ...] = ()) -> Tensor:
        """Return the labels of what a clean view shows [H, W], of a plan's `size` where it asks for one.

        Classes are uint8, `IGNORED` where there is none; depths are float32, 0 where unknown. Raises `Unreadable`.
        """

    def films(self, split: str) -> list[list[int]]:
        """Return the positions of samples that are the frames of one film, in order; by default none are."""
        return []


class PredictsParts(Objective):
    """An objective that predicts parts of a view one by one (tokens), each at a cost."""

    @abstractmethod
    def part_errors(self, encoders: EncodeFunction, views: Views) -> Tensor:
        """Return what the prediction of each part costs, in nats: [P] of hidden tokens, or [R, L-1] of later ones."""


class ContinuesTraining(Objective):
    """An objective that goes on from what a training of its authors left beside the encoder."""

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module | Tensor]:
        """Return heads as `student.NAME` and `teacher.NAME` and centers [K] as `NAME`, as training files call them."""


class DeclaresParameters:
    """A module that tells the optimizer what some parameters are, its own or those of modules inside it.

    Biases, norms and vectors are known by their kind, whatever they are called, and need no word.
    """

    def token_parameters(self) -> Iterable[Tensor]:
        """Return class, mask and register tokens and positions, decayed only where `optim.decay_tokens` says so."""
        return ()

    def patch_parameters(self) -> Iterable[Tensor]:
        """Return the projection of patches, whose learning rate `optim.patch_lr` scales."""
        return ()

    def undecayed_parameters(self) -> Iterable[Tensor]:
        """Return what has no weight decay, as vectors have none, though its kind does not show it."""
        return ()


class HasAttention(ABC):
    """An encoder whose class token attends to the tokens."""

    @abstractmethod
    def attention(self, views: Views) -> Tensor:
        """Return how the class token attends to the tokens in the last block [R, H, N], by head H.

        What is left of 1 lies on class and register tokens. Raises a ValueError without a class token.
        """


class DropsRows:
    """A module that leaves some rows out of its residual branches while it trains."""

    drop_path: float
    """The share that is left out."""


class Shardable(nn.Module, ABC):
    """A module that tells how it is cut into blocks: to be checkpointed, compiled and sharded one by one."""

    @abstractmethod
    def shard_units(self) -> list[nn.Module]:
        """Return the blocks, in the order in which they run."""

    @abstractmethod
    def entry_points(self) -> list[str]:
        """Return the names of the methods besides `forward` that run blocks."""
