"""Golden: schedules_groups (DINOv2 schedules and parameter groups) and optim_ema (LARS, clipping)."""

from __future__ import annotations

import json
import types
from typing import Any

import pytest
import torch
from torch import nn

from multissl.contract.encoder import Encoder
from multissl.contract.learning import ParamRule
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.lars import TorchLARS
from multissl.engine.optim.treatment import kinds_of, treatment
from multissl.layers.heads import PrototypeHead
from multissl.parallel.gradients import clip_gradients
from multissl.schedules import Schedule, ramp
from tests.golden import Case, cases

NOT_COVERED = {
    "schedules_groups/peer_schedules (all but dino)": "I-JEPA, MAE, lightly and VICReg count their steps differently",
    "schedules_groups/mae_finetune_groups": "fine-tuning is not a pretraining objective",
}


@pytest.mark.parametrize("case", cases("schedules_groups", "dinov2_cosine"))
def test_golden_cosine(case: Case) -> None:
    h = case.hyper
    s = Schedule(base=h["base"], final=h["final"], warmup=h["warmup"], start=h["start"], freeze=h["freeze"])
    expected = case.tensors("out")["schedule"]
    ours = torch.tensor([s.at(i, h["total"]) for i in range(len(expected))], dtype=expected.dtype)
    case.check(ours, "out", "schedule")


@pytest.mark.parametrize("case", cases("schedules_groups", "dinov2_training_schedules"))
def test_golden_training_schedules(case: Case) -> None:
    h, length = case.hyper, case.hyper["L"]
    total = h["epochs"] * length
    ours = {
        "lr": Schedule(base=h["lr"], final=h["min_lr"], warmup=h["warm"] * length),
        "wd": Schedule(base=h["wd"], final=h["wde"]),
        "momentum": Schedule(base=h["mt"], final=h["fm"]),
        "teacher_temp": ramp(h["wtt"], h["tt"], h["wte"] * length),
    }
    for name, schedule in ours.items():
        expected = case.tensors("out")[name]
        values = torch.tensor([schedule.at(i, total) for i in range(len(expected))], dtype=expected.dtype)
        case.check(values, "out", name)
    expected = case.tensors("out")["last_layer_lr"]
    frozen = h["fl"] * length
    values = [ours["lr"].at(i, total) if i >= frozen else 0.0 for i in range(len(expected))]
    case.check(torch.tensor(values, dtype=expected.dtype), "out", "last_layer_lr")


@pytest.mark.parametrize("case", cases("schedules_groups", "peer_schedules"))
def test_golden_dino_schedule(case: Case) -> None:
    h = case.hyper
    s = Schedule(base=h["base"], final=h["final"], start=h["start"], warmup=h["warm"] * h["ipe"])
    expected = case.tensors("out")["dino"]
    total = h["epochs"] * h["ipe"]
    ours = torch.tensor([s.at(i, total) for i in range(len(expected))], dtype=expected.dtype)
    case.check(ours, "out", "dino")


@pytest.mark.parametrize("case", cases("schedules_groups", "dinov2_param_groups"))
def test_golden_param_groups(case: Case) -> None:
    h, out = case.hyper, case.tensors("out")
    cfg = AdamW.Config(layer_decay=h["decay"], patch_lr=h["pe"], decay_tokens=True)
    encoder, head = encoder_of(h), PrototypeHead.Config().build(h["D"])
    rule = ParamRule(of=head.last_layer, frozen_steps=1)
    resting, kinds = {id(p) for p in rule.parameters()}, kinds_of(nn.ModuleList([encoder, head]))
    for part, depth, parameters in (
        ("backbone", h["depth"], official_parameters(encoder)),
        ("head", 0, dict(head.named_parameters())),
    ):
        names = json.loads(bytes(out[f"{part}_names_json"].tolist()))
        chunked = any(unchunked(name) != name for name in names)
        assert chunked == (part == "backbone" and h["chunks"] > 0)
        ours = []
        for name in names:
            place = id(parameters[unchunked(name)])
            rules = [rule] if place in resting else []
            ours.append(treatment(kinds[place], official_layer(name, depth), depth, cfg, rules))
        for name, values in {
            "lr_mult": [t.lr for t in ours], "wd_mult": [t.decay for t in ours],
            "is_last": [float(t.frozen_steps > 0) for t in ours],
        }.items():  # fmt: skip
            expected = out[f"{part}_{name}"]
            case.check(torch.tensor(values, dtype=expected.dtype), "out", f"{part}_{name}")


