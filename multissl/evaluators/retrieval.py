"""Retrieval between streams: does a sample's picture find its caption, and the caption its picture?

For every ordered pair of streams each sample asks in one stream and the same samples' other stream answers, ranked by
the cosine in the shared space (Radford et al. 2021, arXiv 2103.00020; Faghri et al. 2018, arXiv 1707.05612). Samples of
one `sample_id` (a caption twice) all count as right, so chance is counted, not 1/S. The shuffled control deals the
partners out anew among the samples, many times: p is the share of the dealings, the true one among them, that reach the
true recall. Candidates of one score (all of them, where the space has collapsed) rank in random order: recall and
precision are their expectation over it, so that ties are worth chance.
Shapes: S candidates, Q queries, P width of the space, k nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.estimate import estimate
from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Figure, Progress
from multissl.contract.modality import Modality
from multissl.contract.verdict import Verdict
from multissl.evaluators.neighbors import OTHER, PLAIN, SAME, framed
from multissl.evaluators.regression import classical, predicted
from multissl.evaluators.shared_space import NO_SPACE, Embedded, embed, permutation_p
from multissl.evaluators.verdicts import first_and_last, judged
from multissl.inference import drawn, readable_views
from multissl.statistics import LEVEL

REGRESSION, FEWEST = "regression", 20
"""The baseline's name, and the training pairs that it wants at least."""


class Retrieval(Evaluator):
    """Recall at k and mean average precision in percent, every stream asking every other."""

    titles: ClassVar[dict[str, str]] = {
        "r1": "Retrieval, recall@1, mean of all directions, %",
        "chance": "Recall@1 of chance, %",
        "shuffled": "Recall@1 with shuffled pairs, mean, %",
        "p": "p of recall@1 against shuffled pairs, the worst direction",
        "candidates": "Candidates",
        "distinct": "Candidates that are no repetition of another",
    }

    @dataclass(kw_only=True, slots=True)
    class Config(Evaluator.Config):
        """Options of retrieval."""

        split: str = "val"
        """Split whose samples are searched."""
        candidates: int = 1000
        """Samples that ask and answer, drawn from the split with a fixed seed; 0: all."""
        k: tuple[int, ...] = (1, 5, 10)
        """Ranks up to which a right answer counts."""
        distinct: bool = False
        """Keep one sample of those that are the same thing, so that each question has one right answer."""
        shuffles: int = 999
        """Dealings of the shuffled control."""
        train: int = 2_000
        """Training pairs for a regression between classical features, which is shown beside; 0: none."""
        margin: float = 2.0
        """Points of recall@1 above the untrained towers that would matter, as for the k-NN."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.k or min(self.k) < 1:
                raise ValueError(f"k={self.k}: want one or more ranks, each 1 or more")
            if self.candidates < 0 or self.candidates == 1:
                raise ValueError(f"candidates={self.candidates}: want 0 (all) or 2 and more")
            if self.train and self.train < FEWEST:
                raise ValueError(f"train={self.train}: want 0 (no regression) or {FEWEST} and more")
            if self.shuffles < 99:
                raise ValueError(f"shuffles={self.shuffles}: want 99 or more, or p cannot go below 0.01")
            if self.stream:
                raise ValueError(f"stream={self.stream!r}: retrieval measures all streams, leave it empty")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`r1`, `chance`, `p` and the figures of every direction; nothing where streams share no space."""
        found = self._embedded(encoders, modality)
        return {} if found is None else retrieval_figures(found, self.cfg.k, self.cfg.shuffles)

    def baseline_names(self, modality: Modality) -> list[str]:
        """That of the regression, where there is one."""
        return [REGRESSION] if self.cfg.train else []

    def baselines(self, modality: Modality) -> dict[str, float]:
        """Recall@1 of a regression between the classical features of the streams, fitted to training pairs."""
        if not self.cfg.train or len(modality.streams()) < 2:
            return {}
        train = classical(modality, "train", self.cfg.train)
        found = None if train is None else classical(modality, self.cfg.split, self.cfg.candidates)
        if train is None or found is None:
            return {}
        recall = regressed_recall(train, distinct(found) if self.cfg.distinct else found)
        return {} if recall is None else {REGRESSION: recall}

    def verdict(self, history: list[dict[str, float]], level: float = LEVEL) -> Verdict | None:
        """Learned where recall@1 is above the untrained towers', chance and, in all directions, shuffled pairs."""
        if (measured := first_and_last("r1", history)) is None:
            return None
        first, last = measured
        return judged(
            f"recall@1 of {last['candidates']:.0f} candidates, {last['distinct']:.0f} distinct,",
            last["r1"],
            {"the untrained towers'": first["r1"], "chance's": last["chance"]},
            {"a regression's on classical features": first[REGRESSION]} if REGRESSION in first else {},
            margin=self.cfg.margin,
            level=level,
            best=100.0,
            shuffled_p=last["p"],
        )

    def figures(self, encoders: FrozenEncoders, modality: Modality) -> list[Figure]:
        """Some questions in every direction, each with its nearest answers; none where streams are no pictures."""
        found = self._embedded(encoders, modality)
        return [] if found is None else nearest_pairs(found, modality)

    def _embedded(self, encoders: FrozenEncoders, modality: Modality) -> Embedded | None:
        data: Any = modality.dataset(self.cfg.split)
        streams = [*modality.streams()]
        samples = [data[i] for i in drawn(len(data), self.cfg.candidates)]
        found = None
        if len(streams) > 1 and len(samples) > 1:
            found = embed(encoders, modality, samples, streams, f"the {self.cfg.split} split")
        if found is None:
            self.warn_nothing_to_measure(NO_SPACE)
        return distinct(found) if found is not None and self.cfg.distinct else found


