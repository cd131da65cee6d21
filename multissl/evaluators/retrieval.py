"""Retrieval between streams: does a sample's picture find its caption, and the caption its picture?

For every ordered pair of streams each sample asks in one stream and the same samples' other stream answers, ranked by
the cosine in the shared space (Radford et al. 2021, arXiv 2103.00020; Faghri et al. 2018, arXiv 1707.05612). Samples of
one `sample_id` (a caption twice) all count as right, so chance is counted, not 1/S. The shuffled control deals the
partners out anew among the samples, many times: p is the share of the dealings, the true one among them, that reach the
true recall.
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

from multissl.contract.evaluator import Evaluator, FrozenEncoders
from multissl.contract.learning import Figure, Progress
from multissl.contract.modality import Modality
from multissl.evaluators.neighbors import OTHER, PLAIN, SAME, framed
from multissl.evaluators.shared_space import NO_SPACE, Embedded, embed, permutation_p
from multissl.evaluators.verdicts import first_and_last
from multissl.inference import drawn, readable_views


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
        margin: float = 2.0
        """Points of recall@1 above the untrained towers that count as learned."""

        def __post_init__(self) -> None:
            Evaluator.Config.__post_init__(self)
            if not self.k or min(self.k) < 1:
                raise ValueError(f"k={self.k}: want one or more ranks, each 1 or more")
            if self.candidates < 0 or self.candidates == 1:
                raise ValueError(f"candidates={self.candidates}: want 0 (all) or 2 and more")
            if self.shuffles < 99:
                raise ValueError(f"shuffles={self.shuffles}: want 99 or more, or p cannot go below 0.01")
            if self.stream:
                raise ValueError(f"stream={self.stream!r}: retrieval measures all streams, leave it empty")

    cfg: Config

    def run(self, encoders: FrozenEncoders, modality: Modality, progress: Progress) -> dict[str, float]:
        """`r1`, `chance`, `p` and the figures of every direction; nothing where streams share no space."""
        found = self._embedded(encoders, modality)
        return {} if found is None else retrieval_figures(found, self.cfg.k, self.cfg.shuffles)

    def verdict(self, history: list[dict[str, float]]) -> tuple[bool, str] | None:
        """Learned where recall@1 is above the untrained towers' by the margin and p below 0.01 in all directions."""
        if (measured := first_and_last("r1", history)) is None:
            return None
        first, last = measured
        good = last["r1"] >= first["r1"] + self.cfg.margin and last["p"] < 0.01  # a NaN is a miss
        return good, (
            f"{'learned' if good else 'not learned'}: recall@1 {last['r1']:.1f} % of {last['candidates']:.0f} "
            f"candidates ({last['distinct']:.0f} distinct) against the untrained towers' {first['r1']:.1f} %, "
            f"chance {last['chance']:.1f} %, p {last['p']:.2g}"
        )

    def figures(self, encoders: FrozenEncoders, modality: Modality) -> list[Figure]:
        """Some questions in every direction, each with its nearest answers; none where streams are no pictures."""
        found = self._embedded(encoders, modality)
        return [] if found is None else nearest_pairs(found, modality)

    def _embedded(self, encoders: FrozenEncoders, modality: Modality) -> Embedded | None:
        data: Any = modality.dataset(self.cfg.split)
        streams = [*modality.streams()]
        samples = [data[i] for i in drawn(len(data), self.cfg.candidates)]
        found = embed(encoders, modality, samples, streams) if len(streams) > 1 and len(samples) > 1 else None
        if found is None:
            self.warn_nothing_to_measure(NO_SPACE)
        if found is not None and self.cfg.distinct:
            found = only(found, found.same().int().argmax(1) == torch.arange(len(found.samples)))
        return found


def only(found: Embedded, keep: Tensor) -> Embedded:
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
    recalls, chances, controls, ps = [], [], [], []
    for a, b in permutations(found.z, 2):
        both = only(found, found.here[a] & found.here[b])
        if len(both.samples) < 2:
            continue
        right, z, name = both.same(), both.z, f"{a}_to_{b}"
        answers = rank(z[a], z[b], right)
        for k in ks:
            figures[f"{name}_r{k}"] = 100 * answers.recall(k)
        figures[f"{name}_map"] = 100 * float(answers.precision.mean())
        dealt = shuffled_recalls(answers.nearest, right, shuffles)  # [K]
        recalls.append(answers.recall(1))
        chances.append(chance(right, 1))
        controls.append(float(dealt.mean()))
        ps.append(permutation_p(recalls[-1], dealt))
        if f"gap_{b}_{a}" not in figures:
            figures[f"gap_{a}_{b}"] = float((z[a].mean(0) - z[b].mean(0)).norm())
    if not recalls:
        return {}
    summary = {"r1": recalls, "chance": chances, "shuffled": controls}
    distinct = int((found.same().int().argmax(1) == torch.arange(len(found.samples))).sum())
    return {
        **{name: 100 * float(np.mean(values)) for name, values in summary.items()},
        "p": max(ps), "candidates": float(len(found.samples)), "distinct": float(distinct), **figures,
    }  # fmt: skip


class Answers(NamedTuple):
    """How the right ones among the candidates rank, for the queries that have any."""

    precision: Tensor
    """float64 [Q] average precision over the whole ranking."""
    precision_at_r: Tensor
    """float64 [Q] the same over the first R ranks, R being the number of right ones, and divided by R."""
    first: Tensor
    """int64 [Q] rank of the first right one, from 0."""
    nearest: Tensor
    """int64 [Q] the candidate that ranks first."""

    def recall(self, k: int) -> float:
        """The share of queries with a right one among the first k."""
        return float((self.first < k).double().mean())


def rank(queries: Tensor, gallery: Tensor, right: Tensor, own: bool = False, chunk: int = 1024) -> Answers:
    """Rank gallery [S, P] by its cosine with queries [Q, P]; right, bool [Q, S], says which answer which.

    Queries that nothing answers are left out. `own`: the gallery is the queries, and each is asked for without itself.
    """
    right = right & ~torch.eye(len(right), dtype=torch.bool) if own else right
    a, b = F.normalize(queries.double(), dim=1), F.normalize(gallery.double(), dim=1)
    found: list[list[Tensor]] = []
    for rows in right.any(1).nonzero().flatten().split(chunk):
        cosine = a[rows] @ b.T  # [q, S]
        if own:
            cosine[torch.arange(len(rows)), rows] = -torch.inf
        order = cosine.argsort(1, descending=True)
        hit = right[rows].gather(1, order).double()  # [q, S] in the order of the ranking
        counts = hit.sum(1)  # [q] R
        at = hit.cumsum(1) / torch.arange(1, hit.shape[1] + 1) * hit  # precision where a right one stands
        early = at * (torch.arange(hit.shape[1]) < counts[:, None])
        found.append([at.sum(1) / counts, early.sum(1) / counts, hit.argmax(1), order[:, 0]])
    return Answers(*(torch.cat(parts) for parts in zip(*found, strict=True)))


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
    """A panel a direction: questions at the left, their nearest answers at the right, right ones in a blue frame."""
    panels = []
    for a, b in permutations(found.z, 2):
        both = only(found, found.here[a] & found.here[b])
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
