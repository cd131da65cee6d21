"""Training configurations of facebookresearch/dinov2 as recipes: which option a field becomes, and which it does not.

A configuration is what its authors' code merges over its defaults, so a file names the fields that differ. Lengths are
counted in epochs of `OFFICIAL_EPOCH_LENGTH` steps, which have nothing to do with the data; the batch is that of a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from multissl.configs.shared.common import watched
from multissl.encoders.transformer import TransformerEncoder, vit
from multissl.engine.batches import Data
from multissl.engine.checkpoint import Save
from multissl.engine.optim.adamw import AdamW
from multissl.layers.heads import PrototypeHead
from multissl.layers.positions import Position
from multissl.layers.teacher import Teacher
from multissl.modalities.image.adapter import Image
from multissl.objectives.dino import DINO
from multissl.plain_data import parse_yaml
from multissl.recipe import Recipe
from multissl.registry import suggest

DEFAULTS = Path(__file__).with_name("dinov2_defaults.yaml")
ARCHITECTURES = {"vit_small": "s", "vit_base": "b", "vit_large": "l", "vit_giant2": "g"}
Fields = dict[str, Any]
"""Values by the dotted names of fields."""
CHOICES: dict[str, tuple[str, ...]] = {
    "student.arch": tuple(ARCHITECTURES),
    "student.ffn_layer": ("mlp", "swiglu", "swiglufused"),
    "train.centering": ("centering", "sinkhorn_knopp"),
    "optim.scaling_rule": ("sqrt_wrt_1024",),
}
POSITIVE = (
    "dino.head_n_prototypes", "dino.head_bottleneck_dim", "dino.head_nlayers", "dino.head_hidden_dim",
    "ibot.head_n_prototypes", "ibot.head_bottleneck_dim", "ibot.head_nlayers", "ibot.head_hidden_dim",
    "train.batch_size_per_gpu", "train.OFFICIAL_EPOCH_LENGTH", "student.patch_size", "optim.epochs",
    "crops.global_crops_size", "crops.local_crops_size",
)  # fmt: skip
"""Whole numbers that begin at 1; all others begin at 0."""
NO_COUNTERPART = {
    "MODEL.WEIGHTS": "a checkpoint of their training cannot be gone on with; --init starts from its weights",
    "train.output_dir": "give --out FOLDER to multissl train",
    "train.saveckp_freq": "their code does not read it either; save.every is the steps between checkpoints",
    "train.cache_dataset": "samples are read from their files; nothing is cached",
    "student.block_chunks": "blocks are sharded one by one (parallel.shard); it changes no number",
    "student.qkv_bias": "the linear of queries and values always has a bias",
    "student.proj_bias": "the linear after attention always has a bias",
    "student.ffn_bias": "the linears of feed-forward nets always have biases",
    "optim.lr": "their code overwrites it with the scaled optim.base_lr",
}
"""Fields that become no option, and why. Biases matter where they are switched off."""
OTHER_MEANING = {
    "train.batch_size_per_gpu": "batch_size is that of all GPUs together: {batch} = {gpus} GPUs (--gpus) of this many",
    "train.OFFICIAL_EPOCH_LENGTH": "lengths are steps: {length} for each epoch of theirs, whatever the data",
    "train.dataset_path": "data says where pictures lie: {data}",
    "train.num_workers": "data.workers, for each GPU; -1 instead leaves one core to the training",
    "optim.base_lr": "optim.lr with optim.lr_scaling=sqrt, for a batch of 1024: {lr:.4g} at this batch",
    "optim.epochs": "steps={steps}, by OFFICIAL_EPOCH_LENGTH",
    "optim.warmup_epochs": "optim.warmup={warmup} steps, from 0",
    "optim.min_lr": "optim.final_lr, which is not scaled by the batch, in both",
    "optim.freeze_last_layer_epochs": "objective.freeze_last_layer={frozen} steps",
    "optim.clip_grad": "clip with clip_per=module: backbone and heads apart, as their code does",
    "teacher.warmup_teacher_temp_epochs": "objective.teacher_temperature_steps={sharpening} steps",
    "student.ffn_layer": "encoders.image.ffn; swiglufused computes what swiglu does",
    "ibot.mask_ratio_min_max": "objective.mask_ratio, spread over modality.mask_group pictures: a GPU's batch",
    "dino.koleo_loss_weight": "objective.koleo_weight, among objective.koleo_group pictures: a GPU's batch",
    "evaluation.eval_period_iterations": "steps between k-NN and collapse checks (evals), and between kept checkpoints",
}
"""Fields whose option counts, scales or groups in another way, and how."""
PRECISION = "compute_precision"
PRECISION_WHY = (
    "fp16 with a scaler and its sharding: here bf16 on GPUs with weights, averages and sums in fp32 "
    "(parallel.precision), sharded by parallel.shard"
)


class Imported(NamedTuple):
    """A recipe made of a configuration, and what became of its fields."""

    recipe: Recipe
    absent: dict[str, str]
    """Fields that have no counterpart, and why."""
    changed: dict[str, str]
    """Fields that mean something else here, and what."""


def import_dinov2(path: Path, gpus: int = 1) -> Imported:
    """Return the recipe of a training configuration, which ran on so many GPUs."""
    if gpus < 1:
        raise ValueError(f"--gpus {gpus}: want the number of GPUs that the configuration is for, 1 or more")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error})") from None
    given = parse_yaml(text, str(path))
    if not isinstance(given, Mapping):
        raise ValueError(f"{path}: want the fields of a training configuration of DINOv2")
    said = dict(leaves(given))
    defaults = dict(leaves(parse_yaml(DEFAULTS.read_text(encoding="utf-8"), str(DEFAULTS))))
    own = {name: value for name, value in said.items() if not name.startswith(f"{PRECISION}.")}
    if not own.keys() & defaults.keys():
        raise ValueError(
            f"{path} has no field of a training configuration of DINOv2, such as student.arch or optim.epochs"
        )
    fields = defaults | {n: checked(str(path), n, v, defaults[n]) for n, v in own.items() if n in defaults}
    try:
        recipe = recipe_of(fields, gpus)
    except ValueError as error:  # values that do not go together, in the words of our options
        raise ValueError(f"{path}: {error}") from None
    absent = {n: f"no field of DINOv2's configuration{suggest(n, defaults)}" for n in own.keys() - defaults}
    absent |= NO_COUNTERPART
    absent |= {n: PRECISION_WHY for n in said if n.startswith(f"{PRECISION}.")}
    return Imported(recipe, absent, meanings(recipe, fields, gpus))


def leaves(tree: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of nested mappings with their dotted names."""
    for key, value in tree.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def checked(file: str, name: str, value: Any, default: Any) -> Any:
    """Return a field's value; raise a ValueError where it is not of the kind of its default, or out of range."""
    if isinstance(default, float) and isinstance(
        value, str
    ):  # YAML 1.1 reads 2e-4, without a point, as a text
        value = number(value)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    low = 1 if name in POSITIVE else 0
    kinds: dict[type, tuple[Callable[[Any], bool], str]] = {
        bool: (lambda v: True, "true or false"),
        int: (lambda v: v >= low, f"a whole number, {low} or more"),
        float: (lambda v: 0 <= v < math.inf, "a number, 0 or more"),
        str: (lambda v: v in CHOICES.get(name, (v,)), f"one of {', '.join(CHOICES.get(name, ('any text',)))}"),
        list: (lambda v: len(v) == 2 and all(type(x) in (int, float) for x in v), "two numbers, such as [0.1, 0.5]"),
    }  # fmt: skip
    allows, expected = kinds[type(default)]
    if type(value) is not type(default) or not allows(value):
        raise ValueError(f"{file}: {name}={value!r}: want {expected}")
    return value


