"""`RUN@STEP`: a checkpoint of a run is loaded, encoded with, measured and reported, also while the run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from multissl import cli
from multissl.engine import checkpoint
from multissl.run import train
from multissl.run.evaluate import judge
from multissl.run.folder import RunFolder, located
from multissl.run.model import load, untrained
from multissl.run.report import report
from multissl.weights.files import read_weights
from tests.run.short import equal, recipe, weights


def test_a_checkpoint_is_what_a_run_of_so_many_steps_ships(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = recipe(30)
    cut.save = checkpoint.Save(every=20)
    train.train(cut.replace(steps=20), tmp_path)
    assert load(f"{whole}@20").step == 20
    assert "has not finished" not in capsys.readouterr().err
    # a cosine over 20 steps is another one than over 30, so only the names are those of what is shipped
    assert weights(f"{whole}@20").keys() == read_weights(tmp_path).keys()
    assert equal(weights(f"{whole}@30"), read_weights(whole))
    shutil.rmtree(tmp_path / "checkpoints")
    assert load(f"{tmp_path}@20").step == 20  # the last step is that of what is shipped


def test_a_run_that_goes_on_is_its_newest_whole_checkpoint(
    whole: Path, going: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert equal(weights(going), weights(f"{whole}@20"))
    assert "has not finished: this is its checkpoint of step 20" in capsys.readouterr().err
    file = going / "checkpoints" / "step_00000020" / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert load(going).step == 10
    assert "rank_00000.safetensors is damaged" in capsys.readouterr().err
    assert (going / "checkpoints" / "step_00000020").is_dir()  # it is the run's to set aside
    with pytest.raises(ValueError, match="is damaged"):
        load(f"{going}@20")


def test_a_run_that_goes_on_is_measured_encoded_and_reported(going: Path, tmp_path: Path) -> None:
    assert judge(f"{going}@10").metrics["collapse/width"] > 0
    assert judge(going).metrics
    assert [x["step"] for x in RunFolder(going).read_evaluations()] == [10, 20]
    assert "not finished: 30 of 30 steps so far" in report(f"{going}@10").read_text()
    out = tmp_path / "features.csv"
    assert cli.main(["encode", f"{going}@10", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) > 90


def test_a_step_that_is_not_there(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of its checkpoints none of step 11; it keeps those of 10, 20, 30"):
        load(f"{whole}@11")
    with pytest.raises(ValueError, match=r"want RUN, RUN@best or RUN@STEP .* as .*run@1000"):
        load(f"{whole}@last")
    RunFolder(tmp_path).write_recipe({})
    with pytest.raises(ValueError, match="modality"):
        load(tmp_path)
    shutil.copy(whole / "recipe.json", tmp_path)
    with pytest.raises(ValueError, match="holds no finished encoder and of its checkpoints none yet"):
        load(tmp_path)


def test_a_folder_may_have_an_at_in_its_name(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run@20"
    shutil.copytree(whole, folder)
    assert located(folder)[1] is None
    assert load(folder).step == 30
    assert load(f"{folder}@10").step == 10


def test_a_run_starts_from_a_checkpoint_of_another(whole: Path, going: Path, tmp_path: Path) -> None:
    for place, step in ((f"{whole}@10", 10), (str(going), 20)):
        model = untrained(recipe(30).replace(init=place))
        assert equal(dict(model.encoders.state_dict()), weights(f"{whole}@{step}"))
    begun = recipe(10).replace(init=f"{whole}@10")
    train.train(begun, tmp_path / "next")
    assert not equal(weights(tmp_path / "next"), weights(f"{whole}@10"))
    with pytest.raises(ValueError, match=r"--init .*@11: .*none of step 11"):
        untrained(recipe(30).replace(init=f"{whole}@11"))
