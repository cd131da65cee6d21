"""How the cost of a step grows with tokens, batch, prototypes, columns, clip length and ranks; counted, not timed.

    python -m benchmarks.growth            # prints a table, writes docs/growth.svg

A step (forward and backward pass of a small transformer) runs without numbers, as in `multissl.engine.flops`. Counted
are operations (matrix products, convolutions, attention) and the bytes that every operation reads and writes, with
nothing fused. An exponent says how a cost grows when its axis doubles, at the upper end: 1 is linear. Attention's own
products grow with the square of the tokens and are given apart.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from multissl.contract.data import Batch, Mask, Views
from multissl.contract.encoder import build_encoders
from multissl.contract.learning import Progress
from multissl.contract.objective import Objective
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.flops import ON_CPU, Blueprint
from multissl.engine.learner import Learner
from multissl.layers.heads import MLPHead, PrototypeHead
from multissl.objectives.dino import DINO
from multissl.objectives.infonce import InfoNCE
from multissl.parallel.compiling import choose

PICTURE = Path(__file__).parents[1] / "docs" / "growth.svg"
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "_unsafe_view", "lift_fresh", "device"}
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
}


COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2")


@dataclass
class Cost:
    """Of a step on one rank."""

    operations: float
    attention: float
    """The part of the operations that attention's own products are."""
    bytes: float


class Bytes(TorchDispatchMode):
    """Adds up what operations read and write."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in FREE:
            picks = func.overloadpacket.__name__ in ("index", "index_select", "gather", "embedding")
            self.total += sum(
                t.nbytes for t in tree_leaves((made, made if picks else args)) if isinstance(t, Tensor)
            )
        return made


def cost(spec: StreamSpec, objective: Objective.Config, batch: Batch) -> Cost:
    """Return what a step of an objective on one stream costs."""
    encoders = build_encoders({"x": TransformerEncoder.Config(dim=192, depth=4, heads=3)}, {"x": spec})
    encoders["x"].prepare_for(frozenset({"none", "replace"}))
    blueprint = Blueprint(Learner(encoders, objective.build(encoders, {"x": spec})).train())
    learner = blueprint.learner
    assert learner
    fake = Batch(v.map(blueprint.mode.from_tensor) for v in batch)
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with blueprint.mode, Bytes() as moved, counter:
        learner.backward(learner(fake, Progress(step=0, total=10, described=False)))
    attention = sum(n for op, n in counter.get_flop_counts()["Global"].items() if op in ATTENTION)
    return Cost(float(counter.get_total_flops()), float(attention), float(moved.total))


def pictures(side: int, rows: int, prototypes: int) -> Cost:
    """DINO with masks on pictures of a side, in patches of 16."""
    spec = StreamSpec(kind="grid", shape=(3, side, side), num_tokens=(side // 16) ** 2, patch=(16, 16))
    head = PrototypeHead.Config(prototypes=prototypes, hidden=512, bottleneck=128)
    objective = DINO.Config(head=head, ibot_head=replace(head), num_local=0)
    hidden = torch.zeros(2 * rows, spec.num_tokens, dtype=torch.bool)
    count = rows * spec.num_tokens // 4
    mask = Mask(hidden=hidden, index=torch.zeros(count, dtype=torch.int64), weight=torch.ones(count))
    x = torch.zeros(2 * rows, 3, side, side)
    views = Views(x=x, stream="x", role="global", num_views=2, masks=(mask,))
    return cost(spec, objective, Batch([views]))


def contrasted(spec: StreamSpec, shape: tuple[int, ...], rows: int) -> Cost:
    """InfoNCE on two views of rows of a shape."""
    objective = InfoNCE.Config(projector=MLPHead.Config(hidden=192, out=128))
    views = Views(x=torch.zeros(2 * rows, *shape), stream="x", role="global", num_views=2)
    return cost(spec, objective, Batch([views]))


def clips(frames: int) -> Cost:
    """Contrast clips of some frames of 64 pixels, in tubes of 2 x 16 x 16."""
    spec = StreamSpec(kind="grid", shape=(3, frames, 64, 64), num_tokens=frames * 8, patch=(2, 16, 16))
    return contrasted(spec, spec.shape, 16)


def tables(columns: int) -> Cost:
    """Contrast rows of some columns of numbers."""
    spec = StreamSpec(kind="columns", shape=(columns,), num_tokens=columns, cardinalities=(0,) * columns)
    return contrasted(spec, spec.shape, 64)


def ranks(count: int) -> Cost:
    """Contrast 256 pictures of 32 pixels on one of some ranks, which see each other's embeddings."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        spec = StreamSpec(kind="grid", shape=(3, 32, 32), num_tokens=16, patch=(8, 8))
        return contrasted(spec, spec.shape, 256)
    finally:
        dist.destroy_process_group()


