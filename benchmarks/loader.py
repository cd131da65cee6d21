"""Images per second and core: our worker's part against a pipeline that does everything with Pillow on the CPU.

Both decode the same synthetic 500 x 375 JPEGs (about 92 KB) and make 2 crops of 224 and 8 of 98 pixels. Ours hands
uint8 crops and masks to the device; the other one, written as DINOv2's reference describes its own, also flips,
jitters, blurs and normalizes in the worker. Our part on the device is measured beside it, on the device given.

    python benchmarks/loader.py [--images 48] [--rounds 5] [--device cpu]

Each pipeline runs in a process of its own with one thread, in turns; what is compared are medians of processor time,
which other work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import random
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes started

import numpy as np
import torch

from multissl.contract.data import Sample
from multissl.contract.plans import ViewPlan
from multissl.modalities.image.adapter import Image
from multissl.random import RowRandom

PLAN = ViewPlan(num_global=2, num_local=8, mask_ratio=(0.1, 0.5), mask_share=0.5)
BATCH = 16


def photographs(count: int) -> list[bytes]:
    """JPEGs of 500 x 375 with structure at several scales, about 92 KB each."""
    from PIL import Image as Pillow

    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        pixels = np.full((375, 500, 3), 128.0)
        for cell, strength in ((100, 40), (25, 30), (5, 20), (1, 20)):
            small = rng.normal(size=(375 // cell + 1, 500 // cell + 1, 3)) * strength
            pixels += small.repeat(cell, 0).repeat(cell, 1)[:375, :500]
        out = io.BytesIO()
        Pillow.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
        files.append(out.getvalue())
    return files


def ours() -> Any:
    """Decode, crop, draw masks: bytes in, a raw batch out."""
    modality = Image.Config(size=224, local_size=98, patch=14, mask_group=BATCH).build()

    def batch(files: list[bytes], step: int) -> None:
        samples = [Sample(data, i) for i, data in enumerate(files)]
        modality.collate(samples, {"image": PLAN}, RowRandom((0, step), 0, len(files), len(files)))

    return batch


def pillow() -> Any:
    """The whole augmentation on Pillow images, an image at a time."""
    from PIL import Image as Pillow
    from torchvision import transforms as t

    bicubic = t.InterpolationMode.BICUBIC
    color = [
        t.RandomHorizontalFlip(0.5),
        t.RandomApply([t.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
        t.RandomGrayscale(0.2),
    ]
    last = [t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]

    def crops(size: int, scale: tuple[float, float], *extra: Any) -> Any:
        return t.Compose([t.RandomResizedCrop(size, scale, interpolation=bicubic), *color, *extra, *last])

    def blur(chance: float) -> Any:
        return t.RandomApply([t.GaussianBlur(9, (0.1, 2.0))], chance)

    first = crops(224, (0.32, 1.0))
    second = crops(224, (0.32, 1.0), blur(0.9), t.RandomSolarize(128, 0.2))
    local = crops(98, (0.05, 0.32), blur(0.5))

    def batch(files: list[bytes], step: int) -> None:
        random.seed(step)
        torch.manual_seed(step)
        views: list[list[torch.Tensor]] = []
        for data in files:
            image = Pillow.open(io.BytesIO(data)).convert("RGB")
            views.append([first(image), second(image), *(local(image) for _ in range(8))])
        torch.stack([v for each in views for v in each[:2]])
        torch.stack([v for each in views for v in each[2:]])

    return batch


def serve(name: str, files: list[bytes], pipe: Connection) -> None:
    """The processor time of a pipeline over all files, whenever asked for."""
    torch.set_num_threads(1)
    batch = {"ours": ours, "pillow": pillow}[name]()
    batch(files[:2], 0)
    pipe.send(0.0)
    while pipe.recv():
        start = time.process_time()
        for step in range(0, len(files), BATCH):
            batch(files[step : step + BATCH], step)
        pipe.send(time.process_time() - start)


def device_part(files: list[bytes], device: str, rounds: int) -> float:
    """Seconds an image for what our pipeline leaves to the device."""
    modality = Image.Config(size=224, local_size=98, patch=14, mask_group=BATCH).build()
    samples = [Sample(data, i) for i, data in enumerate(files[:BATCH])]
    raw = modality.collate(samples, {"image": PLAN}, RowRandom((0, 0), 0, BATCH, BATCH))["image"]
    raw = {key: value.to(device) for key, value in raw.items()}
    taken = []
    for step in range(rounds + 1):
        start = time.perf_counter()
        modality.views({"image": raw}, {"image": PLAN}, RowRandom((0, step), 0, BATCH, BATCH, device))
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:]) / BATCH


def main() -> None:
    """Print a line a pipeline, then the ratio."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--images", type=int, default=48)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = options.parse_args()
    files = photographs(args.images)
    print(
        f"{len(files)} JPEGs of 500 x 375, {statistics.mean(map(len, files)) / 1e3:.0f} KB, one thread each"
    )
    context = multiprocessing.get_context("spawn")
    pipes, taken = {}, {"ours": [], "pillow": []}
    for name in taken:
        pipes[name], far = context.Pipe()
        context.Process(target=serve, args=(name, files, far), daemon=True).start()
        pipes[name].recv()
    for _ in range(args.rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            taken[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    rate = {name: len(files) / statistics.median(each) for name, each in taken.items()}
    print(f"ours, worker's part    {rate['ours']:8.1f} images/s per core")
    print(f"pillow, everything     {rate['pillow']:8.1f} images/s per core")
    print(f"ratio                  {rate['ours'] / rate['pillow']:8.1f}")
    torch.set_num_threads(1)
    print(
        f"ours, device's part    {1 / device_part(files, args.device, args.rounds):8.1f} images/s on {args.device}"
    )


if __name__ == "__main__":
    main()
