"""Golden cases of the family `dinov2_step`: whole DINOv2 training iterations, by the learner and optimizer of a run.

Covered: dinov2_training_steps (losses, gradients, clipping norms, weights, teacher and centers after some steps).
"""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from multissl.contract.data import Batch, Views
from multissl.contract.encoder import build_encoders
from multissl.contract.learning import Progress
from multissl.contract.plans import StreamSpec
from multissl.encoders.transformer import TransformerEncoder
from multissl.engine.learner import Learner
from multissl.engine.optim.adamw import AdamW
from multissl.engine.optim.base import Optimizer
from multissl.layers.heads import PrototypeHead
from multissl.layers.positions import Position
from multissl.layers.teacher import Teacher
from multissl.modalities.views import pack_masks
from multissl.objectives.dino import DINO
from multissl.parallel.gradients import clip_gradients
from multissl.schedules import constant
from multissl.weights.loading import load_state
from tests.golden import Case, cases

pytestmark = pytest.mark.reference

PATCH = 14


def head_config(state: dict[str, Tensor], name: str) -> PrototypeHead.Config:
    widths = [t.shape for n, t in state.items() if n.startswith(f"{name}.mlp.") and n.endswith("weight")]
    prototypes, bottleneck = state[f"{name}.last_layer.weight_v"].shape
    return PrototypeHead.Config(
        prototypes=prototypes, bottleneck=bottleneck, hidden=widths[0][0], layers=len(widths)
    )


def side(case: Case, name: str) -> dict[str, Tensor]:
    return {
        n.removeprefix(f"{name}."): t for n, t in case.tensors("param").items() if n.startswith(f"{name}.")
    }


def backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}


# long: the whole published setting in one place
def build(case: Case) -> tuple[Learner, Optimizer, list[float]]:
    """Learner and optimizer of the case, with its weights; and its teacher temperatures."""
    hyper, student, teacher = case.hyper, side(case, "student"), side(case, "teacher")
    grid = hyper["G"] // PATCH
    spec = StreamSpec(
        kind="grid", shape=(3, hyper["G"], hyper["G"]), num_tokens=grid * grid, patch=(PATCH, PATCH)
    )
    encoder = TransformerEncoder.Config(
        dim=hyper["D"],
        depth=hyper["depth"],
        heads=hyper.get("heads", 2),  # not stored: 2 reproduces the values
        layerscale=1.0,
        ffn="mlp" if hyper["ffn"] == "mlp" else "swiglu",
        registers=hyper["reg"],
        position=Position(offset=0.0, antialias=True) if hyper["reg"] else Position(),  # the official pairing
    )
    encoders = build_encoders({"image": encoder}, {"image": spec})
    heads = [head_config(student, n) for n in ("dino_head", "ibot_head") if f"{n}.mlp.0.weight" in student]
    frozen = sum(1 for rate in hyper["ll"] if rate == 0)
    objective = DINO(
        DINO.Config(
            dino_weight=hyper["w_dino"],
            koleo_weight=hyper["w_koleo"],
            ibot_weight=hyper["w_ibot"],
            koleo_group=max(hyper["B"], 2),
            num_local=hyper["nl"],
            head=heads[0],
            ibot_head=heads[-1],
            tied_heads=not hyper["sep"],
            centering="ema" if hyper["centering"] == "centering" else "sinkhorn",
            center_lazy=True,
            center_weighting="equal",
            reference_counts=True,
            freeze_last_layer=frozen,
            teacher=Teacher.Config(ema=hyper["mom"], final_ema=hyper["mom"]),
        ),
        encoders,
        {"image": spec},
    )
    load_state(encoders["image"], backbone(student))
    load_state(objective.teacher["encoders"]["image"], backbone(teacher))
    for which, state in ((objective.teacher.now, teacher), (vars(objective)["_modules"], student)):
        for name in ("dino_head", "ibot_head"):
            own = {n.removeprefix(f"{name}."): t for n, t in state.items() if n.startswith(f"{name}.")}
            if own:
                which[name].load_state_dict(own)
    learner = Learner(encoders, objective)
    optim = AdamW.Config(
        lr=hyper["lr"],
        final_lr=hyper["lr"],
        weight_decay=hyper["wd"],
        layer_decay=hyper.get("layer_decay", 0.9),
        patch_lr=hyper.get("patch_lr", 0.2),
        decay_tokens=True,
    )
    return learner, optim.build(learner, objective.param_rules(), 1024), hyper["temps"]