def distinct(embedded: Embedded) -> Embedded:
    """Return the first of the samples that are the same thing, each of them once."""
    return selected(embedded, embedded.same().int().argmax(1) == torch.arange(len(embedded.samples)))


def selected(found: Embedded, keep: Tensor) -> Embedded:
    """Some of the samples, those of keep, bool [S]."""
    return Embedded(
        z={s: z[keep] for s, z in found.z.items()},
        here={s: here[keep] for s, here in found.here.items()},
        ids=[ids[keep] for ids in found.ids],
        samples=[s for s, k in zip(found.samples, keep.tolist(), strict=True) if k],
    )


def retrieval_figures(
    found: Embedded, ks: tuple[int, ...] = (1, 5, 10), shuffles: int = 999
) -> dict[str, float]:
    """Figures of all ordered pairs of streams, over the samples that have both; in percent but for p and gap."""
    figures: dict[str, float] = {}
    recalls: list[np.ndarray] = []
    askers: list[np.ndarray] = []
    chances, controls, ps = [], [], []
    same_as = found.same().int().argmax(1).numpy()  # samples that are the same thing count together
    for a, b in permutations(found.z, 2):
        both = selected(found, found.here[a] & found.here[b])
        if len(both.samples) < 2:
            continue
        right, z, name = both.same(), both.z, f"{a}_to_{b}"
        ranks = rank(z[a], z[b], right)
        asked = same_as[(found.here[a] & found.here[b]).numpy()]
        for k in ks:
            figures[f"{name}_r{k}"] = estimate(100 * ranks.hits(k).numpy(), asked)
        figures[f"{name}_map"] = estimate(100 * ranks.precision.numpy(), asked)
        known = bool(ranks.precision.isfinite().all())
        dealt = (
            shuffled_recalls(ranks.nearest, right, shuffles) if known else torch.tensor([torch.nan])
        )  # [K]
        recalls.append(100 * ranks.hits(1).numpy())
        askers.append(asked)
        chances.append(chance(right, 1))
        controls.append(float(dealt.mean()))
        true = right[
            torch.arange(len(right)), ranks.nearest
        ]  # as the dealings are counted, one answer for a tie
        ps.append(permutation_p(float(true.double().mean()), dealt) if known else torch.nan)
        if f"gap_{b}_{a}" not in figures:
            figures[f"gap_{a}_{b}"] = float((z[a].mean(0) - z[b].mean(0)).norm())
    if not recalls:
        return {}
    summary = {"chance": chances, "shuffled": controls}
    distinct = len(np.unique(same_as))
    return {
        "r1": mean_of_directions(recalls, askers),
        **{name: 100 * float(np.mean(values)) for name, values in summary.items()},
        "p": max(ps), "candidates": float(len(found.samples)), "distinct": float(distinct), **figures,
    }  # fmt: skip


