from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from multissl import catalogue, cli, commands, options

ROOT = Path(__file__).parents[1]
STUB = f"{ROOT / 'tests' / 'helpers' / 'stubs.py'}:recipe"


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["list"],
        ["list", "--matrix"],
        ["train", "imgae"],
        ["trian", "image"],
        ["train", "simclr"],
        ["train", "--help"],
        ["completion", "--words", "train", "image/s"],
        ["eval", "hf:someone/nothing"],
        ["train", "image", "--init", "timm:vit_tiny_patch16_224"],
    ],
)
def test_what_needs_no_torch_imports_none(
    args: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    code = f"import sys; from multissl.cli import main; main({args!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_list_names_recipes_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "tabular"]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "tabular/default" in line)
    assert re.search(
        r"600 steps of 128, transformer 64 x 2 +measured +Denoising and mask prediction on rows", line
    )


def test_list_without_a_word_counts_the_recipes_of_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    count = len(catalogue.matching(["tabular"]))
    line = next(line for line in lines if line.startswith("  tabular "))
    assert f"{count} recipes" in line
    assert "tabular/default: Denoising and mask prediction on rows" in line
    assert "loggers: tensorboard, wandb, mlflow" in lines
    assert len(lines) < 40


@pytest.mark.parametrize(
    ("recipe", "folder"),
    [
        ("image", "image"),
        ("image/simclr_cifar", "image-simclr_cifar"),
        ("mine.py", "mine"),
        ("/a/b/mine.py:recipe", "mine-recipe"),
    ],
)
def test_a_run_lies_in_a_folder_called_as_its_recipe(recipe: str, folder: str) -> None:
    assert cli.folder_name(recipe) == folder


def test_list_keeps_the_recipes_that_match_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*words: str) -> list[str]:
        assert cli.main(["list", *words]) == 0
        return [
            line.split()[0]
            for line in capsys.readouterr().out.splitlines()
            if line.startswith("  ") and line[2] != " "
        ]

    assert listed("image") == [name for name in catalogue.entries() if name.startswith("image/")]
    assert listed("resnet50", "simclr") == ["image/simclr_resnet50"]
    assert "image/simclr_cifar" in listed("SimCLR")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("loggers", "loggers: tensorboard, wandb, mlflow"),
        ("wandb", "loggers: wandb"),
        ("lars", "optimizers: lars"),
    ],
)
def test_list_names_components_by_their_group_or_their_own_name(
    word: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["list", word]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_the_matrix_tells_what_runs_on_what_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--matrix"]) == 0
    text, _, backbones = capsys.readouterr().out.partition("objectives x backbones")
    assert ["infonce", "yes", "yes", "yes", "yes"] in [line.split() for line in backbones.splitlines()]
    lines = text.splitlines()
    assert "encoder: transformer" in lines[0]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["dino"][:6] == ["yes", "yes", "exp", "exp", "yes", "exp"]
    assert rows["clip"][-1] == "yes"
    refused, note = rows["clip"][:2]
    assert refused == "-"
    assert "use infonce" in next(line for line in lines if line.startswith(note))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "no command is called 'trian'; did you mean train?"),
        (["train"], "train wants a name first"),
        (["train", "tabualr"], "did you mean tabular/default?"),
        (["train", "no.yaml"], "no.yaml: no such file"),
        (["train", f"{STUB}s"], "did you mean recipe?"),
        (["train", STUB, "--objective", "vicrge"], "did you mean vicreg?"),
        (["train", "simclr"], "'simclr'; take one of image/simclr_cifar, image/simclr_resnet50"),
        (["train", "dino"], "'dino'; take one of image/dino_vits16, image/dino_cifar, audio/dino"),
        (["train", "image/simclr"], "take one of image/simclr_cifar, image/simclr_resnet50"),
        (["train", "simclrr"], "did you mean image/simclr_cifar?"),
        (["train", "mlm"], "it is an objective, which a recipe takes by --objective mlm, too"),
        (["train", STUB, "--out"], "--out wants a value"),
        (
            ["train", STUB, "--out", "x", "lone"],
            "'lone' belongs to no option: write --a.b VALUE or a.b=VALUE",
        ),
        (["train", STUB, "-lr", "3"], "-lr: an option begins with two dashes, --lr"),
        (["show", STUB, "--optim.lrr", "1"], "no option --optim.lrr; did you mean --optim.lr?"),
        (["show", STUB, "--lr", "1"], "no option --lr; did you mean --optim.lr?"),
        (["show", STUB, "optim.lrr=1"], "no option --optim.lrr; did you mean --optim.lr?"),
        (
            ["show", "image", "--objective", "vicreg", "--objective.teacher.ema", "1"],
            "no option --objective.teacher.ema",
        ),
        (
            ["show", "image", "--objective", "vicreg", "--objective.varianc", "1"],
            "did you mean --objective.variance?",
        ),
        (["show", STUB, "--epoch", "1"], "no option --epoch; did you mean --epochs?"),
        (["show", STUB, "--restrat"], "no option --restrat; multissl train NAME --help lists them all"),
        (["train", STUB, "--restrat"], "no option --restrat; did you mean --restart?"),
        (["show", STUB, "--steps.x", "1"], "no option --steps.x"),
        (["show", STUB, "--batch-size", "0"], "batch_size=0: want 1 or more"),
        (["show", STUB, "--steps", "five"], "--steps five: want a whole number"),
        (["show", STUB, "--steps", "5", "6"], "--steps takes one value, got '5' and '6'"),
        (["show", STUB, "--optim.lr"], "--optim.lr wants a value"),
        (["show", STUB, "--optim.lr", "fast"], "--optim.lr fast: want a number"),
        (["show", STUB, "--optim.betas", "0.9"], "--optim.betas wants 2 values, got 1: 0.9"),
        (["show", STUB, "--parallel.compile", "yes"], "--parallel.compile yes: want true or false"),
        (["show", STUB, "--clip_per", "modul"], "--clip_per modul: want all, module or parameter"),
        (["show", STUB, "--epochs", "2", "--steps", "3"], "--epochs and --steps both say how long to train"),
        (
            ["show", STUB, "--encoders.pionts", "mlp"],
            "--encoders.pionts: the recipe has no stream 'pionts'; did you",
        ),
        (["show", STUB, "--encoders", "mlp"], "--encoders mlp: want --encoders.NAME"),
        (["show", STUB, "--lr_by_stream", "points"], "--lr_by_stream points: want names with values"),
        (
            ["show", STUB, "--stages", "high"],
            """--stages high: want a list in JSON, '[{"name": ..., "steps": ...""",
        ),
        (
            ["show", STUB, "--stages", '[{"name": "high"}]'],
            "--stages.0 lacks 'steps', which Stage has no default",
        ),
        (
            ["show", "image/dinov2_continue", "--evals.drift.max_loss", "-1"],
            "error: evals.drift.max_loss=-1.0: want 0 or more points",
        ),
        (
            ["train", "tabular", "--data", str(Path(__file__).parent / "modalities")],
            "modalities': a folder without tables; give a .csv",
        ),
        (["list", "simlcr"], "no recipe matches 'simlcr'; did you mean simclr?"),
        (["list", "--matirx"], "list does not take '--matirx'; did you mean --matrix?"),
        (["report", "a", "b"], "report does not take 'b'"),
        (["completion", "bsh"], "completion bsh: want bash, zsh or fish; did you mean bash?"),
        (["train", STUB, "--epochs", "many"], "--epochs many: want a number"),
        (["eval", "nowhere"], "holds no recipe.json"),
        (["encode"], "encode wants a name first"),
        (
            ["encode", "nowhere"],
            "encode wants a file to write: multissl encode nowhere --out features.parquet",
        ),
        (["encode", "imgae", "--out", "a.csv"], "did you mean image/default?"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("spelling", [["--objective.centring", "ema"], ["objective.centring=ema"]])
def test_a_renamed_option_is_refused_with_its_new_name(spelling: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"no option --objective\.centring: it is called --objective\.centering now"
    ):
        options.open_recipe("image", spelling)


@pytest.mark.parametrize(
    "spelling", [["--objective.pull", "3"], ["objective.pull=3"], ["--objective.pull=3"]]
)
def test_options_are_spelt_in_three_ways(spelling: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", STUB, *spelling]) == 0
    assert json.loads(capsys.readouterr().out)["objective"]["pull"] == 3.0


def test_a_component_can_be_swapped_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "tabular", "--objective", "dino", "--encoders.tabular", "mlp"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["objective"]["kind"], made["encoders"]["tabular"]["kind"]) == ("dino", "mlp")


def test_booleans_and_nested_options_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", STUB, "--parallel.compile", "true", "encoders.points.dim=4"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["parallel"]["compile"] is True
    assert made["encoders"]["points"]["dim"] == 4


def test_values_of_every_type_are_read() -> None:
    text = [
        "optim.learning_rate=3e-3 --optim.betas 0.8 0.95 --optim.final-weight-decay none --clip_per module",
        "--lr_by_stream points=0.5 --objective.pull -2 --init weights/a=b.safetensors steps=7",
    ]
    words = [word for line in text for word in line.split()]
    recipe, default = options.open_recipe(STUB, words)
    optim: Any = recipe.optim
    assert (optim.lr, optim.betas, optim.final_weight_decay) == (3e-3, (0.8, 0.95), None)
    objective: Any = recipe.objective
    assert (recipe.clip_per, recipe.lr_by_stream, objective.pull) == ("module", {"points": 0.5}, -2.0)
    assert (recipe.init, recipe.steps) == ("weights/a=b.safetensors", 7)
    assert (default.steps, default.clip_per, default.lr_by_stream) == (40, "all", {})
    for spelling in (
        ["--optim.betas", "0.8,0.95"],
        ["optim.betas=0.8,0.95"],
        ["--optim.betas", "[0.8, 0.95]"],
    ):
        optim = options.open_recipe(STUB, spelling)[0].optim
        assert optim.betas == (0.8, 0.95)
    for spelling in (["--lr_by_stream.points", "0.5"], ["--lr_by_stream", "points", "0.5"]):
        assert options.open_recipe(STUB, spelling)[0].lr_by_stream == {"points": 0.5}


def test_two_spellings_of_one_option_are_not_given_together() -> None:
    for words in (["--optim.lr", "2", "--optim.learning_rate", "3"], ["optim.learning_rate=3", "optim.lr=2"]):
        with pytest.raises(ValueError, match=r"another spelling of --optim\.lr: give one of the two"):
            options.open_recipe(STUB, words)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--learning_rate", r"did you mean --optim\.learning_rate\?"),
        ("--optimizer.lr", r"no option --optimizer\.lr; did you mean --optim\.lr\?"),
        ("--modality.palette", r"no option --modality\.palette; multissl train NAME --help lists them all"),
        ("--modality.grayscal", r"did you mean --modality\.grayscale\?"),
    ],
)
def test_a_mistyped_option_gets_the_one_that_was_meant_or_none(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=meant):
        options.open_recipe("image", [typed, "0.1"])