def batch_of(case: Case, given: dict[str, Tensor], step: int) -> Batch:
    x, hidden = given[f"global_u8_{step}"], given[f"masks_{step}"].bool()
    mask = pack_masks(hidden, int(given[f"upperbound_{step}"]))
    views = [Views(x=x.float() / 128 - 1, stream="image", role="global", num_views=2, masks=(mask,))]
    if case.hyper["nl"]:
        x = given[f"local_u8_{step}"].float() / 128 - 1
        views.append(Views(x=x, stream="image", role="local", num_views=case.hyper["nl"]))
    return Batch(views)


def official_names(learner: nn.Module) -> dict[str, str]:
    """Our parameter names by those of the case: backbone.*, dino_head.*, ibot_head.*."""
    found = {}
    for name, _ in learner.named_parameters():
        short = name.replace("encoders.image.", "backbone.").replace("tokenizer.", "").replace("trunk.", "")
        found[short.removeprefix("objective.")] = name
    return found


@pytest.mark.parametrize("case", cases("dinov2_step", "dinov2_training_steps"))
def test_golden_training_steps(case: Case) -> None:
    learner, optimizer, temperatures = build(case)
    objective, given, out = learner.objective, case.tensors("in"), case.tensors("out")
    assert isinstance(objective, DINO)
    names, parameters = official_names(learner), dict(learner.named_parameters())
    for step in range(case.hyper["steps"]):
        progress = Progress(step=step, total=1000)
        objective.temperature = constant(temperatures[step])
        losses = learner(batch_of(case, given, step), progress)
        learner.backward(losses)
        case.check(losses.total, "out", f"total_{step}")
        hyper, terms = case.hyper, losses.terms
        shown = {
            "dino_global_crops_loss": terms["dino_global"],
            "dino_local_crops_loss": terms.get("dino_local"),
            "ibot_loss": terms["ibot"] / 2 if hyper["w_ibot"] else None,
            "koleo_loss": hyper["w_koleo"] * terms["koleo"] / 2 if hyper["w_koleo"] else None,
        }
        for name, value in shown.items():
            if f"{name}_{step}" in out:
                case.check(value, "out", f"{name}_{step}")
        if step == 0:
            for name in case.tensors("grad"):
                case.check(parameters[names[name]].grad, "grad", name)
        norms = clip_gradients(learner.clip_groups("module"), 3.0)
        for group, name in (
            ("encoders.image", "backbone"),
            ("objective.dino_head", "dino_head"),
            ("objective.ibot_head", "ibot_head"),
        ):
            if f"grad_norm_{name}_{step}" in out:
                case.check(
                    norms[group].to(out[f"grad_norm_{name}_{step}"].dtype), "out", f"grad_norm_{name}_{step}"
                )
        optimizer.step(progress)
        optimizer.zero_grad()
        objective.after_step(learner.encoders, progress)
    for name in out:
        which, _, rest = name.partition("_")
        if which == "student":
            case.check(parameters[names[rest]], "out", name)
        elif which == "teacher":
            ours = f"objective.teacher.now.{names[rest].removeprefix('objective.')}"
            case.check(parameters[ours], "out", name)
    for name in ("dino", "ibot"):
        if f"{name}_center" in out:
            center = objective.centers.get_submodule(name).get_buffer("center")
            case.check(center.view_as(out[f"{name}_center"]), "out", f"{name}_center")
