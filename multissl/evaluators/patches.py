"""Are single tokens still worth something? k-NN of patches, and how alike the patches of one sample are.

Pooled features may go on improving while those of patches decay: in long trainings the patches of an image grow alike
and stop telling its parts apart (Simeoni et al., DINOv3, arXiv 2508.10104, section 4). A query patch is classified by
its nearest training patches, each of which has the label of its sample; a patch of background counts as wrong as often
as it is, so the figure is read over time and not beside that of whole samples.
Shapes: S samples, n tokens drawn of each, N tokens of a view, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multissl.contract.data import Views
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.evaluators.collapse import mean_cosines
from multissl.evaluators.knn import knn_accuracy
from multissl.evaluators.neighbors import check_temperature
from multissl.inference import drawn, featurize_places


class Patches(Evaluator):
    """k-NN accuracy of single tokens, their mean cosine within a sample, and the alarm that they decay."""

    fits = True
    titles: ClassVar[dict[str, str]] = {
        "top1": "patch k-NN accuracy, %",
        "similarity": "mean cosine between patches of a sample",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of the check of patches."""

        split: str = "val"
        """Where the queries come from; the bank is the train split."""
        bank: int = 1_000
        """Training samples whose patches are the bank, drawn with a fixed seed; 0: all."""
        queries: int = 300
        """Samples of the split whose patches are classified, drawn with a fixed seed; 0: all."""
        tokens: int = 16
        """Patches of each sample, evenly spaced."""
        k: int = 20
        """Neighbors that vote."""
        temperature: float = 0.07
        """Temperature of the votes: a neighbour counts exp((s - 1) / temperature) at cosine s."""
        drop: float = 5.0
        """Alarm where the accuracy was this many points below its best in the last two measurements."""
        alike: float = 0.5
        """Alarm where patches were so much more alike than at their best in the last two measurements: the share of
        what mean cosine lacked of 1."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            self.check_counts("bank", "queries")
            if self.tokens < 2 or self.k < 1:
                raise ValueError(
                    f"tokens={self.tokens}, k={self.k}: want 2 or more tokens and 1 or more neighbors"
                )
            check_temperature(self.temperature)
            if not self.drop > 0 or not 0 < self.alike <= 1:
                raise ValueError(f"drop={self.drop}, alike={self.alike}: want more than 0, alike at most 1")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`similarity` of patches and, where there are labels, `top1` in percent; nothing of one token or none."""
        queries, truth = self._patches(encoders, modality, self.cfg.split, self.cfg.queries)  # [S, n, D], [S]
        if queries.shape[1] < 2 or not len(queries):
            self.warn_nothing_to_measure("the encoder gives fewer than two tokens of a sample")
            return {}
        figures: dict[str, float] = {"similarity": estimate(mean_cosines(queries.double()).numpy())}
        if not self.labeled(modality, self.cfg.split, "train"):
            return figures
        bank, labels = self._patches(encoders, modality, "train", self.cfg.bank)
        queries, truth = queries[truth >= 0], truth[truth >= 0]
        bank, labels = bank[labels >= 0], labels[labels >= 0]
        if not len(truth) or not len(labels):
            return figures
        count = queries.shape[1]
        accuracy = knn_accuracy(
            bank.flatten(0, 1),
            labels.repeat_interleave(count),
            queries.flatten(0, 1),
            truth.repeat_interleave(count),
            (self.cfg.k,),
            self.cfg.temperature,
            encoders.device,
            np.repeat(np.arange(len(truth)), count),
        )
        return {"top1": accuracy[self.cfg.k], **figures}

    def alarm(self, history: list[dict[str, float]]) -> str:
        """Return what has become of the patches where the last two measurements are far worse than the best one."""
        trained = [entry for entry in history if entry["step"] > 0 and "similarity" in entry]
        if len(trained) < 3:
            return ""
        last, latest = trained[-1], trained[-2:]
        best = min(trained, key=lambda entry: entry["similarity"])
        limit = best["similarity"] + self.cfg.alike * (1 - best["similarity"])
        worse = all(entry["similarity"] > limit for entry in latest)
        said = f"mean cosine {last['similarity']:.2f}, {best['similarity']:.2f} at step {best['step']:.0f}"
        if all("top1" in entry for entry in trained):
            best = max(trained, key=lambda entry: entry["top1"])
            if all(entry["top1"] < best["top1"] - self.cfg.drop for entry in latest):
                worse, said = True, (
                    f"k-NN {last['top1']:.1f} %, {best['top1']:.1f} % at step {best['step']:.0f}; "
                    f"mean cosine {last['similarity']:.2f} and {best['similarity']:.2f}"
                )  # fmt: skip
        return (
            f"patches decay: {said}: lower optim.lr, train shorter, or weigh the loss of tokens more" * worse
        )

    def _patches(
        self, encoders: FrozenEncoders, modality: Modality, split: str, limit: int
    ) -> tuple[Tensor, Tensor]:
        """Return tokens [S, n, D] of some samples of a split, and the samples' labels [S]."""
        width = 1

        def flat(views: Views) -> Tensor:
            nonlocal width
            tokens = evenly(encoders.encode([views])[0].tokens.float(), views, self.cfg.tokens)
            width = tokens.shape[2]
            return tokens.flatten(1)

        places = drawn(len(modality.dataset(split)), limit)
        x, labels, _ = featurize_places(
            flat, modality, split, places, device=encoders.device, stream=self.cfg.stream
        )
        return x.unflatten(1, (-1, width)), labels


def evenly(tokens: Tensor, views: Views, count: int) -> Tensor:
    """Return `count` of the real tokens [R, N, D] of every row, evenly spaced; all where there are no more."""
    rows, total, width = tokens.shape
    count = min(count, total)
    real = views.real_tokens(total)
    if real is None:
        real = torch.ones(rows, total, dtype=torch.bool, device=tokens.device)
    first = real.int().argsort(dim=1, descending=True, stable=True)  # real tokens in front, in their order
    share = (torch.arange(count, device=tokens.device) + 0.5) / max(count, 1)
    place = (share * real.sum(1, keepdim=True)).long().clamp(max=max(total - 1, 0))  # [R, count]
    index = first.gather(1, place)
    return tokens.gather(1, index[:, :, None].expand(-1, -1, width))
