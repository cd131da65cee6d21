"""Whether a recipe fits: what its objective asks for beside what modality and encoders can do."""

from __future__ import annotations

from multissl.config import config_name, to_dict
from multissl.contract.encoder import Encoders
from multissl.contract.modality import Modality
from multissl.contract.objective import Objective
from multissl.contract.plans import Masking, Plans, ViewPlan
from multissl.parallel.ranks import world
from multissl.recipe import Recipe

TREATED: dict[Masking, str] = {
    "none": "read whole views", "replace": "put a mask token in the place of each hidden token",
    "drop": "leave hidden tokens out", "causal": "let each token see only those before it",
}  # fmt: skip
"""What each treatment of hidden tokens is, in words."""


def check(recipe: Recipe, modality: Modality, plans: Plans) -> None:
    """Compare what the objective asks for with what modality and encoders can do; raise a ValueError for what fails."""
    objective, named = config_name(type(recipe.objective)), config_name(type(recipe.modality))
    specs = modality.streams()
    if recipe.batch_size % world():
        raise ValueError(f"batch_size={recipe.batch_size} does not divide over {world()} ranks")
    check_present(recipe, modality, plans)
    modality.check_plans(plans)
    for stream, plan in plans.items():
        needs = {
            "local": plan.num_local > 0, "mask": plan.mask_ratio is not None, "target": plan.target,
            "corrupt": plan.corrupt, "masks": plan.num_masks > 1, "coords": plan.coords, "size": bool(plan.size),
            "larger": bool(plan.larger),
            "drop": "drop" in maskings_of(recipe, plan),
        }  # fmt: skip
        provided = modality.provides(stream)
        for need in (n for n, wanted in needs.items() if wanted and n not in provided):
            raise ValueError(
                f"{objective} asks {named} for {need} views, which it does not provide: {_way_out(need)}"
            )
        encoder = recipe.encoders[stream]
        maskings = encoder.maskings_for(specs[stream])
        for masking in sorted(maskings_of(recipe, plan) - maskings):
            raise ValueError(
                f"{objective} asks encoders.{stream} to {TREATED[masking]}, which {config_name(type(encoder))} cannot: "
                f"set --encoders.{stream} transformer, or take an objective that does not, such as --objective infonce"
            )


def check_start(recipe: Recipe) -> None:
    """Refuse what makes sense for weights to start from alone, where there are none."""
    if recipe.fit == "init" and not recipe.init:
        raise ValueError("fit=init without --init: name the run that the modality was fitted for, --init RUN")
    if recipe.frozen >= recipe.steps:
        raise ValueError(
            f"frozen={recipe.frozen} of steps={recipe.steps}: encoders would never learn; want fewer, or --locked"
        )
    if recipe.init or any(cfg.get("pretrained") for cfg in to_dict(recipe)["encoders"].values()):
        return
    for option, value, off in (("frozen", recipe.frozen, 0), ("lora.rank", recipe.lora.rank, 0)):
        if value:
            raise ValueError(
                f"{option}={value} keeps encoders at what they start from, and that would be random weights: give "
                f"--init PLACE (a run, a file, hf:NAME or timm:NAME), or --{option} {off} to train from scratch"
            )


def check_evaluators(recipe: Recipe) -> None:
    """Refuse evaluators of any stage that would score the samples that they learn from."""
    for stage in recipe.run_stages():
        where = f"stage {stage.name}: " if recipe.stages else ""
        for name, cfg in stage.recipe.evals.items():
            if cfg.owner.fits and to_dict(cfg).get("split") == "train":
                raise ValueError(
                    f"{where}evals.{name}.split=train: {config_name(type(cfg))} learns from the train split, and would "
                    "score what it has seen; want val or test"
                )


def maskings_of(recipe: Recipe, plan: ViewPlan) -> frozenset[Masking]:
    """Return what the objective will ask of an encoder under a plan: masks matter only where some are drawn."""
    maskings = recipe.objective.maskings()
    return maskings if plan.mask_ratio and not plan.corrupt else maskings - {"replace", "drop"}


def check_present(recipe: Recipe, modality: Modality, plans: Plans) -> None:
    """Refuse what takes the stand-ins of samples that lack a stream for samples."""
    if len(plans) < 2:  # a sample without the only stream that is asked for is not read
        return
    for stream, (missing, count) in modality.lacking().items():
        name = recipe.objective.reader_of_stand_ins(stream) if stream in plans else ""
        if name:
            raise ValueError(
                f"{name} takes every row of {stream} for a sample, and {missing} of {count} rows have no {stream}: "
                f"{_only_whole(modality)}take another objective, such as infonce, vicreg or dino"
            )


def check_batch_norm(modality: Modality, plans: Plans, encoders: Encoders) -> None:
    """Refuse encoders whose batch norm would take its statistics over stand-ins of samples that lack the stream."""
    if len(plans) < 2:
        return
    for stream, (missing, count) in modality.lacking().items():
        if stream in plans and encoders[stream].trains_batch_norm():
            raise ValueError(
                f"encoders.{stream} holds batch norm, whose statistics are those of all rows, and {missing} of "
                f"{count} rows have no {stream}: {_only_whole(modality)}take an encoder without batch norm, such as "
                f"transformer, or lock it (locked={stream})"
            )


def _only_whole(modality: Modality) -> str:
    option = modality.whole_option
    return f"set modality.{option}=True, which reads only rows that have every stream, or " if option else ""


def check_trainable(recipe: Recipe, encoders: Encoders, objective: Objective) -> None:
    """Refuse locks that leave nothing to train of what the run ships: encoders and heads of towers."""
    shipped = objective.exported(encoders)
    if not any(p.requires_grad for m in (encoders, shipped) for p in m.parameters()):
        raise ValueError(
            f"locked={','.join(recipe.locked)} leaves nothing to train of what {config_name(type(recipe.objective))} "
            "ships: unlock a stream, or use clip, whose heads learn a shared space of locked encoders"
        )


def _way_out(need: str) -> str:
    return {
        "local": "set its number of local views to 0",
        "mask": "switch its masked part off or take another objective",
        "larger": "leave objective.gram.size empty",
        "drop": "its rows hide unequal numbers of tokens; fill them (texts: pack=True), or replace tokens instead",
    }.get(need, "take another objective or modality")
