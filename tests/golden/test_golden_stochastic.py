"""Golden cases of the family `stochastic`: block masks, collated masks, crops, augmentation rates.

These compare distributions, never draws: with at least as many draws as the case, each statistic has to lie
within three times the spread of independent re-draws of the reference's own code.
Covered: dinov2_block_mask, dinov2_collate, dinov2_crops, dinov2_augmentation_rates, ibot_mask, simmim_mask,
ijepa_masks; videomae_tube_mask and vjepa_masks stand with the videos.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multissl.contract.plans import ViewPlan
from multissl.modalities.image import ops as image_ops
from multissl.modalities.image.adapter import Image
from multissl.modalities.image.crops import TRIES, crop_box
from multissl.modalities.masks import draw_masks
from multissl.modalities.masks.cells import SMALLEST, block_mask, num_hidden, place_block, random_mask
from multissl.modalities.masks.multiblock import as_masks, draw_multiblock
from multissl.modalities.views import pack_masks
from multissl.random import RowRandom

from . import Case, cases

pytestmark = pytest.mark.reference

LEVELS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)


def near(case: Case, name: str, found: object) -> None:
    """A statistic within three times the spread of re-draws; histograms by total variation of their rows."""
    expected = case.tensors("out")[name].double()
    actual = torch.as_tensor(np.asarray(found), dtype=torch.float64)
    assert actual.shape == expected.shape, (
        f"{case.id}/{name}: {tuple(actual.shape)}, not {tuple(expected.shape)}"
    )
    spread = case.manifest["redraw_spread"][name]
    if "tv" in spread:
        a, b = (rows(t) / rows(t).sum(1, keepdim=True) for t in (actual, expected))
        worst, allowed = (a - b).abs().sum(1).max().item() / 2, 3 * spread["tv"]
    else:
        worst, allowed = (actual - expected).abs().max().item(), 3 * spread.get("max_abs", 0.0)
    assert worst <= allowed + 1e-6, f"{case.id}/{name}: off by {worst:.4g}, allowed {allowed:.4g}"


def rows(t: Tensor) -> Tensor:
    return t.reshape(1, -1) if t.dim() < 2 else t.flatten(1)


def summary(case: Case, name: str, values: np.ndarray) -> None:
    near(case, f"{name}_quantiles", np.quantile(values, LEVELS))
    near(case, f"{name}_mean", values.mean())
    near(case, f"{name}_std", values.std())


@pytest.mark.parametrize("case", cases("stochastic", "dinov2_block_mask"))
def test_golden_block_masks(case: Case) -> None:
    hyper, rng = case.hyper, np.random.default_rng(0)
    grid, n = (hyper["H"], hyper["W"]), hyper["n_draws"]
    tokens = grid[0] * grid[1]
    histograms, means, stds, places = [], [], [], []
    for request in hyper["requests"]:
        masks = np.stack([block_mask(rng, grid, request, tokens // 2) for _ in range(n)])  # [n, N]
        counts = masks.sum(1)
        assert counts.max() <= request
        histograms.append(np.bincount(counts, minlength=tokens + 1))
        means.append(counts.mean())
        stds.append(counts.std())
        places.append(masks.mean(0).reshape(grid))
    near(case, "count_hist", np.stack(histograms))
    near(case, "count_mean", means)
    near(case, "count_std", stds)
    near(case, "position_freq", np.stack(places))
    boxes = [box(place_block(rng, grid, 0, hyper["block_budget"], SMALLEST), grid) for _ in range(n)]
    h, w = np.array(boxes).T  # [n]
    for name, values in {"area": h * w, "h": h, "w": w, "aspect_h_over_w": h / w}.items():
        summary(case, f"block_{name}", values)


def box(bits: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a block given as bits."""
    lit = np.array([bits >> i & 1 for i in range(grid[0] * grid[1])]).reshape(grid)
    return int(lit.any(1).sum()), int(lit.any(0).sum())


