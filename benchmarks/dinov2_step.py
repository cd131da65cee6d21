"""How fast is a DINOv2 training step? Images a second, utilization, peak memory, recompiles, host syncs.

    python benchmarks/dinov2_step.py                         # toy size on a CPU; S, B and L on a GPU
    python benchmarks/dinov2_step.py --sizes l --batch 64 --attention sdpa varlen --seconds 60
    python -m benchmarks.dinov2_step --sizes s --trainer 200     # through the trainer, from JPEGs
    python -m benchmarks.dinov2_step --sizes s --profile

A step is everything after the worker: crops in bytes to views, student and teacher, heads, Sinkhorn, losses, backward,
clipping, AdamW, teacher. Utilization is given twice: of the operations that ran (rows that drop path left out are not
counted) and of those the architecture nominally has, so that skipped work cannot pass for speed. The peak is measured
in the same run with a square matrix product in the step's precision.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multissl.build import Parts, build
from multissl.configs.image import dino as recipes
from multissl.contract.learning import Progress
from multissl.encoders.transformer import TransformerEncoder, vit
from multissl.engine.step import Step
from multissl.engine.trainer import hash_of
from multissl.layers.heads import PrototypeHead
from multissl.layers.transformer import ffn_width
from multissl.modalities.image.adapter import Image
from multissl.parallel.ranks import process_group
from multissl.parallel.sharding import Parallel
from multissl.random import RowRandom
from multissl.recipe import Recipe

LOCALS = 8


@dataclass
class Flops:
    """Floating point operations of a step for one image."""

    nominal: float
    executed: float


def forward_flops(cfg: TransformerEncoder.Config, tokens: int, patch: int, channels: int) -> float:
    """Of one view of `tokens` tokens, class token included; a multiply and an add are two operations."""
    hidden = ffn_width(cfg.dim, cfg.ffn, cfg.ffn_ratio)
    weights = 4 * cfg.dim**2 + (3 if cfg.ffn == "swiglu" else 2) * cfg.dim * hidden
    block = 2 * weights * tokens + 4 * tokens**2 * cfg.dim
    return cfg.depth * block + 2 * channels * patch**2 * cfg.dim * (tokens - 1)


def step_flops(recipe: Recipe, hidden_tokens: float) -> Flops:
    """Student forward and backward, teacher forward, heads; `hidden_tokens` of an image pass the token heads."""
    encoder: Any = recipe.encoders["image"]
    modality: Any = recipe.modality
    objective: Any = recipe.objective
    sides = [(2, modality.size), (objective.num_local, modality.local_size)]
    views = [(n, (s // modality.patch) ** 2 + 1) for n, s in sides]
    forward = [n * forward_flops(encoder, t, modality.patch, modality.channels) for n, t in views]
    heads = 0.0
    for head, rows, teacher in (
        (objective.head, 2 + objective.num_local, 2),
        (objective.head if objective.tied_heads else objective.ibot_head, hidden_tokens, hidden_tokens),
    ):
        one = 2 * head_weights(head, encoder.dim)
        heads += one * (3 * rows + teacher)
    student, teacher = sum(forward), forward[0]
    return Flops(3 * student + teacher + heads, 3 * student * (1 - encoder.drop_path) + teacher + heads)


def head_weights(head: PrototypeHead.Config, dim: int) -> int:
    """Weights of a prototype head."""
    widths = [dim, *[head.hidden] * (head.layers - 1), head.bottleneck, head.prototypes]
    return sum(a * b for a, b in pairwise(widths))


class HostReads(TorchDispatchMode):
    """Counts operations after the views whose result the processor waits for (views draw on the processor)."""

    waits = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "unique2")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__.lstrip("_") in {w.lstrip("_") for w in self.waits}
        return func(*args, **(kwargs or {}))


def raw_batch(parts: Parts, recipe: Recipe, device: torch.device) -> tuple[Any, RowRandom]:
    """A batch as a worker delivers it, of noise, on the device."""
    from torch.utils._pytree import tree_map_only

    from multissl.contract.data import Sample

    rows = recipe.batch_size
    rng = RowRandom((0, 0), 0, rows, rows)
    noise = torch.Generator().manual_seed(0)
    pictures = [torch.randint(256, (3, 256, 256), dtype=torch.uint8, generator=noise) for _ in range(4)]
    samples = [Sample(pictures[i % 4], i) for i in range(rows)]
    raw = parts.modality.collate(samples, parts.learner.objective.plans(), rng)
    return tree_map_only(torch.Tensor, lambda t: t.to(device), raw), rng.to(device)


def stepper(parts: Parts, recipe: Recipe, device: torch.device) -> Callable[..., torch.Tensor]:
    """A function that makes the training step of a number as the trainer does, with `count` entered after the views."""
    raw, rng = raw_batch(parts, recipe, device)
    plans = parts.learner.objective.plans()
    make_step = Step(parts.learner, parts.optimizer, recipe.clip, recipe.clip_per)

    def step(number: int, count: AbstractContextManager[Any] | None = None) -> torch.Tensor:
        torch.manual_seed(hash_of(0, number, 0))
        progress = Progress(step=number + 1, total=1000)
        batch = parts.modality.views(raw, plans, rng)
        with count or nullcontext():
            result = make_step(batch, progress)
            parts.optimizer.zero_grad()
        return result.losses.total.detach()

    return step


def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / median(timed(lambda: a @ b, device) for _ in range(10))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, with the device idle before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(name: str, recipe: Recipe, device: torch.device, seconds: float, peak: float) -> None:
    """Print one row."""
    import torch._dynamo

    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    parts = build(recipe, device)
    step = stepper(parts, recipe, device)
    for i in range(3):
        step(i)
    graphs = counters["stats"]["unique_graphs"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, began = [], time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - began < seconds and len(times) < 100):
        times.append(timed(lambda: step(len(times) + 3), device))
    recompiled = counters["stats"]["unique_graphs"] - graphs
    reads = HostReads()
    step(0, reads)
    objective: Any = recipe.objective
    tokens = parts.modality.streams()["image"].num_tokens
    flops = step_flops(recipe, 2 * tokens * objective.mask_share * sum(objective.mask_ratio) / 2)
    rate = recipe.batch_size / median(times)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    print(
        f"| {name} | {recipe.batch_size} | {rate:.1f} | {1e3 * median(times):.1f} | {1e3 * min(times):.1f} "
        f"| {100 * flops.executed * rate / peak:.1f} % | {100 * flops.nominal * rate / peak:.1f} % "
        f"| {memory:.1f} | {recompiled} | {reads.count} |",
        flush=True,
    )


def through_trainer(name: str, recipe: Recipe, steps: int, pictures: int) -> None:
    """Print what the trainer logs of a run on JPEGs: decoding, copies, logging and checkpoints included."""
    import tempfile

    import multissl
    from benchmarks.loader import photographs
    from multissl.engine.checkpoint import Save
    from multissl.run.folder import RunFolder

    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        (folder / "data").mkdir()
        files = photographs(48)
        for i in range(max(pictures, recipe.batch_size)):
            (folder / "data" / f"{i}.jpg").write_bytes(files[i % len(files)])
        modality: Any = recipe.modality
        recipe = recipe.replace(
            modality=modality.replace(data=str(folder / "data")), steps=steps, log_every=max(1, steps // 10), evals={},
            loggers={}, save=Save(every=steps),
        )  # fmt: skip
        multissl.train(recipe, folder / "run")
        lines = [x for x in RunFolder(folder / "run").read_metrics() if x["kind"] == "train"]
    later = lines[len(lines) // 2 :]  # compilation and first reads are over
    figures = (
        "samples_per_s",
        "waiting_percent",
        "tflops",
        "nominal_tflops",
        "memory_gib",
        "joules_per_sample",
    )
    cells = [f"{n} {median(x[n] for x in later):.3g}" for n in figures if all(n in x for x in later)]
    print(
        f"{name}, batch {recipe.batch_size}, {steps} steps through the trainer: {', '.join(cells)}",
        flush=True,
    )


def profiled(recipe: Recipe, device: torch.device) -> None:
    """Print what three steps spend their time on, by operation."""
    from torch.profiler import ProfilerActivity, profile

    parts = build(recipe, device)
    step = stepper(parts, recipe, device)
    for i in range(5):
        step(i)
    with profile(
        activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    ) as seen:
        for i in range(3):
            timed(lambda i=i: step(5 + i), device)
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=order, row_limit=40), flush=True)


def toy(batch: int) -> Recipe:
    """Two blocks and small heads: for the script itself, on a processor."""
    made = recipes.dinov2_vits14()
    small = PrototypeHead.Config(prototypes=256, bottleneck=32, hidden=64)
    made.modality = Image.Config(size=56, local_size=28, patch=14, blur_kernel=3, mask_group=min(batch, 32))
    made.encoders = {"image": TransformerEncoder.Config(dim=64, depth=2, heads=2, layerscale=1e-5)}
    made.objective.head = made.objective.ibot_head = small
    made.parallel = Parallel()
    return made.replace(batch_size=batch)


def full(size: str, batch: int, attention: str, compiled: bool) -> Recipe:
    """A published size at a batch one device holds."""
    made = {"s": recipes.dinov2_vits14, "b": recipes.dinov2_vitb14, "l": recipes.dinov2_vitl16_in1k}[size]()
    old: Any = made.encoders["image"]
    kept = {"layerscale": old.layerscale, "drop_path": old.drop_path, "ffn": old.ffn}
    made.encoders = {"image": vit(size, attention=attention, **kept)}  # type: ignore[arg-type]
    made.parallel = Parallel(compile=compiled)
    return made.replace(batch_size=batch)


def main() -> None:
    """Read the options, print the table."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["s", "b", "l"] if cuda else ["toy"])
    parser.add_argument("--batch", type=int, default=64 if cuda else 8)
    parser.add_argument("--attention", nargs="+", default=["sdpa", "varlen"] if cuda else ["sdpa"])
    parser.add_argument(
        "--compile", nargs="+", choices=["yes", "no"], default=["no", "yes"] if cuda else ["no"]
    )
    parser.add_argument(
        "--trainer", type=int, metavar="STEPS", help="so many steps through the trainer, on JPEGs"
    )
    parser.add_argument("--pictures", type=int, default=2048, help="JPEGs for --trainer")
    parser.add_argument("--profile", action="store_true", help="a table of three steps by operation instead")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring for a row")
    options = parser.parse_args()
    if options.trainer or options.profile:
        made = {
            size: toy(options.batch)
            if size == "toy"
            else full(size, options.batch, options.attention[0], cuda)
            for size in options.sizes
        }
        for size, recipe in made.items():
            if options.trainer:
                through_trainer(size, recipe, options.trainer, options.pictures)
                continue
            with process_group() as device:
                profiled(recipe, device)
        return
    with process_group() as device:
        peak = peak_rate(device, torch.bfloat16 if cuda else torch.float32)
        name = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
        print(f"{name}, torch {torch.__version__}, matrix product {peak / 1e12:.2f} TFLOP/s\n")
        print(
            "| model | batch | images/s | median ms | min ms | executed | nominal | GiB | recompiles | host waits |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for size in options.sizes:
            if size == "toy":
                measure("toy", toy(options.batch), device, options.seconds, peak)
                continue
            for attention in options.attention:
                for compiled in options.compile:
                    label = f"ViT-{size.upper()} {attention}{' compiled' if compiled == 'yes' else ''}"
                    recipe = full(size, options.batch, attention, compiled == "yes")
                    measure(label, recipe, device, options.seconds, peak)


if __name__ == "__main__":
    main()
