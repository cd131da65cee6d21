"""Zero-shot classification: which class's description lies nearest to a sample in the space that streams share.

Radford et al. 2021, arXiv 2103.00020, section 3.1: a class is described by each of several templates, its unit
embeddings are averaged and made a unit vector again; the largest cosine wins. Where all are equal the guess is worth
chance. Nothing is trained on the labels. The shuffled control deals the labels out anew among the samples.
Shapes: S samples, C classes, T templates, P width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.data import Sample
from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.shared_space import NO_SPACE, Embedded, embed, permutation_p
from multissl.evaluators.verdicts import first_and_last, judged
from multissl.inference import drawn, single_stream, stream_of
from multissl.registry import suggest
from multissl.statistics import LEVEL


class ZeroShot(Evaluator):
    """Accuracy of the nearest class description, in percent."""

    titles: ClassVar[dict[str, str]] = {
        "top1": "Zero-shot accuracy, %",
        "chance": "Zero-shot accuracy of chance, %",
        "shuffled": "Zero-shot accuracy with shuffled labels, mean, %",
        "p": "p of the zero-shot accuracy against shuffled labels",
        "classes": "Classes of zero-shot",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of zero-shot classification; `stream` is what is classified."""

        text: str = "text"
        """The stream that reads the descriptions."""
        classes: tuple[str, ...] = ()
        """Names to choose from; empty: those of the data. Where the data has names, samples of others are left out;
        where it has none, they name its labels in order."""
        templates: tuple[str, ...] = ("{}", "a photo of a {}.")
        """Descriptions; {} is the name of the class, its underscores made spaces."""
        split: str = "val"
        """Split whose samples are classified."""
        samples: int = 5_000
        """Samples to classify, drawn from the split with a fixed seed; 0: all."""
        shuffles: int = 999
        """Dealings of the shuffled control."""
        margin: float = 2.0
        """Points above the untrained towers that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.templates:
                raise ValueError("templates is empty: want one or more, such as 'a photo of a {}.'")
            for template in self.templates:
                if "{}" not in template:
                    raise ValueError(
                        f"templates has {template!r} without {{}}, the place of the class's name"
                    )
            self.check_counts("samples")
            if self.shuffles < 99:
                raise ValueError(f"shuffles={self.shuffles}: want 99 or more, or p cannot go below 0.01")
            if len(self.classes) == 1 or len({*self.classes}) < len(self.classes):
                raise ValueError(f"classes={self.classes}: want two or more different names")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`top1`, `chance`, `shuffled` and `p`; nothing without labels or a shared space."""
        if not self.labeled(modality, self.cfg.split):
            return {}
        text = stream_of(modality, self.cfg.text)
        stream = self.cfg.stream or next(s for s in modality.streams() if s != text)
        data: Any = modality.dataset(self.cfg.split)
        names, place = self.chosen(list(data.classes))
        if not names:
            self.warn_nothing_to_measure(
                "the data does not name its classes (name them in order, classes=a b c)"
            )
            return {}
        samples = [data[i] for i in drawn(len(data), self.cfg.samples)]
        samples = [s for s in samples if s.label in place]
        if not samples:
            raise ValueError(f"zero_shot: no sample of the {self.cfg.split} split is of any of its classes")
        found = embed(encoders, modality, samples, [stream], f"the {self.cfg.split} split")
        if found is None:
            self.warn_nothing_to_measure(NO_SPACE)
            return {}
        here = found.here[stream]
        truth = torch.tensor([place[s.label] for s in found.samples])[here]
        classes = class_embeddings(encoders, modality, text, names, self.cfg.templates)
        scores = found.z[stream][here] @ classes.T  # [S, C]
        draw = torch.Generator().manual_seed(0)
        deals = torch.stack(
            [truth[torch.randperm(len(truth), generator=draw)] for _ in range(self.cfg.shuffles)]
        )
        right, dealt = hits(scores, truth), hits(scores, deals).mean(1)
        groups = np.array([s.group for s, h in zip(found.samples, here.tolist(), strict=True) if h])
        top1 = float(right.mean())
        return {
            "top1": estimate(100 * right.cpu().numpy(), groups), "chance": 100 / len(names),
            "shuffled": 100 * float(dealt.mean()), "p": permutation_p(top1, dealt),
            "classes": float(len(names)), "samples": float(len(truth)),
        }  # fmt: skip

    def chosen(self, known: list[str]) -> tuple[list[str], dict[int, int]]:
        """The names of the classes, and the place among them of each label of the data that is one."""
        names = [*self.cfg.classes] or known
        if not known:
            return names, {i: i for i in range(len(names))}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"zero_shot: classes has {name!r}, which is none of the data's{suggest(name, known)}"
                )
        return names, {known.index(name): i for i, name in enumerate(names)}

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where the accuracy is above the untrained towers', chance and that of shuffled labels."""
        if (measured := first_and_last("top1", history)) is None:
            return None
        first, last = measured
        return judged(
            f"zero-shot accuracy of {last['classes']:.0f} classes",
            last["top1"],
            {"the untrained towers'": first["top1"], "chance's": last["chance"]},
            {},
            margin=self.cfg.margin,
            level=level,
            best=100.0,
            shuffled_p=last["p"],
        )


EQUAL = 1e-6
"""Cosines in float32 this close are one score."""


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the best of scores [S, C] is that of labels [..., S], else 0: float64 [..., S].

    Where all classes have one score, as in a space that has collapsed, the guess is worth chance, 1 / C.
    """
    right = (scores.argmax(1) == labels).double()
    equal = scores.amax(1) - scores.amin(1) <= EQUAL
    return torch.where(equal, 1 / scores.shape[1], right)


def class_embeddings(
    encoders: FrozenEncoders, modality: Modality, stream: str, names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Unit vectors [C, P] of classes by name: the mean over templates of the unit embeddings of their descriptions."""
    texts = [t.replace("{}", name.replace("_", " ")) for name in names for t in templates]
    samples = [Sample(single_stream(modality, stream, text), i) for i, text in enumerate(texts)]
    found: Embedded | None = embed(encoders, modality, samples, [stream], "the descriptions of classes")
    assert found is not None  # as the samples' own stream has it
    if len(found.samples) < len(texts):
        raise ValueError(f"zero_shot: {stream} cannot read the descriptions of classes such as {texts[0]!r}")
    return ensemble(found.z[stream].unflatten(0, (len(names), len(templates))))


def ensemble(descriptions: Tensor) -> Tensor:
    """Return unit vectors [C, P] of classes from descriptions [C, T, P]: the mean of their unit vectors, made one.

    Averaging the scores of descriptions instead would be another ensemble.
    """
    return F.normalize(F.normalize(descriptions, dim=2).mean(1), dim=1)