@pytest.mark.parametrize("case", cases("stochastic", "dinov2_collate"))
def test_golden_collated_masks(case: Case) -> None:
    hyper = case.hyper
    batch, grid, share = hyper["B"], tuple(hyper["N"]), hyper["prob"]
    tokens = grid[0] * grid[1]
    plan = ViewPlan(num_global=2, mask_ratio=tuple(hyper["ratio"]), mask_share=share)
    ratios, totals = [], []
    for step in range(hyper["n_draws"]):
        mask = draw_masks(plan, "block", grid, batch, RowRandom((0, step), 0, batch, batch))[0]
        counts = mask.hidden.sum(1)
        masked = counts > 0
        ratios.append(np.sort(counts[masked].numpy() / tokens))
        totals.append(int(counts.sum()))
        near(case, "n_images_masked", int(masked.sum()))
        near(case, "upperbound", len(mask.index))
    near(case, "sorted_ratio_mean", np.stack(ratios).mean(0))
    near(case, "sorted_ratio_std", np.stack(ratios).std(0))
    summary(case, "total_masked", np.array(totals))
    out = case.tensors("out")
    packed = pack_masks(out["example_masks"])
    assert torch.equal(packed.index, out["example_indices"])
    torch.testing.assert_close(packed.weight, out["example_weights"])


@pytest.mark.parametrize("case", cases("stochastic", "dinov2_crops"))
def test_golden_crops(case: Case) -> None:
    hyper = case.hyper
    cfg = Image.Config(global_scale=tuple(hyper["g"]), local_scale=tuple(hyper["l"]))
    width, height = hyper["size"]
    for line, (name, scale) in enumerate({"global": cfg.global_scale, "local": cfg.local_scale}.items()):
        draws = RowRandom((0, line), 0, hyper["n"], hyper["n"]).rand(TRIES, 4).tolist()
        boxes = np.array([crop_box(height, width, d, scale, cfg.ratio) for d in draws])  # [n, 4]
        summary(case, f"{name}_area", boxes[:, 2] * boxes[:, 3] / (width * height))
        summary(case, f"{name}_aspect", boxes[:, 3] / boxes[:, 2])


OPS = {
    "flip": "hflip",
    "hue": "adjust_hue",
    "grayscale": "rgb_to_grayscale",
    "blur": "gaussian_blur",
    "solarize": "solarize",
}