def number(text: str) -> float | str:
    """Return the number that a text spells, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def pair(values: list[float]) -> tuple[float, float]:
    """Return both ends of a range."""
    return float(values[0]), float(values[1])


def data_of(dataset: str) -> str:
    """Return the folder that a data set's path names as its root, "" where it names none."""
    roots = [part.removeprefix("root=") for part in dataset.split(":") if part.startswith("root=")]
    return roots[-1] if roots else ""


def recipe_of(fields: Fields, gpus: int) -> Recipe:
    """Return the recipe of a whole configuration."""
    length, local_batch = fields["train.OFFICIAL_EPOCH_LENGTH"], fields["train.batch_size_per_gpu"]
    every = fields["evaluation.eval_period_iterations"]
    return Recipe(
        modality=Image.Config(
            data=data_of(fields["train.dataset_path"]),
            patch=fields["student.patch_size"],
            size=fields["crops.global_crops_size"],
            local_size=fields["crops.local_crops_size"],
            global_scale=pair(fields["crops.global_crops_scale"]),
            local_scale=pair(fields["crops.local_crops_scale"]),
            mask_group=local_batch,
        ),
        encoders={"image": encoder_of(fields)},
        objective=objective_of(fields, length, local_batch),
        optim=optimizer_of(fields, length),
        init=fields["student.pretrained_weights"],
        batch_size=local_batch * gpus,
        steps=fields["optim.epochs"] * length,
        seed=fields["train.seed"],
        clip=fields["optim.clip_grad"],
        clip_per="module",
        data=Data(workers=fields["train.num_workers"]),
        evals=watched(every=every),
        save=Save(every=length, keep_every=every),
    )


