"""The picture of a batch of stacks for the report: one line per sample, frames in order, the actions between views.

Shapes: R rows, V views, b samples shown, k frames of a stack, S pixels per side, h steps between views, A choices.
State: none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multissl.contract.data import Views
from multissl.contract.learning import Figure

SAMPLES, TILE, GAP, CELL, HEAD = 5, 104, 3, 16, 18
LIT, UNLIT, INK = (0, 114, 178), (225, 225, 225), (90, 90, 90)


def gray(x: object, mean: float, std: float, channels: int) -> np.ndarray:
    """Stacks [R, C, S, S] as frames, uint8 [R, k, S, S, 3], oldest first."""
    values = x.detach().float().cpu().numpy() * std + mean  # type: ignore[attr-defined]
    frames = values.reshape(len(values), -1, channels, *values.shape[2:]).transpose(0, 1, 3, 4, 2)
    return np.broadcast_to((frames.clip(0, 1) * 255).round().astype(np.uint8), (*frames.shape[:4], 3)).copy()


def stack_panel(
    batch: Sequence[Views], mean: float, std: float, patch: int, channels: int, horizon: int
) -> list[Figure]:
    """One figure of the views of the first samples, or none without views."""
    if not batch:
        return []
    lines: list[np.ndarray] = []
    for sample in range(min(SAMPLES, batch[0].batch)):
        parts, names = [_space(GAP)], [""]
        for views in batch:
            frames = gray(views.x[sample :: views.batch], mean, std, channels)  # [V, k, S, S, 3]
            for v, stack in enumerate(_hidden(frames, views, sample, patch)):
                if v and views.condition is not None:
                    parts.append(_actions(views.condition[v * views.batch + sample].tolist(), horizon))
                    names.append("actions")
                parts += [_tile(frame) for frame in stack]
                newest = v * horizon if views.role == "global" else 0
                names += [_moment(newest - i) for i in reversed(range(len(stack)))]
                parts.append(_space(4 * GAP))
                names.append("")
        if not lines:
            lines.append(_head(names, [part.shape[1] for part in parts]))
        lines.append(np.concatenate(parts, 1))
    return [Figure("What the encoder is shown", np.concatenate(lines), _caption(batch, horizon))]


def _hidden(frames: np.ndarray, views: Views, sample: int, patch: int) -> np.ndarray:
    """Frames [V, k, S, S, 3] with hidden patches grayed."""
    if views.mask is None:
        return frames
    side = frames.shape[2] // patch
    hidden = views.mask.hidden[sample :: views.batch].cpu().numpy().reshape(-1, 1, side, side, 1)
    hidden = hidden.repeat(patch, 2).repeat(patch, 3)
    return np.where(hidden, 110 + frames // 8, frames).astype(np.uint8)


def _tile(frame: np.ndarray) -> np.ndarray:
    """A frame [S, S, 3] enlarged or thinned to a tile with a white margin below and to the right."""
    side = frame.shape[0] if frame.shape[0] < 40 else TILE
    picked = np.arange(side) * frame.shape[0] // side
    tile = np.full((TILE + GAP, side + GAP, 3), 255, np.uint8)
    tile[:side, :side] = frame[picked][:, picked]
    return tile


def _actions(values: list[float], horizon: int) -> np.ndarray:
    """One step per line, one choice per cell, lit by its value: uint8 [TILE + GAP, width, 3]."""
    steps = np.asarray(values, np.float32).reshape(max(horizon, 1), -1)  # [h, A]
    high = max(2, min(CELL, TILE // len(steps)))
    light = np.abs(steps).clip(0, 1)[:, :, None]
    cells = (np.array(UNLIT) * (1 - light) + np.array(LIT) * light).astype(np.uint8)
    drawn = cells.repeat(high, 0).repeat(CELL, 1)
    drawn[high - 1 :: high], drawn[:, CELL - 1 :: CELL] = 255, 255  # white lines between the cells
    strip = np.full((TILE + GAP, drawn.shape[1] + GAP, 3), 255, np.uint8)
    strip[: len(drawn), : drawn.shape[1]] = drawn[:TILE]
    return strip


def _moment(steps: int) -> str:
    return f"t{steps:+d}" if steps else "t"


def _head(names: list[str], widths: list[int]) -> np.ndarray:
    """What the columns of these widths are called, uint8 [HEAD, sum of widths, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (sum(widths), HEAD), (255, 255, 255))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    for name, end, width in zip(names, np.cumsum(widths).tolist(), widths, strict=True):
        draw.text((end - width, 2), name, fill=INK, font=font)
    return np.asarray(page)


def _space(width: int) -> np.ndarray:
    return np.full((TILE + GAP, width, 3), 255, np.uint8)


def _caption(batch: Sequence[Views], horizon: int) -> str:
    parts = [
        "Each line is one moment t of an episode; frames side by side are one stack, the newest to the right."
    ]
    shown = next((v for v in batch if v.role == "global"), None)
    if shown is not None and shown.num_views > 1:
        parts.append(
            f"The stacks after the first are {horizon} steps later each."
            if horizon
            else "The stacks are the same moment, each moved by a few pixels."
        )
        if shown.condition is not None and horizon:
            parts.append("Between them: the actions taken, one step per line, the action in blue.")
    if shown is not None and shown.mask is not None:
        parts.append("Grayed squares are hidden from the encoder that learns.")
    if any(v.role == "local" for v in batch):
        parts.append("Small tiles show a part of the picture only.")
    return " ".join(parts)