@pytest.mark.parametrize("case", cases("stochastic", "dinov2_augmentation_rates"))
def test_golden_augmentation_rates(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often each operation meets a row; rows of the first view are black, of the second white."""
    batch = case.hyper["n"]
    met: dict[str, list[int]] = {}

    def stand_in(name: str) -> Any:
        def op(x: Tensor, *_parameters: Tensor, **_options: int) -> Tensor:
            white = int(x.flatten(1).amin(1).sum())
            met[name] = [met.get(name, [0, 0])[0] + len(x) - white, met.get(name, [0, 0])[1] + white]
            return x

        return op

    for name in (*OPS, "brightness", "contrast", "saturation"):
        monkeypatch.setattr(image_ops, name, stand_in(name))
    modality = Image.Config(size=5, local_size=5, patch=5).build()
    pixels = torch.cat([torch.zeros(batch, 3, 5, 5), torch.full((batch, 3, 5, 5), 255)])
    raw = {"global": pixels, "local": pixels[:batch], "sample_id": torch.arange(batch)}
    for role in ("global", "local"):
        met.clear()
        plan = ViewPlan(num_global=2, num_local=1)
        given = {role: raw[role], "sample_id": raw["sample_id"]}
        modality.views({"image": given}, {"image": plan}, RowRandom((1, 0), 0, batch, batch))
        for view in ("global1", "global2") if role == "global" else ("local",):
            for name, official in OPS.items():
                found = met.get(name, [0, 0])[view == "global2"]
                near(case, f"rate_{view}_{official}", found / batch)


@pytest.mark.parametrize("case", cases("stochastic", "ibot_mask"))
def test_golden_ibot_masks(case: Case) -> None:
    hyper, rng = case.hyper, np.random.default_rng(0)
    grid, n = (hyper["H"], hyper["W"]), hyper["n"]
    tokens, smallest = grid[0] * grid[1], (min(grid) // 3) ** 2
    masks = []
    for _ in range(n):
        which = rng.integers(len(hyper["ratio"]))
        ratio, spread = hyper["ratio"][which], hyper["var"][which]
        request = max(ratio + rng.uniform(-spread, spread), 0) * tokens if ratio else 0.0
        if hyper["shape"] == "rand":
            masks.append(random_mask(rng, tokens, int(request)))
        else:
            masks.append(block_mask(rng, grid, request, tokens, smallest))
    hidden = np.stack(masks)  # [n, N]
    counts = hidden.sum(1)
    near(case, "count_hist", np.bincount(counts, minlength=tokens + 1))
    near(case, "frac_unmasked", (counts == 0).mean())
    near(case, "position_freq", hidden.mean(0).reshape(grid))
    summary(case, "ratio_when_masked", counts[counts > 0] / tokens)


@pytest.mark.parametrize("case", cases("stochastic", "simmim_mask"))
def test_golden_simmim_masks(case: Case) -> None:
    hyper = case.hyper
    side, square, n = hyper["input"] // hyper["ps"], hyper["mp"] // hyper["ps"], hyper["n"]
    plan = ViewPlan(num_global=1, mask_ratio=(hyper["ratio"], hyper["ratio"]))
    rng = RowRandom((0, 0), 0, n, n)
    mask = draw_masks(plan, "random", (side, side), 1, rng, square)[0]
    assert mask.num_hidden == num_hidden(plan, "random", side**2, n, square)
    near(case, "count", mask.num_hidden)
    near(case, "grid", (side, side))
    near(case, "position_freq", mask.hidden.double().mean(0).reshape(side, side))
    squares = mask.hidden.reshape(n, side // square, square, side // square, square)
    assert (squares == squares[:, :, :1, :, :1]).all(), "a square is hidden in part"


@pytest.mark.parametrize("case", cases("stochastic", "ijepa_masks"))
def test_golden_ijepa_masks(case: Case) -> None:
    hyper, grid = case.hyper, tuple(case.hyper["grid"])
    batch, tokens, steps = hyper["B"], grid[0] * grid[1], hyper["n_batches"]
    plan = ViewPlan(
        num_global=1,
        num_masks=hyper["npred"],
        mask_ratio=tuple(hyper["pred"]),
        context_ratio=tuple(hyper["enc"]),
        num_contexts=hyper["nenc"],
        target_aspect=tuple(hyper["ar"]),
    )
    lengths: dict[str, list[int]] = {"enc": [], "pred": []}
    seen = {name: np.zeros(tokens) for name in lengths}
    for step in range(steps):
        rng = RowRandom((0, step), 0, batch, batch)
        contexts, targets = draw_multiblock(
            plan, "block", grid, rng, reference=True, fewest=hyper["min_keep"]
        )
        for name, places in (("enc", contexts), ("pred", targets)):
            lengths[name].append(places.shape[-1])
            seen[name] += np.bincount(places.flatten(), minlength=tokens) / len(places.flatten(0, -2))
        masks = as_masks(contexts, targets, tokens, tokens)
        shown = torch.stack([~m.hidden for m in masks[: hyper["nenc"]]]).any(0)
        assert not any((shown & m.hidden).any() for m in masks[hyper["nenc"] :])
    near(case, "overlap_mean", 0.0)
    for name, found in lengths.items():
        near(case, f"{name}_position_freq", (seen[name] / steps).reshape(grid))
        summary(case, f"{name}_len", np.array(found))
