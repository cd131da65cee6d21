"""Line charts as inline SVG: equal in size, labeled at the line, colors from the page's style sheet.

A long curve is drawn as the means of some hundred stretches, with a band from their smallest to largest value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape

Points = list[tuple[int, float]]
"""(step, value), steps ascending."""

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 320, 170, 48, 10, 146
LETTER = 6.2
"""About the width of a character of the labels."""
STRETCHES = 160
CONSTANT, SMALLEST = 1e-4, 1e-300
"""Of its size, and at all, what a curve must span to be more than a constant: labels show no more digits."""
MOST_DIGITS = 9
"""Enough for ticks of the smallest span that is drawn, of values from 0.01 on."""
COLORS = 6
"""--s0 .. --s5 of the style sheet."""


def chart(
    title: str,
    series: Mapping[str, Points],
    baselines: Mapping[str, float] | None = None,
    borders: Mapping[int, str] | None = None,
) -> str:
    """Return a picture of one or more named curves over steps, with dashed lines at `baselines`.

    `borders` holds steps at which something begins, by its name: each is an upright line that says it.
    """
    baselines = baselines or {}
    values = [v for points in series.values() for _, v in points] + [*baselines.values()]
    ticks = nice_ticks(min(values), max(values))
    last = max(step for points in series.values() for step, _ in points)
    first = min(step for points in series.values() for step, _ in points)

    texts = [f"{name} {short(v)}" for name, v in baselines.items()]
    texts += [f"{name} {short(points[-1][1])}".strip() for name, points in series.items()]
    right = round(WIDTH - 8 - LETTER * max(8, *map(len, texts)))

    def x(step: float) -> float:
        return LEFT + (right - LEFT) * ((step - first) / (last - first) if last > first else 1.0)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    marks, labels = [], []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{label}</text>')
    marks += [upright(x(step), name) for step, name in (borders or {}).items() if first < step < last]
    for value, text in zip(baselines.values(), texts, strict=False):
        marks.append(
            f'<line class="baseline" x1="{LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        labels.append((y(value), text, ""))
    for place, points in enumerate(series.values()):
        color = f"var(--s{place % COLORS})"
        drawn, end = curve(points, x, y, color)
        marks += drawn
        labels.append((end, texts[len(baselines) + place], color))
    for height, text, color in apart(labels):
        style = f' style="fill:{color}"' if color else ""
        marks.append(f'<text x="{right + 6}" y="{height + 4:.1f}"{style}>{escape(text)}</text>')
    marks.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">{first:,}</text>')
    marks.append(f'<text x="{right}" y="{HEIGHT - 6}" text-anchor="end">step {last:,}</text>')
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(marks)}</svg></figure>'
    )


def curve(
    points: Points, x: Callable[[float], float], y: Callable[[float], float], color: str
) -> tuple[list[str], float]:
    """Return a curve, with its band where it is long, and the height of its end; x and y place steps and values."""
    means, marks = stretched(points), list[str]()
    if any(low < high for _, _, low, high in means):
        edge = [f"{x(s):.1f},{y(high):.1f}" for s, _, _, high in means]
        edge += [f"{x(s):.1f},{y(low):.1f}" for s, _, low, _ in reversed(means)]
        marks.append(f'<polygon class="band" fill="{color}" points="{" ".join(edge)}"/>')
    line = " ".join(f"{x(s):.1f},{y(mean):.1f}" for s, mean, _, _ in means)
    marks.append(f'<polyline class="curve" stroke="{color}" points="{line}"/>')
    step, value, _, _ = means[-1]
    marks.append(f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.5" fill="{color}"/>')
    return marks, y(value)


def upright(place: float, name: str) -> str:
    """Return an upright line that tells its name where one points at it."""
    where = f'x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{BOTTOM}"'
    return f'<line class="border" {where}><title>{escape(name)}</title></line>'


def stretched(points: Points) -> list[tuple[float, float, float, float]]:
    """Return (step, mean, low, high) of at most `STRETCHES` stretches of a curve; a short one stays as it is."""
    size = math.ceil(len(points) / STRETCHES)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (
            part[-1][0] if size == 1 else sum(s for s, _ in part) / len(part),
            sum(v for _, v in part) / len(part),
            min(v for _, v in part),
            max(v for _, v in part),
        )
        for part in parts
    ]


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return round numbers, about as many as wanted, from at or below `low` to at or above `high`.

    Values that differ by little beside their size are drawn as the constant they nearly are.
    """
    if high - low <= max(CONSTANT * max(abs(low), abs(high)), SMALLEST):
        pad = abs(low) / 2 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999) * power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(ticks: list[float]) -> list[str]:
    """Return ticks in as many digits as keep them distinct."""
    step, largest = ticks[1] - ticks[0], max(abs(t) for t in ticks)
    if largest < 1e-2 or largest >= 1e6:
        labels = ([short(t, digits) for t in ticks] for digits in range(1, MOST_DIGITS))
        return next(each for each in labels if len(set(each)) == len(ticks))
    digits = next(d for d in range(MOST_DIGITS) if abs(round(step, d) - step) < step / 100)
    return [f"{t + 0.0:,.{digits}f}" for t in ticks]


def apart(labels: list[tuple[float, str, str]], gap: float = 12.5) -> list[tuple[float, str, str]]:
    """Return labels moved up or down until none covers another, inside the picture."""
    placed: list[tuple[float, str, str]] = []
    for height, text, color in sorted(labels):
        lowest = placed[-1][0] + gap if placed else TOP - 4.0
        placed.append((max(height, lowest), text, color))
    over = placed[-1][0] - (HEIGHT - 8) if placed else 0.0
    return [(height - max(0.0, over), text, color) for height, text, color in placed]


def short(value: float, digits: int = 1) -> str:
    """Return a number in few characters, a very large or small one with so many digits behind the point."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        number, power = f"{value:.{digits}e}".split("e")
        return f"{number.rstrip('0').removesuffix('.')}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