def regressed_recall(train: Embedded, found: Embedded) -> float | None:
    """Return recall@1 of regressions fitted to `train`, the mean of all directions, in percent; None without pairs."""
    recalls: list[np.ndarray] = []
    askers: list[np.ndarray] = []
    same_as = found.same().int().argmax(1).numpy()
    for a, b in permutations(found.z, 2):
        known, here = train.here[a] & train.here[b], found.here[a] & found.here[b]
        if int(known.sum()) < FEWEST or int(here.sum()) < 2:
            continue
        answers = predicted(train.z[a][known], train.z[b][known], found.z[a][here])
        gallery = found.z[b][here] - train.z[b][known].mean(0)
        recalls.append(100 * rank(answers, gallery, selected(found, here).same()).hits(1).numpy())
        askers.append(same_as[here.numpy()])
    return mean_of_directions(recalls, askers) if recalls else None


def mean_of_directions(recalls: list[np.ndarray], askers: list[np.ndarray]) -> float:
    """Return the mean over directions of mean recalls, each [Q of a direction]; askers say who asks, in all of them."""
    count = sum(map(len, recalls))
    scores = [each * count / (len(recalls) * len(each)) for each in recalls]
    even = len({len(each) for each in recalls}) == 1
    return estimate(np.concatenate(scores), np.concatenate(askers), percent=even)


TIED = 1e-13
"""Cosines this close, one after the other in the ranking, are one score: the rounding of a product of unit vectors."""


class Answers(NamedTuple):
    """How the right ones among the candidates rank, for the queries that have any; all NaN where embeddings are NaN."""

    precision: Tensor
    """float64 [Q] average precision over the whole ranking."""
    precision_at_r: Tensor
    """float64 [Q] the same over the first R ranks, R being the number of right ones, and divided by R."""
    first: Tensor
    """float64 [Q] rank of the first right one, from 0; the best that it may have where it ties with others."""
    tied: Tensor
    """float64 [Q] candidates of the score of the first right one, itself counted."""
    tied_right: Tensor
    """float64 [Q] the right ones among them."""
    nearest: Tensor
    """int64 [Q] the candidate that ranks first; of several, one drawn with a fixed seed."""

    def recall(self, k: int) -> float:
        """The share of queries with a right one among the first k, as expected over the order of ties."""
        return float(self.hits(k).mean())

    def hits(self, k: int) -> Tensor:
        """Return the chance that a right one is among the first k, of each query: float64 [Q]."""
        wrong, places = (
            self.tied - self.tied_right,
            k - self.first,
        )  # how many of the tie are among the first k
        missed = torch.ones_like(self.first)
        for i in range(k):
            kept = (wrong - i).clamp(min=0) / (self.tied - i)
            missed = torch.where((i < places) & (i < self.tied), missed * kept, missed)
        return 1 - missed + 0 * self.first  # 0 * NaN is NaN: of no ranking there is no recall


def rank(queries: Tensor, gallery: Tensor, right: Tensor, own: bool = False, chunk: int = 1024) -> Answers:
    """Rank gallery [S, P] by its cosine with queries [Q, P]; right, bool [Q, S], says which answer which.

    Queries that nothing answers are left out. `own`: the gallery is the queries, and each is asked for without itself.
    """
    right = right & ~torch.eye(len(right), dtype=torch.bool) if own else right
    asked = right.any(1).nonzero().flatten()
    if not bool(queries.isfinite().all() & gallery.isfinite().all()):
        nothing = torch.full((len(asked),), torch.nan, dtype=torch.float64)
        return Answers(*[nothing] * 5, nearest=torch.full_like(asked, -1))
    a, b = F.normalize(queries.double(), dim=1), F.normalize(gallery.double(), dim=1)
    lot = torch.rand(len(right), generator=torch.Generator().manual_seed(0))
    parts: list[Answers] = []
    for rows in asked.split(chunk):
        cosine = a[rows] @ b.T  # [q, S]
        if own:
            cosine[torch.arange(len(rows)), rows] = -torch.inf
        ranked, order = cosine.sort(1, descending=True)
        parts.append(answers(ranked, order, right[rows].gather(1, order), lot[rows]))
    return Answers(*(torch.cat(each) for each in zip(*parts, strict=True)))


