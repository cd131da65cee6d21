"""Configurations of DINOv2's training become recipes, and no field of them is lost without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from multissl import cli
from multissl.config import difference, to_dict
from multissl.configs.image import dino
from multissl.moving.dinov2 import DEFAULTS, NO_COUNTERPART, import_dinov2, leaves
from multissl.options import open_recipe
from multissl.plain_data import parse_yaml

LARGE = """\
dino: {head_n_prototypes: 131072, head_bottleneck_dim: 384}
ibot: {separate_head: true, head_n_prototypes: 131072}
train: {batch_size_per_gpu: 32, dataset_path: "ImageNet22k:root=/data/in22k:extra=/data", centering: sinkhorn_knopp}
student: {arch: vit_large, patch_size: 14, drop_path_rate: 0.4, ffn_layer: swiglufused, block_chunks: 4}
teacher: {momentum_teacher: 0.994}
optim: {epochs: 500, weight_decay_end: 0.2, base_lr: 2e-04, warmup_epochs: 80, layerwise_decay: 1.0}
crops: {local_crops_size: 98}
"""
"""What dinov2/configs/train/vitl14.yaml changes."""


def written(folder: Path, text: str) -> Path:
    (folder / "theirs.yaml").write_text(text)
    return folder / "theirs.yaml"


def test_the_large_configuration_is_the_recipe_of_the_paper(tmp_path: Path) -> None:
    made = import_dinov2(written(tmp_path, LARGE), gpus=96).recipe
    lines = difference(to_dict(dino.dinov2_vitl14()), to_dict(made))
    names = {str(line).split(":")[0].split(" ")[0].split("=")[0] for line in lines}
    # as often as theirs saves and loads, and the batch of a GPU instead of the 64 that the recipe has
    assert names == {
        "data.workers",
        "save.every",
        "save.keep_every",
        "objective.koleo_group",
        "modality.data",
    }


def test_the_default_configuration_is_the_short_recipe(tmp_path: Path) -> None:
    made = import_dinov2(written(tmp_path, "student: {block_chunks: 4}"), gpus=32).recipe
    lines = difference(to_dict(dino.dinov2_vitl16_in1k()), to_dict(made))
    names = {str(line).split(":")[0].split(" ")[0].split("=")[0] for line in lines}
    assert names == {"data.workers", "save.every", "save.keep_every"}


def test_the_file_trains_and_says_what_became_of_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recipe.yaml"
    text = LARGE + "compute_precision: {grad_scaler: true}\nevaluaton: {eval_period_iterations: 3}\n"
    assert cli.main(["import", str(written(tmp_path, text)), "--out", str(out), "--gpus", "96"]) == 0
    said = capsys.readouterr().out
    for part in ("3072 = 96 GPUs", "0.0003464 at this batch", "steps=625000", "compute_precision.grad_scaler",
                 "did you mean evaluation.eval_period_iterations?", f"multissl train {out}\n"):  # fmt: skip
        assert part in said
    recipe, _ = open_recipe(str(out), ["--steps", "7"])
    assert recipe.steps == 7
    assert to_dict(recipe) | {"steps": 625_000} == to_dict(import_dinov2(tmp_path / "theirs.yaml", 96).recipe)
    assert cli.main(["import", str(tmp_path / "theirs.yaml"), "--out", str(out)]) == 2  # is there already
    assert cli.main(["import", str(tmp_path / "theirs.yaml")]) == 0
    captured = capsys.readouterr()
    assert yaml.safe_load(captured.out)["batch_size"] == 32
    assert "fields without a counterpart" in captured.err


OTHER: dict[str, Any] = {
    "student.arch": "vit_small", "student.ffn_layer": "swiglu", "train.centering": "sinkhorn_knopp",
    "optim.scaling_rule": None, "student.patch_size": 8, "crops.global_crops_size": 256, "crops.local_crops_size": 128,
    "student.drop_path_rate": 0.1, "ibot.mask_sample_probability": 0.25, "optim.layerwise_decay": 0.5,
    "optim.adamw_beta1": 0.8, "optim.adamw_beta2": 0.95, "teacher.momentum_teacher": 0.9, "optim.epochs": 120,
    "teacher.final_momentum_teacher": 0.999,
    "student.interpolate_offset": 0.2, "train.dataset_path": "ImageNet:root=/here",
    "crops.global_crops_scale": [0.2, 0.9], "crops.local_crops_scale": [0.02, 0.2],
    "ibot.mask_ratio_min_max": [0.2, 0.4],
}  # fmt: skip
"""Another value of each field that takes no arbitrary one; None: it has a single one."""


def test_every_field_changes_the_recipe_or_is_listed(tmp_path: Path) -> None:
    usual = to_dict(import_dinov2(written(tmp_path, "student: {block_chunks: 4}")).recipe)
    for name, value in leaves(parse_yaml(DEFAULTS.read_text(), "defaults")):
        changed = OTHER.get(name, f"{value}other" if isinstance(value, str) else value)
        if name not in OTHER and isinstance(value, bool | int | float):
            changed = not value if isinstance(value, bool) else value + 1
        if changed is None or name.startswith("ibot.head_"):  # which counts where it is separate alone
            continue
        part, _, field = name.partition(".")
        path = written(tmp_path, yaml.safe_dump({part: {field: changed}}))
        made = import_dinov2(path)
        assert to_dict(made.recipe) != usual or name in made.absent, name
        assert (name in NO_COUNTERPART) == (name in made.absent), name


def test_ibots_head_counts_where_it_is_its_own(tmp_path: Path) -> None:
    text = "ibot: {separate_head: true, head_n_prototypes: 8, head_nlayers: 2, head_hidden_dim: 16}"
    head = import_dinov2(written(tmp_path, text)).recipe.objective.ibot_head  # type: ignore[attr-defined]
    assert (head.prototypes, head.layers, head.hidden) == (8, 2, 16)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {epochs: two}", r"optim\.epochs='two': want a whole number, 1 or more"),
        ("optim: {epochs: -3}", r"optim\.epochs=-3: want a whole number, 1 or more"),
        ("optim: {base_lr: [1]}", r"optim\.base_lr=\[1\]: want a number, 0 or more"),
        ("student: {arch: vit_huge}", r"want one of vit_small, vit_base, vit_large, vit_giant2"),
        ("optim: {scaling_rule: linear_wrt_256}", r"want one of sqrt_wrt_1024"),
        ("crops: {local_crops_scale: 0.5}", r"want two numbers"),
        ("student: {patch_size: 15}", r"want a multiple of patch=15"),
        ("model: resnet50", r"has no field of a training configuration of DINOv2"),
        ("- a\n- b", r"want the fields of a training configuration"),
        ("!!python/object/apply:os.system ['true']", r"cannot be read as YAML"),
    ],
)
def test_what_is_no_such_configuration_is_refused_in_a_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as error:
        import_dinov2(written(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "theirs.yaml" in str(error.value)
