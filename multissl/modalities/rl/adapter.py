"""Frames of reinforcement learning: stacks of an episode, seen again a few steps later, with the actions between.

Observations that are numbers are stacked and seen again alike; what changes there is a factor on all of them (RAD's
amplitude scaling: Laskin et al., NeurIPS 2020, arXiv 2004.14990), after each is standardized by what was measured.

View v of a sample is the stack at t + v * horizon of one episode, under its own shift: horizon=0 shows one stack twice
(CURL: Laskin et al., ICML 2020, arXiv 2004.04136), horizon=3 what comes next (ATC: Stooke et al., ICML 2021, arXiv
2009.08319), horizon=1 step by step (SPR: Schwarzer et al., ICLR 2021, arXiv 2007.05929); `Views.condition` holds the
actions that lead from one view to the next. One offset moves a whole stack (DrQ's shift: edges repeated, random crop),
intensity jitter is SPR's. An anchor too near the end of its episode starts earlier: no positive crosses an end. Frames
of an episode that may lie closer than `gap` are not negatives of each other (`Views.group_id`).
Shapes: B samples of this rank, V views, R = V*B rows stacked view-major, k frames of a stack, C = k or 3k channels,
F pixels of a stored frame's side, N numbers of an observation, A numbers of an action, h = horizon.
State: mean and deviation of the pixels, or of each number; width of an action, edges of the label's cells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multissl.contract.abilities import HasStates
from multissl.contract.data import Batch, Raw, Sample, Samples, Unreadable, Views
from multissl.contract.learning import Figure
from multissl.contract.modality import Modality, Need
from multissl.contract.plans import Plans, StreamSpec
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.rows import Kind
from multissl.modalities.rl.envs import rollout
from multissl.modalities.rl.figures import gray, stack_panel
from multissl.modalities.rl.game import Background, game
from multissl.modalities.rl.pixels import check_layout, shrunk
from multissl.modalities.rl.preparation import NumbersPreparation, StackPreparation, preparation_of
from multissl.modalities.rl.recorded import read_alone, read_replay
from multissl.modalities.rl.replay import Episodes, Moment, Moments, Replay, bursts, split_episodes
from multissl.modalities.rl.views import near, number_views, picture_views, statistics_of
from multissl.modalities.views import ids_of, roles, with_masks
from multissl.random import RowRandom
from multissl.sources.payloads import Some

LEAST = {"size": 1, "local_size": 1, "patch": 1, "frame": 0, "stack": 1, "episodes": 3, "steps": 2, "shift": 0,
         "horizon": 0, "gap": -1, "burst": 1, "pace": 1, "mask_group": 1, "intensity": 0}  # fmt: skip
BASELINE_SIDE = 21
"""Side to which frames are averaged for the raw baseline."""


class RL(HasStates):
    """Episodes of frames with actions."""

    @dataclass(kw_only=True, slots=True)
    class Config(Modality.Config):
        """Options of RL frames."""

        renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"colours": "channels"})
        sides = ("local_size", "size")

        data: str = ""
        """`gym:NAME` (made on the spot; ALE/Pong-v5 and other Atari games too; arguments follow as in
        gym:FrozenLake-v1?map_name=8x8), an .npz or .h5 replay (D4RL's, robomimic's), `minari:NAME`; empty: the built-in
        game of two paddles."""
        episodes: int = 60
        """Episodes to make, where they are made; steps is the most frames of one, and seed chooses them."""
        steps: int = 100
        """Most frames of an episode that is made."""
        seed: int = 0
        """Seed that chooses the episodes that are made."""
        layout: str = ""
        """How a picture lies in the observations or recorded frames, a letter per axis: h, w, c (colors), s (a stack,
        read as its newest frame), such as chw; `render`: take what the environment draws; `vector`: read numbers, not
        pictures; empty: as the shape says, what is drawn where no picture is observed, numbers where none is drawn."""
        entry: str = ""
        """Entry of a Dict observation, or array of a file, that is read; empty: the only picture, or all numbers."""
        background: Background = "noise"
        """Of the built-in game: drawn anew every step, fixed for an episode, or plain."""
        size: int = 48
        """Side of clean and global views in pixels."""
        local_size: int = 36
        """Side of local views, in pixels; a multiple of patch."""
        patch: int = 12
        """Side of a token, in pixels."""
        frame: int = 0
        """Side of the stored frames, of which views are crops (CURL: 100 for size 84); 0: size."""
        channels: Literal[1, 3] = 1
        """Of a frame: gray, or red, green and blue."""
        stack: int = 3
        """Frames that make one observation."""
        horizon: int = 3
        """Steps from one global view to the next; 0: the same stack under another shift."""
        actions: bool = True
        """Tell objectives the actions between global views."""
        shift: int = 4
        """Pixels by which a view may be moved, edges repeated."""
        shift_chance: float = 1.0
        """Probability of a shift; other views are cut from the middle (ATC: 0.1 on Atari)."""
        intensity: float = 0.05
        """Deviation of a factor on all pixels, or numbers, of a view."""
        gap: int = 4
        """Frames of an episode that may come closer than this, views included, are not negatives; some up to twice as
        far are spared too. 0: all are negatives; -1: frames of one episode never are."""
        burst: int = 1
        """So many samples of a batch in a row come from one stretch of an episode, `pace` frames from one to the next
        (ATC: 16 and 1), which makes negatives of the same background and score; 1: samples are drawn one by one."""
        pace: int = 1
        """Frames from one sample of a burst to the next, 1 or more."""
        subtract: Literal["none", "episode"] = "none"
        """episode: take each episode's mean frame out, against backgrounds that never change."""
        mask: Kind = "random"
        """Kind of mask: random tokens, or rectangular blocks."""
        mask_group: int = 32
        """Samples over which mask ratios are spread evenly; the largest divisor of a rank's samples up to it counts."""

        def code_names(self) -> Iterable[str]:
            """Return the module that `gym:MODULE:NAME` has gymnasium import."""
            name = self.data.removeprefix("gym:").partition("?")[0]
            return (name,) if self.data.startswith("gym:") and ":" in name else ()

        def __post_init__(self) -> None:
            check_layout(self.layout)
            for name, low in LEAST.items():
                if getattr(self, name) < low:
                    raise ValueError(f"modality.{name}={getattr(self, name)}: want {low} or more")
            if self.burst > 1 and self.gap < 0:
                raise ValueError(
                    f"modality.burst={self.burst} takes negatives from one episode, modality.gap={self.gap} forbids"
                    " them: set modality.gap=0"
                )
            if not 0 <= self.shift_chance <= 1:
                raise ValueError(f"modality.shift_chance={self.shift_chance}: want 0 to 1")
            for name in ("size", "local_size"):
                if (side := getattr(self, name)) % self.patch:
                    near = max(side // self.patch, 1) * self.patch
                    raise ValueError(
                        f"modality.{name}={side}: want a multiple of patch={self.patch}, such as {near}"
                    )
            stored = self.frame or self.size
            if stored < self.size or self.local_size > stored:
                raise ValueError(
                    f"modality.frame={self.frame}: want 0, or at least size={self.size} and"
                    f" local_size={self.local_size}"
                )

    needs: ClassVar[frozenset[Need]] = frozenset(
        {"local", "mask", "masks", "drop", "target", "condition", "coords"}
    )

    numeric: ClassVar[frozenset[Need]] = frozenset({"mask", "masks", "drop", "target", "condition"})
    """What of it observations that are numbers can give."""
    plural = "episodes"

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._replay: Replay | None = None
        self._fitted: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_replay": None}  # a worker's samples carry what they need

    def replay(self) -> Replay:
        """All episodes, made or read once, their frames of the stored side."""
        if self._replay is None:
            cfg = self.cfg
            side = cfg.frame or cfg.size
            keep = functools.partial(shrunk, side=side, channels=cfg.channels)
            try:
                if not cfg.data:
                    replay = game(cfg.episodes, cfg.steps, cfg.seed, cfg.background)
                elif cfg.data.startswith("gym:"):
                    made = (cfg.data.removeprefix("gym:"), cfg.episodes, cfg.steps, cfg.seed)
                    replay = rollout(*made, side, cfg.channels, cfg.layout, cfg.entry)
                else:
                    replay = read_replay(cfg.data, cfg.layout, cfg.entry, keep)
                self._agree(replay)
                split_episodes(len(replay.start) - 1, "train")  # refuses too few, with the file's name
            except ValueError as error:
                raise ValueError(f"modality.data={cfg.data!r}: {error}") from error
            if not replay.columns:
                replay.frames = keep(replay.frames)
            self._replay = replay
        return self._replay

    def _agree(self, replay: Replay) -> None:
        """Read other data as the training data was read."""
        if self._fitted is not None:
            trained, columns = self._fitted["actions"], self._fitted.get("columns", [])
            if len(replay.columns) != len(columns):
                seen, known = (f"{len(c)} numbers" if c else "pictures" for c in (replay.columns, columns))
                raise ValueError(f"has observations that are {seen}, the model was trained on {known}")
            if trained and (replay.width > trained or (not replay.num_actions and replay.width != trained)):
                raise ValueError(f"has actions of {replay.width} numbers, the model was trained on {trained}")
            if replay.num_actions and trained:
                replay.num_actions = trained
            replay.label(tuple(tuple(b) for b in self._fitted["bounds"]))

    def fit(self, payloads: Sequence[Any] | None = None) -> Self:
        """Measure the pixels or numbers, the actions and the label's cells of the training episodes of `data`.

        Of payloads, stacks in memory, pixels or numbers are measured; no action leads from one to the next.
        """
        if payloads is not None:
            if not len(payloads):
                raise ValueError("fit() got no payloads: give stacks, or nothing to read modality.data")
            alone = [self._alone(number, payload) for number, payload in enumerate(payloads)]
            seen = np.concatenate([replay.frames for replay in alone])
            self._fitted = {**statistics_of(seen, alone[0].columns), "actions": 0, "bounds": []}
        elif self._fitted is None:
            replay, moments = self.replay(), Moments(self.replay(), self._episodes("train"))
            count = len(moments) if replay.columns else min(1000, len(moments))
            some = np.random.default_rng(0).choice(len(moments), count, replace=False)
            seen = np.stack([self._stack(moments[int(place)].data, 1) for place in some])
            self._fitted = {
                **statistics_of(seen, replay.columns), "actions": replay.width,
                "bounds": [list(b) for b in replay.bounds],
            }  # fmt: skip
        return self

    def fitted(self) -> dict[str, Any]:
        """Return what was measured on the training episodes, or restored."""
        if self._fitted is None:
            raise self.not_fitted()
        return self._fitted

    def provides(self, stream: str) -> frozenset[Need]:
        """Return what plans may ask for: numbers have no places that could be cropped."""
        return self.numeric if self._fitted is not None and "columns" in self._fitted else self.needs

    def _episodes(self, split: str) -> np.ndarray:
        replay = self.replay()
        return split_episodes(len(replay.start) - 1, split, replay.copies)

    def streams(self) -> dict[str, StreamSpec]:
        """One grid of pixels, the frames of a stack as its channels; or the numbers of a stack. Oldest first."""
        cfg, fitted = self.cfg, self.fitted()
        condition = max(cfg.horizon, 1) * fitted["actions"] if cfg.actions else 0
        channels, side = cfg.stack * cfg.channels, cfg.size // cfg.patch
        names = [f"t-{cfg.stack - 1 - i}" if i < cfg.stack - 1 else "t" for i in range(cfg.stack)]
        if "columns" in fitted:
            numbers = tuple(f"{column} {name}" for name in names for column in fitted["columns"])
            return {
                "rl": StreamSpec(
                    kind="columns", shape=(len(numbers),), num_tokens=len(numbers), cardinalities=(0,) * len(numbers),
                    target_dim=1, condition_dim=condition, channels=numbers,
                )
            }  # fmt: skip
        return {
            "rl": StreamSpec(
                kind="grid", shape=(channels, cfg.size, cfg.size), patch=(cfg.patch, cfg.patch), num_tokens=side**2,
                target_dim=channels * cfg.patch**2, channels=tuple(names) if cfg.channels == 1 else (),
                condition_dim=condition,
            )
        }  # fmt: skip

    def dataset(self, split: str) -> Samples:
        """Every frame of the split's episodes; whole episodes are in one split."""
        self.fit()
        return Moments(self.replay(), self._episodes(split))

    def contents(self, split: str) -> list[Sequence[Any]]:
        """Return numbers that are equal for equal episodes."""
        everyone = np.arange(len(self.replay().start) - 1)
        sets = self.replay().copies.among(everyone).sets
        return [sets[self._episodes(split)].tolist()]

    def known_by(self, split: str) -> list[Sequence[Any]]:
        """Return frames and actions of every episode; nothing of those that are made, which the options tell."""
        if not self.cfg.data or self.cfg.data.startswith("gym:"):
            return []
        return [Some(Episodes(self.replay()), self._episodes(split))]

    def states(self, split: str) -> tuple[Tensor, tuple[str, ...]]:
        """What is known of the world behind a split's frames: values [S, n], NaN where unknown, and their names.

        A state that is observed as it is asks for no learning: there it is the state `horizon` steps later.
        """
        moments = cast(Moments, self.dataset(split))
        states, names = moments.replay.states_ahead(self.cfg.horizon if moments.replay.columns else 0)
        return torch.from_numpy(states[moments.rows()]), names

    def aims(self) -> tuple[str, ...]:
        """Return the names of the values of a state that are worth finding; empty: all."""
        return self.replay().aims

    def _stack(self, moment: Moment, k: int) -> np.ndarray:
        """Frames t-k+1 to t as channels, uint8 [C, F, F], or as numbers, float32 [k*N]."""
        frames = moment.replay.stack(moment.episode, moment.t, k)
        if moment.replay.columns:
            mean = moment.replay.mean(moment.episode) if self.cfg.subtract == "episode" else 0
            return (frames - mean).astype(np.float32).reshape(-1)
        if self.cfg.subtract == "episode":  # half the contrast, so that every difference fits into 8 bits
            mean = moment.replay.mean(moment.episode).astype(np.int16)
            frames = ((frames.astype(np.int16) - mean + 255) // 2).astype(np.uint8)
        return frames if frames.ndim == 3 else frames.transpose(0, 3, 1, 2).reshape(-1, *frames.shape[1:3])

    def collate(self, samples: list[Sample], plans: Plans, rng: RowRandom) -> Raw:
        """Stacks [V*B, C, F, F] or [V*B, k*N] by role, the actions between them, masks, and who the samples are."""
        plan, cfg, count = plans["rl"], self.cfg, len(samples)
        span = max(plan.num_global - 1, 0) * cfg.horizon
        if cfg.burst > 1 and plan.num_global:
            samples = bursts(samples, rng, cfg.burst, cfg.pace, span)
        moments = [self._moment(s, span) for s in samples]
        raw: Raw = {}
        for role, views in roles(plan):
            step = cfg.horizon if role == "global" else 0
            at = [m._replace(t=m.t + v * step) for v in range(views) for m in moments]
            raw[role] = torch.from_numpy(np.stack([self._stack(m, cfg.stack) for m in at]))
        if (width := self.streams()["rl"].condition_dim) and plan.num_global:
            # nothing leads to the first view, or to the same stack again
            led = np.zeros((plan.num_global, count, width), np.float32)
            for v in range(1, plan.num_global if cfg.horizon else 0):
                for b, m in enumerate(moments):
                    before = m.t + (v - 1) * cfg.horizon
                    led[v, b] = m.replay.between(m.episode, before, cfg.horizon).reshape(-1)
            raw["condition"] = torch.from_numpy(led).flatten(0, 1)  # [V*B, h*A]
        if plan.mask_ratio is not None and plan.num_global:
            spec, lines = self.streams()["rl"], rng.fork("masks")
            rows, columns = spec.grid if spec.kind == "grid" else (1, spec.num_tokens)
            with_masks(raw, draw_masks(plan, cfg.mask, (rows, columns), cfg.mask_group, lines))
        raw["sample_id"] = ids_of(samples)["sample_id"]
        if cfg.gap and samples[0].group >= 0:
            raw["group_id"] = near(
                [(s.group, m.t) for s, m in zip(samples, moments, strict=True)], cfg.gap, span
            )
        return {"rl": raw}

    def _alone(self, index: int, payload: Any) -> Replay:
        """Return a stack in memory as an episode: a picture [k, H, W, ...], or numbers [k, N], as what was fitted."""
        try:
            return read_alone(np.asarray(payload), self.cfg, self._fitted)
        except ValueError as error:
            raise Unreadable(index, f"sample {index} {error}") from error

    def _moment(self, sample: Sample, span: int) -> Moment:
        """The sample's moment, moved back where its views would pass the end of the episode."""
        if not isinstance(sample.data, Moment):
            return Moment(self._alone(sample.index, sample.data), 0, self.cfg.stack - 1)
        replay, episode, t = sample.data
        have = replay.length(episode)
        if have <= span:
            raise Unreadable(
                sample.index,
                f"episode {episode} has {have} frames, its views span {span + 1}: lower modality.horizon",
            )
        return Moment(replay, episode, min(t, have - 1 - span))

    def views(self, raw: Raw, plans: Plans, rng: RowRandom) -> Batch:
        """Shift, crop, intensity and normalization, on the device of the stacks; draws go there in one copy."""
        make = number_views if "columns" in self.fitted() else picture_views
        return make(raw["rl"], plans["rl"], self.cfg, self.fitted(), rng)

    def preparation(self, stream: str) -> StackPreparation | NumbersPreparation:
        """Return how stacks of frames or numbers become clean views."""
        return preparation_of(self.cfg, self.fitted())

    def baselines(self) -> dict[str, Callable[[Views], Tensor]]:
        """Pixels of the whole stack, averaged down; or its numbers."""
        if "columns" in self.fitted():
            return super().baselines()
        return {
            "raw": lambda views: F.adaptive_avg_pool2d(
                views.x.float(), min(views.x.shape[-1], BASELINE_SIDE)
            ).flatten(1)
        }

    def figures(self, batch: Batch) -> list[Figure]:
        """Stacks of some samples with the actions between them; nothing of numbers."""
        fitted = self.fitted()
        if "columns" in fitted:
            return []
        shown = [v for v in batch if v.stream == "rl"]
        return stack_panel(
            shown, fitted["mean"], fitted["std"], self.cfg.patch, self.cfg.channels, self.cfg.horizon
        )

    def pictures(self, views: Views) -> np.ndarray | None:
        """The newest frame of each stack, uint8 [R, H, W, 3]; None where they are numbers."""
        fitted = self.fitted()
        if "columns" in fitted:
            return None
        return gray(views.x, fitted["mean"], fitted["std"], self.cfg.channels)[:, -1]

    def state(self) -> dict[str, Any]:
        """Statistics of the pixels or numbers, width of an action, edges of the label's cells."""
        return self.fitted()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Read other episodes as the training episodes were read."""
        self._fitted = dict(state)
        if self._replay is not None:
            self._agree(self._replay)