def test_limits_between_options_hold_for_what_was_asked_for() -> None:
    recipe, _ = options.open_recipe(
        "image", ["--modality.patch", "16", "--modality.size", "224", "--modality.local_size", "96"]
    )
    modality: Any = recipe.modality
    assert (modality.size, modality.patch) == (224, 16)


def test_help_names_the_command_and_what_most_runs_change(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.CALLS:
        assert cli.main([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"usage: multissl {command} ")
        assert ("--optim.lr" in said) == (command in ("train", "show"))
    assert set(cli.CALLS) == set(commands.COMMANDS)


def test_help_on_a_recipe_opens_with_the_ten_options_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "image", "--help"]) == 0
    said = capsys.readouterr().out
    before, _, after = said.partition("All options, by component")
    flags = [line.split()[0] for line in before.splitlines() if line.startswith("  --")]
    assert flags == [
        "--data", "--out", "--steps", "--epochs", "--batch_size", "--optim.lr", "--encoders.image", "--objective",
        "--seed", "--init", "--evals", "--restart",
    ]  # fmt: skip
    assert "(now 0.002)" in before
    paths = {path for path, _, _ in options.walk(catalogue.find("image")())}
    listed = [line.split()[0][2:] for line in after.splitlines() if line.startswith("  --")]
    assert len(listed) == len(set(listed)) > 100
    assert set(listed) < paths