def encoder_of(h: dict[str, Any]) -> Encoder:
    """Our encoder of a case."""
    ffn = "mlp" if h["ffn"] == "mlp" else "swiglu"
    config = TransformerEncoder.Config(
        dim=h["D"], depth=h["depth"], heads=h["heads"], registers=h["reg"], layerscale=h["ls"], ffn=ffn
    )
    spec = StreamSpec(kind="grid", shape=(3, h["img"], h["img"]), patch=(14, 14), num_tokens=4)
    return config.build(spec)


def official_parameters(encoder: Encoder) -> dict[str, nn.Parameter]:
    """Our encoder's parameters by their official names, which lack `tokenizer.` and `trunk.`."""
    return {n.removeprefix("tokenizer.").removeprefix("trunk."): p for n, p in encoder.named_parameters()}


def unchunked(name: str) -> str:
    """blocks.i.rest for blocks.chunk.i.rest."""
    if not name.startswith("blocks."):
        return name
    rest = name.split(".")[1:]
    return ".".join(["blocks", str(block_number(name)), *rest[1 + rest[1].isdigit() :]])


def official_layer(name: str, depth: int) -> int:
    if name.startswith("blocks."):
        return block_number(name) + 1
    inputs = ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")
    return 0 if name.startswith(inputs) else depth + 1


def block_number(name: str) -> int:
    """i of blocks.i.rest and of blocks.chunk.i.rest."""
    numbers = [part for part in name.split(".")[1:3] if part.isdigit()]
    return int(numbers[-1])


@pytest.mark.parametrize("case", cases("optim_ema", "lars"))
def test_golden_lars(case: Case) -> None:
    h, given = case.hyper, case.tensors("in")
    count = len(h["shapes"])
    for code in ("barlow", "vicreg", "mocov3", "lightly"):
        ps = [nn.Parameter(given[f"p_{i}"].clone()) for i in range(count)]
        options: dict[str, Any] = {"norms": "separate", "exclude_vectors": False} if code == "lightly" else {}
        lars = TorchLARS([{"params": ps, "weight_decay": h["wd"]}], h["lr"], h["m"], h["eta"], **options)
        for step in range(h["steps"]):
            for i, p in enumerate(ps):
                p.grad = given[f"g_{step}_{i}"].clone()
            lars.step()
            for i, p in enumerate(ps):
                case.check(p, "out", f"{code}_{step}_{i}")


@pytest.mark.parametrize("case", cases("optim_ema", "ema_and_clip"))
def test_golden_clipping_of_each_parameter(case: Case) -> None:
    given: dict[str, Any] = case.tensors("in")
    holders = {n: types.SimpleNamespace(grad=given[f"grad_{n}"]) for n in ("w", "b")}
    parameters = {}
    for name, holder in holders.items():
        p = nn.Parameter(torch.zeros_like(holder.grad))
        p.grad = holder.grad.clone()
        parameters[name] = [p]
    norms = clip_gradients(parameters, case.hyper["clip"])
    for name, (p,) in parameters.items():
        case.check(p.grad, "out", f"clipped_{name}")
    expected = case.tensors("out")["norms"]
    case.check(torch.stack([norms["w"], norms["b"]]).reshape(expected.shape), "out", "norms")


@pytest.mark.parametrize("what", NOT_COVERED)
def test_golden_not_covered(what: str) -> None:
    pytest.skip(f"{what}: {NOT_COVERED[what]}")
