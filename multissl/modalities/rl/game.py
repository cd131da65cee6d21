"""The built-in game of two paddles, in numpy: synthetic, and without any extra.

A ball flies between a paddle that follows it and one that the actions move (stay, up, down), seen through noise that
hides it from classical features. Its background can be drawn anew every step (`noise`), once per episode (`fixed`: the
trap in which what never changes is easier to agree on than what moves, Sobal et al. 2022, arXiv 2211.10831), or left
out (`plain`). Every episode depends on (seed, its number) alone. Actions are uniform and kept for some steps.
Shapes: E episodes, T steps of an episode, S = E*T frames of H*W pixels, n values of a state.  State: none.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from multissl.modalities.rl.actions import policy
from multissl.modalities.rl.replay import Replay
from multissl.waiting import followed

Background = Literal["plain", "noise", "fixed"]
BACKGROUNDS: tuple[str, ...] = ("plain", "noise", "fixed")
SIDE = 48
"""Court of the built-in game in pixels."""
PADDLE, BALL = 9, 3
"""Height of a paddle and side of the ball in pixels."""
GAME = ("ball_x", "ball_y", "player_y", "enemy_y")
AIMS = ("ball_x", "ball_y")
"""The values worth finding in a game with a ball: paddles are large, and the actions tell where one of them is."""


def game(episodes: int, steps: int, seed: int, background: Background = "noise") -> Replay:
    """The built-in game: `episodes` of `steps` frames of 48 x 48 gray pixels, 3 actions."""
    frames = np.empty((episodes, steps, SIDE, SIDE), np.uint8)
    actions = np.empty((episodes, steps), np.int64)
    states = np.empty((episodes, steps, len(GAME)), np.float32)
    for episode in followed(range(episodes), "episodes of the built-in game", episodes):
        rng = np.random.default_rng(np.random.SeedSequence((seed, episode)))
        actions[episode] = policy(rng, 3, steps)
        states[episode] = _play(rng, actions[episode])
        frames[episode] = _draw(rng, states[episode], background)
    return Replay(
        frames=frames.reshape(-1, SIDE, SIDE),
        actions=actions.reshape(-1),
        start=np.arange(episodes + 1, dtype=np.int64) * steps,
        num_actions=3,
        states=states.reshape(-1, len(GAME)),
        names=GAME,
        aims=AIMS,
    )


def _play(rng: np.random.Generator, actions: np.ndarray) -> np.ndarray:
    """Centers of the ball and heights of the paddles in pixels, float32 [T, 4]."""
    left, right, half = 4.0, SIDE - 5.0, PADDLE / 2
    x, y = SIDE / 2, float(rng.uniform(8, SIDE - 8))
    vx, vy = float(rng.choice([-1, 1]) * rng.uniform(1.2, 2.2)), float(rng.uniform(-1.6, 1.6))
    player = enemy = SIDE / 2
    found = np.empty((len(actions), len(GAME)), np.float32)
    for t, action in enumerate(actions.tolist()):
        found[t] = x, y, player, enemy
        player = min(max(player + (0.0, -2.0, 2.0)[action], half), SIDE - half)
        enemy += min(max(y - enemy, -1.0), 1.0)
        enemy = min(max(enemy, half), SIDE - half)
        x, y = x + vx, y + vy
        if not 1.0 <= y <= SIDE - 2.0:
            y, vy = min(max(y, 1.0), SIDE - 2.0), -vy
        paddle = player if vx > 0 else enemy
        if left < x < right:
            continue
        if abs(y - paddle) <= half + 1:  # returned, the steeper the further from the paddle's middle
            vx, vy = -vx, 0.5 * vy + 1.6 * (y - paddle) / half
            x = min(max(x, left), right)
        else:  # served again from the middle
            x, y = SIDE / 2, float(rng.uniform(8, SIDE - 8))
            vx, vy = -vx, float(rng.uniform(-1.6, 1.6))
    return found


def _draw(rng: np.random.Generator, states: np.ndarray, background: Background) -> np.ndarray:
    """Frames uint8 [T, 48, 48] of states [T, 4]."""
    count, at = len(states), np.arange(SIDE)
    image = np.full((count, SIDE, SIDE), 60, np.uint8)
    if background != "plain":  # squares of 4 x 4 pixels
        squares = (1 if background == "fixed" else count, SIDE // 4, SIDE // 4)
        image[:] = rng.integers(20, 112, squares, dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    ball = np.abs(at - states[:, :1])[:, None] <= BALL / 2  # [T, 1, 48]
    image[ball & (np.abs(at - states[:, 1:2])[:, :, None] <= BALL / 2)] = 200
    for column, place in ((SIDE - 3, 2), (1, 3)):
        hit = np.abs(at - states[:, place : place + 1]) <= PADDLE / 2  # [T, 48]
        image[:, :, column : column + 2][hit] = 150
    return image