def test_epochs_become_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", STUB, "--epochs", "2"]) == 0
    assert "are 12 steps" in capsys.readouterr().out


def test_train_restart_and_report_from_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert cli.main(["train", STUB, *out, "--steps", "10"]) == 0
    assert cli.main(["train", STUB, *out, "--steps", "10", "--objective.pull", "2"]) == 2
    assert "objective.pull: 1.0 -> 2.0" in capfd.readouterr().err
    assert cli.main(["train", STUB, *out, "--steps", "10", "--objective.pull", "2", "--restart"]) == 0
    assert (tmp_path / "run.old1" / "report.html").is_file()
    saved = tmp_path / "run" / "recipe.json"
    assert cli.main(["show", str(saved)]) == 0
    assert cli.main(["report", str(tmp_path / "run")]) == 0


def test_ctrl_c_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.CALLS, "eval", interrupted)
    assert cli.main(["eval", "run"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def seconds(*command: str) -> float:
    """Return the median processor time of three starts of Python, which other processes do not lengthen much."""
    taken: list[float] = []
    for _ in range(3):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
    return statistics.median(taken)


@pytest.mark.slow
def test_help_and_list_answer_at_once_and_a_mistyped_flag_soon() -> None:
    torch = seconds("-c", "import torch")
    assert seconds("-m", "multissl", "--help") < 0.5
    assert seconds("-m", "multissl", "list") < 0.5
    assert seconds("-m", "multissl", "train", "image", "--optim.lrr", "2e-3") < 1.5 * torch