AXES: dict[str, tuple[tuple[int, ...], Callable[[int], Cost]]] = {
    "tokens of a view": ((49, 196, 784, 1600), lambda n: pictures(16 * math.isqrt(n), 16, 4096)),
    "batch": ((32, 64, 128, 256), lambda n: pictures(112, n, 4096)),
    "prototypes": ((4096, 16_384, 65_536, 131_072), lambda n: pictures(112, 32, n)),
    "columns": ((16, 64, 256, 1024), tables),
    "frames of a clip": ((4, 16, 32, 64), clips),
    "ranks": ((1, 8, 64, 512), ranks),
}


def exponent(costs: dict[int, float]) -> float:
    """Return the power of an axis with which a cost grows between its last two values."""
    (low, before), (high, after) = sorted(costs.items())[-2:]
    return math.log(after / before) / math.log(high / low)


def measure(name: str) -> dict[int, Cost]:
    """Return the costs along an axis, with losses as they are written."""
    values, step = AXES[name]
    choose(False)
    try:
        return {value: step(value) for value in values}
    finally:
        choose(None)


def exponents(costs: dict[int, Cost]) -> dict[str, float]:
    """Return with what power each cost grows: operations without attention's products, and bytes."""
    return {
        "operations": exponent({n: c.operations - c.attention for n, c in costs.items()}),
        "bytes": exponent({n: c.bytes for n, c in costs.items()}),
    }


def drawn(curves: dict[str, list[tuple[float, float]]]) -> str:
    """Return a picture of curves on doubling scales, each from 1 at its first value, beside the line that is linear."""
    most, pixels = 10, 30  # doublings along an axis, pixels of each
    side = most * pixels

    def place(point: tuple[float, float]) -> str:
        return f"{50 + pixels * math.log2(point[0]):.1f},{20 + side - pixels * math.log2(point[1]):.1f}"

    parts = [
        f'<line x1="50" y1="{20 + side}" x2="{50 + side}" y2="20" stroke="#999" stroke-dasharray="4 4"/>'
    ]
    for n in range(0, most + 1, 2):
        x, y = 50 + pixels * n, 20 + side - pixels * n
        parts.append(f'<text x="{x}" y="{40 + side}" text-anchor="middle">{2**n}</text>')
        parts.append(f'<text x="42" y="{y + 4}" text-anchor="end">{2**n}</text>')
        parts.append(f'<line x1="50" y1="{y}" x2="{50 + side}" y2="{y}" stroke="#ddd"/>')
    for color, (name, points) in zip(COLORS, curves.items(), strict=True):
        line = " ".join(map(place, points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        x, y = place(points[-1]).split(",")
        parts.append(f'<text x="{float(x) + 6}" y="{y}" fill="{color}">{name}</text>')
    parts.append(
        f'<text x="50" y="{60 + side}">times the first value; up: times its bytes; dashed: linear</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side + 190} {side + 75}" width="{side + 190}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main() -> None:
    """Print a line per axis and draw the curves, both relative to the first value, on doubling scales."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    curves: dict[str, list[tuple[float, float]]] = {}
    print("| axis | from | to | operations | of these attention | bytes | exponents: operations, bytes |")
    print("|---|---|---|---|---|---|---|")
    for name in AXES:
        costs = measure(name)
        first, last = min(costs), max(costs)
        grown = [getattr(costs[last], n) / getattr(costs[first], n) for n in ("operations", "bytes")]
        powers = exponents(costs)
        share = costs[last].attention / costs[last].operations
        cells = [name, f"{first:,}", f"{last:,}", f"{grown[0]:.1f} x", f"{share:.0%}", f"{grown[1]:.1f} x"]
        print(f"| {' | '.join(cells)} | {powers['operations']:.2f}, {powers['bytes']:.2f} |")
        curves[name] = [(n / first, c.bytes / costs[first].bytes) for n, c in costs.items()]
    PICTURE.write_text(drawn(curves))


if __name__ == "__main__":
    main()