def encoder_of(fields: Fields) -> TransformerEncoder.Config:
    """Return the student."""
    return vit(
        ARCHITECTURES[fields["student.arch"]],  # type: ignore[arg-type]
        drop_path=fields["student.drop_path_rate"],
        drop_path_shape="uniform" if fields["student.drop_path_uniform"] else "linear",
        layerscale=fields["student.layerscale"],
        ffn="mlp" if fields["student.ffn_layer"] == "mlp" else "swiglu",
        registers=fields["student.num_register_tokens"],
        position=Position(
            offset=fields["student.interpolate_offset"], antialias=fields["student.interpolate_antialias"]
        ),
    )


def head_of(fields: Fields, part: str) -> PrototypeHead.Config:
    """Return a head."""
    return PrototypeHead.Config(
        prototypes=fields[f"{part}.head_n_prototypes"],
        bottleneck=fields[f"{part}.head_bottleneck_dim"],
        layers=fields[f"{part}.head_nlayers"],
        hidden=fields[f"{part}.head_hidden_dim"],
    )


def objective_of(fields: Fields, length: int, local_batch: int) -> DINO.Config:
    """Return losses, heads, targets and teacher."""
    moving = fields["train.centering"] == "centering"
    return DINO.Config(
        dino_weight=fields["dino.loss_weight"],
        ibot_weight=fields["ibot.loss_weight"],
        koleo_weight=fields["dino.koleo_loss_weight"],
        koleo_group=local_batch,
        num_local=fields["crops.local_crops_number"],
        mask_ratio=pair(fields["ibot.mask_ratio_min_max"]),
        mask_share=fields["ibot.mask_sample_probability"],
        head=head_of(fields, "dino"),
        tied_heads=not fields["ibot.separate_head"],
        ibot_head=head_of(fields, "ibot"),
        teacher=Teacher.Config(
            ema=fields["teacher.momentum_teacher"], final_ema=fields["teacher.final_momentum_teacher"]
        ),
        teacher_temperature_start=fields["teacher.warmup_teacher_temp"],
        teacher_temperature=fields["teacher.teacher_temp"],
        teacher_temperature_steps=fields["teacher.warmup_teacher_temp_epochs"] * length,
        freeze_last_layer=fields["optim.freeze_last_layer_epochs"] * length,
        centering="ema" if moving else "sinkhorn",
        center_lazy=moving,
        center_weighting="equal" if moving else "count",
        reference_counts=True,
    )


def optimizer_of(fields: Fields, length: int) -> AdamW.Config:
    """Return AdamW with its schedules."""
    return AdamW.Config(
        lr=fields["optim.base_lr"],
        lr_scaling="sqrt",
        warmup=fields["optim.warmup_epochs"] * length,
        final_lr=fields["optim.min_lr"],
        weight_decay=fields["optim.weight_decay"],
        final_weight_decay=fields["optim.weight_decay_end"],
        layer_decay=fields["optim.layerwise_decay"],
        patch_lr=fields["optim.patch_embed_lr_mult"],
        betas=(fields["optim.adamw_beta1"], fields["optim.adamw_beta2"]),
        decay_tokens=True,
    )


def meanings(recipe: Recipe, fields: Fields, gpus: int) -> dict[str, str]:
    """Return what the fields that count in another way are here."""
    length, data = fields["train.OFFICIAL_EPOCH_LENGTH"], data_of(fields["train.dataset_path"])
    values = {
        "batch": recipe.batch_size,
        "gpus": gpus,
        "length": length,
        "data": data
        or "give --data FOLDER, as the path names no root; without it the built-in pictures are read",
        "lr": recipe.optim.lr * math.sqrt(recipe.batch_size / 1024),
        "steps": recipe.steps,
        "warmup": recipe.optim.warmup,
        "frozen": fields["optim.freeze_last_layer_epochs"] * length,
        "sharpening": fields["teacher.warmup_teacher_temp_epochs"] * length,
    }
    return {name: text.format(**values) for name, text in OTHER_MEANING.items()}


def as_yaml(recipe: Recipe) -> str:
    """Return a recipe as the YAML file that `multissl train` reads."""
    import yaml

    from multissl.config import to_dict

    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def described(imported: Imported) -> str:
    """Return the lines that say what became of the fields."""
    parts = (
        ("without a counterpart here", imported.absent),
        ("that mean something else here", imported.changed),
    )
    lines: list[str] = []
    for title, fields in parts:
        lines.append(f"{len(fields)} fields {title}:")
        lines += [f"  {name:<34} {why}" for name, why in fields.items()]
    return "\n".join(lines)