def answers(ranked: Tensor, order: Tensor, right: Tensor, lot: Tensor) -> Answers:
    """Return how right candidates (bool [q, S], in the order of the ranking) rank, given their cosines and places.

    The expectation over the order of ties is that of McSherry and Najork 2008: at a place of a tie of n, r of them
    right, stands a right one with r / n, above which 1 / (n - 1) of the other r - 1 are expected for each place of the
    tie above. lot, in 0..1 [q], draws the nearest of several.
    """
    hit = right.double()
    level = F.pad((ranked[:, :-1] - ranked[:, 1:] > TIED).cumsum(1), (1, 0))  # [q, S] number of the tie
    size = torch.zeros_like(hit).scatter_add_(1, level, torch.ones_like(hit))  # [q, ties]
    good = torch.zeros_like(hit).scatter_add_(1, level, hit)
    start, above = ((t.cumsum(1) - t).gather(1, level) for t in (size, good))  # [q, S] as those below
    first_size, size, good = size[:, 0], size.gather(1, level), good.gather(1, level)
    place = torch.arange(hit.shape[1], dtype=hit.dtype)
    before = above + (place - start) * (good - 1) / (size - 1).clamp(
        min=1
    )  # right ones above a right one here
    at = good / size * (before + 1) / (place + 1)
    counts = hit.sum(1)  # [q] R
    early = at * (place < counts[:, None])
    first = (good > 0).int().argmax(1, keepdim=True)
    nearest = order.gather(1, (lot * first_size).long()[:, None])
    return Answers(
        precision=at.sum(1) / counts,
        precision_at_r=early.sum(1) / counts,
        first=start.gather(1, first)[:, 0],
        tied=size.gather(1, first)[:, 0],
        tied_right=good.gather(1, first)[:, 0],
        nearest=nearest[:, 0],
    )


def chance(right: Tensor, k: int) -> float:
    """The recall at k of a random ranking: 1 - C(S - R, k) / C(S, k), the mean over queries of R right ones of S."""
    size, wrong = right.shape[1], (~right).sum(1).double()  # [Q]
    missed = torch.ones_like(wrong)
    for i in range(min(k, size)):
        missed = missed * (wrong - i).clamp(min=0) / (size - i)
    return float((1 - missed).mean())


def shuffled_recalls(nearest: Tensor, right: Tensor, times: int, seed: int = 0) -> Tensor:
    """Recall@1 [times] where the partners, right bool [S, S], are dealt out anew; nearest int64 [S] answers."""
    draw = torch.Generator().manual_seed(seed)
    deals = torch.stack([torch.randperm(len(right), generator=draw) for _ in range(times)])  # [K, S]
    return right[deals, nearest].double().mean(1)


def nearest_pairs(found: Embedded, modality: Modality, queries: int = 6, k: int = 4) -> list[Figure]:
    """One figure per direction: questions at the left, their nearest answers beside them, right ones framed blue."""
    panels = []
    for a, b in permutations(found.z, 2):
        both = selected(found, found.here[a] & found.here[b])
        right, asked = both.same(), drawn(len(both.samples), queries)
        near = (both.z[a][asked] @ both.z[b].T).topk(min(k, len(both.samples)), dim=1).indices  # [Q, k]
        rows = []
        for query, answers in zip(asked, near.tolist(), strict=True):
            left = _pictures(both, modality, a, [query])
            others = _pictures(both, modality, b, answers)
            if left is None or others is None:
                break
            colors = [SAME if right[query, i] else OTHER for i in answers]
            tiles = [framed(left[0], PLAIN), *(framed(*pair) for pair in zip(others, colors, strict=True))]
            rows.append(side_by_side(tiles))
        if rows:
            wide = max(row.shape[1] for row in rows)
            page = np.concatenate([_padded(row, row.shape[0], wide) for row in rows])
            caption = (
                f"Left: {a}. Right: the {near.shape[1]} nearest {b} of {len(both.samples)}, nearest first. "
                "Blue frame: its own; orange: another's."
            )
            panels.append(Figure(f"Nearest pairs, {a} to {b}", page, caption))
    return panels


def side_by_side(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles [h, w, 3] of any sizes in a row on white."""
    high = max(tile.shape[0] for tile in tiles)
    return np.concatenate([_padded(tile, high, tile.shape[1]) for tile in tiles], axis=1)


def _padded(tile: np.ndarray, high: int, wide: int) -> np.ndarray:
    space = [(0, high - tile.shape[0]), (0, wide - tile.shape[1]), (0, 0)]
    return np.pad(tile, space, constant_values=255)


def _pictures(found: Embedded, modality: Modality, stream: str, places: list[int]) -> np.ndarray | None:
    views, _ = readable_views(modality, [found.samples[i] for i in places], stream)
    return modality.pictures(views)
