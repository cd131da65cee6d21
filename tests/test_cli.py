from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from multissl import cli

ROOT = Path(__file__).parents[1]
STUB = f"{ROOT / 'tests' / 'helpers' / 'stubs.py'}:recipe"


@pytest.mark.parametrize(
    "args", [["--help"], ["list"], ["list", "--matrix"], ["train", "imgae"], ["trian", "image"]]
)
def test_what_needs_no_torch_imports_none(args: list[str]) -> None:
    code = f"import sys; from multissl.cli import main; main({args!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_list_names_recipes_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert "tabular/default" in said
    assert "Denoising and mask prediction on rows" in said


def test_the_matrix_tells_what_runs_on_what_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--matrix"]) == 0
    lines = capsys.readouterr().out.splitlines()
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
        (["train", STUB, "--out"], "--out wants a value"),
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


def test_a_mistyped_flag_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["show", STUB, "--optim.lrr", "1"])
    assert stop.value.code == 2
    assert "--optim.lr" in capsys.readouterr().err


def test_a_value_beyond_its_limit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["show", STUB, "--batch-size", "0"])
    assert stop.value.code == 2
    assert "batch_size=0: want 1 or more" in capsys.readouterr().err


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
    def interrupted(_args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate", interrupted)
    assert cli.main(["eval", "run"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
