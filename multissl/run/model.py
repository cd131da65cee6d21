"""A run's encoders with their modality: what a training left, or what a recipe starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multissl.build import build
from multissl.config import config_name, to_dict
from multissl.contract.data import Sample
from multissl.contract.encoder import Encoders, build_encoders
from multissl.contract.evaluator import FrozenEncoders
from multissl.contract.learning import Features
from multissl.contract.modality import Modality
from multissl.inference import clean_views, single_stream
from multissl.parallel.sharding import Parallel
from multissl.recipe import Recipe, read_recipe
from multissl.registry import suggest
from multissl.run.folder import RunFolder
from multissl.trust import Trust
from multissl.weights.files import read_weights
from multissl.weights.loading import tower_streams


class Model:
    """A trained run: `encode` turns samples into features."""

    def __init__(self, recipe: Recipe, modality: Modality, encoders: Encoders, device: torch.device) -> None:
        self.recipe, self.modality, self.encoders, self.device = recipe, modality, encoders, device

    def frozen(self) -> FrozenEncoders:
        """Return the encoders as evaluators want them."""
        return FrozenEncoders.of(self.encoders)

    def encode(self, samples: Sequence[Any] | Tensor, batch_size: int = 256, stream: str = "") -> Tensor:
        """Return the pooled features of samples as the modality reads them: paths, arrays, tensors, rows. [S, D]

        `stream` says what they are where the modality feeds several; empty: the first. Raises a ValueError that names
        the first sample that cannot be read.
        """
        return torch.cat([f.pooled.float().cpu() for f in self._features(samples, batch_size, stream)])

    def embed(self, samples: Sequence[Any] | Tensor, batch_size: int = 256, stream: str = "") -> Tensor:
        """Return unit vectors in the space that streams share: a product of two streams' is their cosines. [S, P]

        Raises a ValueError as `encode` does, and where the run has no such space.
        """
        parts = []
        for features in self._features(samples, batch_size, stream):
            if features.embedding is None:
                name = config_name(type(self.recipe.objective))
                raise ValueError(f"{name} shares no space between streams: use encode, or train clip")
            parts.append(torch.nn.functional.normalize(features.embedding.float(), dim=1).cpu())
        return torch.cat(parts)

    def _features(self, samples: Sequence[Any] | Tensor, batch_size: int, stream: str) -> Iterator[Features]:
        streams = self.modality.streams()
        stream = stream or next(iter(streams))
        if stream not in streams:
            raise ValueError(f"stream={stream!r} is none of this run's{suggest(stream, streams)}")
        for start in range(0, len(samples), batch_size):
            places = range(start, min(start + batch_size, len(samples)))
            some = [Sample(single_stream(self.modality, stream, samples[i]), i) for i in places]
            views = clean_views(self.modality, some, stream, self.device)
            with torch.inference_mode():
                yield self.encoders.encode([views])[0]


def load(run: Path | str, device: torch.device | str = "cpu", data: str = "", trust: bool = False) -> Model:
    """Return a finished run, ready to encode; its modality reads other `data` where some is given.

    Reads JSON and safetensors only; nothing is unpickled. Code that its recipe names, such as the class of an
    objective of one's own, runs if the user has trained with it, and else only where `trust` says so.
    """
    folder = RunFolder(run)
    folder.check_shipped()
    recipe = read_recipe(folder.recipe, Trust(everything=trust, copies=folder.code))
    if data:
        own = to_dict(recipe.modality).get("data")
        if own is None:
            raise ValueError(f"--data {data}: {config_name(type(recipe.modality))} reads no data")
        recipe.modality = recipe.modality.replace(data=(data,) if isinstance(own, list) else data)
    modality = recipe.modality.build()
    _restore(modality, folder)
    encoders = build_encoders(recipe.encoders, modality.streams())
    state = read_weights(folder.encoder)
    if tower_streams(state, encoders):  # the heads of towers are the objective's; else it need not be built
        objective = recipe.objective.build(encoders, modality.streams())
        encoders = objective.exported(encoders)
    try:
        encoders.load_state_dict(state)
    except RuntimeError as error:  # of several lines, one for each tensor
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder.encoder} does not fit the recipe beside it ({reason[:500]})") from None
    encoders.to(device).eval().requires_grad_(False)
    return Model(recipe, modality, encoders, torch.device(device))


def _restore(modality: Modality, folder: RunFolder) -> None:
    """Give the modality what it was fitted to."""
    try:
        modality.restore(folder.read_modality())
    except (
        Exception
    ) as error:  # a file that is damaged, or not of this modality, makes it raise almost anything
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise ValueError(
            f"{folder.modality} does not fit the modality of the recipe beside it ({reason})"
        ) from None


def untrained(recipe: Recipe, device: torch.device | str = "cpu") -> Model:
    """Return the encoders as the recipe starts with them: pretrained, given with --init, or random."""
    # As `load` has them: whole, in fp32 and uncompiled, since every size of batch would be compiled anew.
    parts = build(recipe.replace(parallel=Parallel(precision="fp32")), torch.device(device))
    encoders = parts.learner.encoders.eval().requires_grad_(False)
    return Model(recipe, parts.modality, encoders, torch.device(device))
