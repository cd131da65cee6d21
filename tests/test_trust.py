"""No code from data: hostile runs, recipes and weights leave a canary file alone, and each is answered in a line."""

# long file: one function for each hostile case, around one canary

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import multissl
from multissl import cli, trust
from multissl.code_files import CopyImporter
from multissl.config import to_dict
from multissl.encoders.mlp import MLPEncoder
from multissl.evaluators.collapse import Collapse
from multissl.files import sealed
from multissl.layers.heads import MLPHead
from multissl.modalities.tabular.adapter import Tabular
from multissl.objectives.vicreg import VICReg
from multissl.recipe import Recipe, read_recipe
from multissl.run.folder import RunFolder
from multissl.run.train import train
from multissl.sources.opening import open_source
from multissl.sources.torchvision import UNPICKLES
from multissl.trust import Trust, UntrustedError
from multissl.weights.files import read_weights
from tests.helpers import stubs

Json = dict[str, Any]


def small() -> Recipe:
    return Recipe(
        modality=Tabular.Config(),
        encoders={"table": MLPEncoder.Config(dims=(6,))},
        objective=VICReg.Config(projector=MLPHead.Config(hidden=8, out=8)),
        evals={"collapse": Collapse.Config()},
        batch_size=8, steps=2, loggers={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    recipe = small()
    (stream,) = recipe.modality.build().fit().streams()
    train(recipe.replace(encoders={stream: MLPEncoder.Config(dims=(6,))}), folder)
    return folder


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that code of the module `evil`, which lies on the path as in the folder that is open, makes."""
    mark = tmp_path / "CANARY"
    (tmp_path / "evil.py").write_text(evil(mark))
    monkeypatch.setattr(trust, "_used", set())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield mark
    sys.modules.pop("evil", None)
    forget_copies()


def forget_copies() -> None:
    """Make this process one that has read no run with code."""
    for name in ("mine", "beside"):
        sys.modules.pop(name, None)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, CopyImporter)]


def evil(mark: Path) -> str:
    return (
        f"from pathlib import Path\nPath({str(mark)!r}).write_text('x')\n"
        "def make(spec):\n    raise SystemExit\nclass Evil:\n    pass\n"
    )


class Pickled:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def stream(recipe: Json) -> str:
    return next(iter(recipe["encoders"]))


def as_objective(run: Path, recipe: Json, mark: Path) -> None:
    recipe["objective"] = {"kind": "evil:Evil"}


def as_evaluator(run: Path, recipe: Json, mark: Path) -> None:
    recipe["evals"]["more"] = {"kind": "evil:Evil"}


def as_optimizer(run: Path, recipe: Json, mark: Path) -> None:
    recipe["optim"] = {"kind": "evil:Evil"}


def as_logger(run: Path, recipe: Json, mark: Path) -> None:
    recipe["loggers"] = {"mine": {"kind": "evil:Evil"}}


def as_head(run: Path, recipe: Json, mark: Path) -> None:
    recipe["objective"]["projector"] = {"kind": "evil:Evil.of"}


def as_factory(run: Path, recipe: Json, mark: Path) -> None:
    recipe["encoders"][stream(recipe)] = {"kind": "module", "factory": "evil:make", "dim": 4}


def as_command(run: Path, recipe: Json, mark: Path) -> None:
    recipe["encoders"][stream(recipe)] = {"kind": "module", "factory": "subprocess:getoutput", "dim": 4}


def as_environment(run: Path, recipe: Json, mark: Path) -> None:
    recipe["modality"] = {"kind": "rl", "data": "gym:evil:Game-v0"}
    recipe["encoders"] = {"frames": {"kind": "nature"}}


def as_copies(run: Path, recipe: Json, mark: Path) -> None:
    """Its own copies of sources, and a compiled file that does not belong to them."""
    (run / "recipe_code" / "__pycache__").mkdir(parents=True)
    (run / "recipe_code" / "other.py").write_text(evil(mark))
    (run / "recipe_code" / "__pycache__" / "other.cpython-311.pyc").write_bytes(b"\0" * 16)
    recipe["objective"] = {"kind": "other:Evil"}


def as_pictures(run: Path, recipe: Json) -> None:
    """Make it a run on pictures, with what their modality was fitted to."""
    recipe["modality"], recipe["encoders"] = {"kind": "image"}, {"image": {"kind": "resnet"}}
    (run / "modality.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.2] * 3}))


def as_remote_code(run: Path, recipe: Json, mark: Path) -> None:
    model = run / "model"
    model.mkdir()
    (model / "evilcfg.py").write_text(evil(mark))
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evilcfg.Evil", "AutoModel": "evilcfg.Evil"}}
    (model / "config.json").write_text(json.dumps(config))
    as_pictures(run, recipe)
    recipe["encoders"]["image"] = {
        "kind": "huggingface", "model": str(model), "config": {"model_type": "evil", "trust_remote_code": True}
    }  # fmt: skip


def as_weights(run: Path, recipe: Json, mark: Path) -> None:
    (run / "encoder.safetensors").write_bytes(pickle.dumps(Pickled(mark)))


def as_torch_weights(run: Path, recipe: Json, mark: Path) -> None:
    torch.save({"a": Pickled(mark)}, run / "encoder.safetensors")


def as_torchvision_cache(run: Path, recipe: Json, mark: Path) -> None:
    as_pictures(run, recipe)
    recipe["modality"]["data"] = f"torchvision:LSUN?root={run}"


HOSTILE: list[Callable[[Path, Json, Path], None]] = [
    as_objective, as_evaluator, as_optimizer, as_logger, as_head, as_factory, as_command, as_environment, as_copies,
    as_remote_code, as_weights, as_torch_weights, as_torchvision_cache,
]  # fmt: skip


MESSAGES: dict[Any, str] = {
    as_head: "names code, which is not run",
    as_remote_code: "has no field 'trust_remote_code'|brings code of its own",
    as_weights: "no safetensors file|is a pickle",
    as_torch_weights: "is a pickle, which can run any code",
    as_torchvision_cache: "pickled|does not fit",
}
"""What is said where it is not the common line."""


def lines_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out + err


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda f: f.__name__)
def test_no_command_runs_the_code_of_a_hostile_run(
    spoil: Callable[[Path, Json, Path], None], trained: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = canary.parent / "received"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("recipe_code", "summary.json"))
    original = json.loads((run / "recipe.json").read_text())
    (canary.parent / "own.json").write_text(json.dumps(original))
    recipe = json.loads((run / "recipe.json").read_text())
    spoil(run, recipe, canary)
    (run / "recipe.json").write_text(json.dumps(sealed(recipe)))
    with pytest.raises(ValueError, match=MESSAGES.get(spoil, "names code, which is not run")):
        multissl.load(run).modality.dataset("train")
    assert not canary.exists()
    for words in (
        ["encode", str(run), "--out", "features.csv"],
        ["report", str(run)],
        ["eval", str(run)],
        ["show", str(run / "recipe.json")],
        ["train", str(run / "recipe.json"), "--steps", "1", "--out", "other", "--data.workers", "0"],
        ["train", "own.json", "--steps", "3", "--out", str(run), "--data.workers", "0"],
    ):
        code, said = lines_of(words, capsys)
        assert not canary.exists(), words
        if words[0] in ("encode", "report", "eval"):
            assert code == 2, words
            assert said.startswith("error: "), words
            assert len(said.splitlines()) == 1, words


def test_the_canary_sings_where_the_user_trusts_the_run(
    trained: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = canary.parent / "received"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("summary.json"))
    recipe = json.loads((run / "recipe.json").read_text())
    as_objective(run, recipe, canary)
    (run / "recipe.json").write_text(json.dumps(sealed(recipe)))
    with pytest.raises(
        UntrustedError, match=r"recipe.json: recipe.objective.kind='evil:Evil' names code.*--trust"
    ):
        multissl.load(run)
    code, said = lines_of(["report", str(run), "--trust"], capsys)
    assert (code, canary.exists()) == (2, True)
    assert "is no component" in said


def test_torchvision_opens_no_dataset_that_unpickles_what_it_has_not_compared() -> None:
    from torchvision import datasets

    folder = Path(datasets.__file__).parent
    unpickling = {
        p.stem for p in folder.glob("*.py") if re.search(r"pickle\.load|weights_only=False", p.read_text())
    }
    assert unpickling - {"cifar"} == {name.lower() for name in UNPICKLES}  # that one compares digests first
    with pytest.raises(ValueError, match="pickled index, which could run any code"):
        open_source("torchvision:LSUN?root=x", "train", (".png",))


def as_pickle(path: Path, mark: Path) -> None:
    path.with_suffix(".pt").write_bytes(pickle.dumps(Pickled(mark), 2))


def as_named_safetensors(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Pickled(mark), 4))


def as_torch_file(path: Path, mark: Path) -> None:
    torch.save({"a": Pickled(mark)}, path)


def as_zip(path: Path, mark: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Pickled(mark)))


def as_long_header(path: Path, mark: Path) -> None:
    path.write_bytes((1 << 62).to_bytes(8, "little") + b'{"a":{}}')


@pytest.mark.parametrize(
    "spoil",
    [as_pickle, as_named_safetensors, as_torch_file, as_zip, as_long_header],
    ids=lambda f: f.__name__,
)
def test_a_hostile_weight_file_is_refused_in_a_line(
    spoil: Callable[[Path, Path], None], trained: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = canary.parent / "weights.safetensors"
    spoil(path, canary)
    path = next(canary.parent.glob("weights.*"))
    with pytest.raises(ValueError, match="weights"):
        read_weights(path)
    words = ["train", str(trained / "recipe.json"), "--init", str(path), "--out", "other"]
    code, said = lines_of(words, capsys)
    assert code == 2
    assert said.startswith("error: ")
    assert str(path) in said
    assert not canary.exists()


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join('*' + p for _ in range(10))}]\n"
    for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "tag.yaml",
            "modality: !!python/object/apply:os.system ['touch CANARY']\n",
            "cannot be read as YAML",
        ),
        ("module.yaml", "modality: !!python/module:evil\n", "cannot be read as YAML"),
        ("bomb.yaml", BOMB, "stands for more than 1,000,000 values"),
        ("deep.yaml", "a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("self.yaml", "a: &a [*a]", "nested too deep"),
        ("deep.json", "[" * 100_000 + "]" * 100_000, "nested too deep"),
        ("digits.json", '{"steps": ' + "9" * 6000 + "}", "is no JSON"),
        ("binary.json", "\x00", "is no JSON"),
        ("list.json", "[]", "want a mapping of options"),
        ("kind.json", '{"modality": {"kind": ["evil:Evil"]}}', "want the name of a component"),
        ("empty.json", "{}", "lacks 'modality'"),
        ("typed.json", '{"modality": {"kind": "evil:Evil"}}', "names code, which is not run"),
    ],
)
def test_a_hostile_recipe_is_refused_in_a_line(
    name: str, text: str, message: str, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = canary.parent / name
    path.write_text(text)
    for command in ("show", "train", "encode"):
        code, said = lines_of(
            [command, str(path), *(["--out", "o.csv"] if command != "show" else [])], capsys
        )
        assert code == 2
        assert message in said
        assert name in said
        assert len(said.splitlines()) == 1
    assert not canary.exists()


MINE = """
from dataclasses import dataclass
from beside import LETTER
from multissl.objectives.vicreg import VICReg
from tests.test_trust import small

class Mine(VICReg):
    letter = LETTER
    @dataclass(kw_only=True, slots=True)
    class Config(VICReg.Config):
        pass

def recipe():
    recipe = small()
    (stream,) = recipe.modality.build().fit().streams()
    return recipe.replace(encoders={stream: next(iter(recipe.encoders.values()))}, objective=Mine.Config())
"""
"""A recipe's file, which imports another one beside it."""


def elsewhere(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process that finds neither `mine` nor its folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", "multissl", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def record_digests(folder: Path) -> None:
    """Write the digests of a run's files anew, as whoever can write to a folder can."""
    run = RunFolder(folder)
    summary = run.read_summary()
    summary["finished"]["sha256"] = run.digests()
    run.write_summary(summary)


def test_a_run_of_a_file_is_read_from_anywhere_by_whom_trained_it_and_else_by_trust(
    canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = canary.parent / "here", canary.parent / "there"
    folder.mkdir()
    other.mkdir()
    (folder / "mine.py").write_text(MINE)
    (folder / "beside.py").write_text("LETTER = 'a'\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(canary.parent / "config"))
    train_it = ["train", "mine.py:recipe", "--steps", "2", "--data.workers", "0"]
    assert elsewhere(train_it, folder).returncode == 0
    run = folder / "runs" / "mine-recipe"
    assert {p.name for p in (run / "recipe_code").iterdir()} == {"mine.py", "beside.py"}
    shutil.move(run, other / "run")
    encode = ["encode", "run", "--out", "f.csv"]
    assert elsewhere(encode, other).returncode == 0
    monkeypatch.chdir(other)
    for words in (["report", "run"], ["eval", "run"]):  # in this process, which has no module `mine` either
        assert lines_of(words, capsys)[0] == 0

    forget_copies()
    copy = other / "run" / "recipe_code" / "beside.py"  # no longer what was trained with
    copy.write_text(f"LETTER = __import__('pathlib').Path({str(canary)!r}).write_text('x')\n")
    record_digests(other / "run")
    code, said = lines_of(encode, capsys)
    assert (code, canary.exists()) == (2, False)
    assert "'mine:Mine' names code, which is not run" in said
    assert lines_of([*encode, "--trust"], capsys)[0] == 0
    assert canary.exists()

    forget_copies()
    copy.write_text("LETTER = 'a'\n")
    record_digests(other / "run")
    (other / "run" / "recipe_code" / "numbers.py").write_text(
        "raise SystemExit(9)\n"
    )  # one that is not of it
    assert lines_of(encode, capsys)[0] == 2
    (other / "run" / "recipe_code" / "numbers.py").unlink()
    assert lines_of(encode, capsys)[0] == 0
    forget_copies()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(canary.parent / "of somebody else"))
    assert lines_of(encode, capsys)[0] == 2


def test_a_module_that_the_user_trained_with_is_admitted_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(trust, "_used", set())
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_nets.py").write_text("def make(spec): ...\ndef other(spec): ...\n")
    nothing = Trust()
    with pytest.raises(UntrustedError):
        trust.check_trusted("own_nets:make", "factory", nothing)
    trust.remember(["own_nets:make"], {})
    trust.check_trusted("own_nets:make", "factory", nothing)
    with pytest.raises(UntrustedError):  # a name that was not trained with
        trust.check_trusted("own_nets:other", "factory", nothing)
    (tmp_path / "own_nets.py").write_text("def make(spec): print(spec)\n")
    with pytest.raises(UntrustedError):
        trust.check_trusted("own_nets:make", "factory", nothing)
    assert "own_nets" not in sys.modules
    with pytest.raises(UntrustedError):  # what has no source is never on the list
        trust.check_trusted("posix:system", "factory", nothing)


def test_a_list_that_cannot_be_read_or_written_trusts_nothing_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    trust.list_path().parent.mkdir()
    for text in ("", "[]", '{"code": 3}', '{"code": {"a": 1}}'):
        trust.list_path().write_text(text)
        assert trust.read_list() == {}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    said: list[str] = []
    monkeypatch.setattr(trust.log, "warning", lambda text, *_: said.append(text))
    trust.remember(["tests.helpers.stubs:Net"], {})
    assert "will want --trust" in said[0]


def test_copies_of_another_module_of_the_same_name_are_not_mixed(canary: Path, trained: Path) -> None:
    run = canary.parent / "received"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("summary.json"))
    (canary.parent / "mine.py").write_text("LETTER = 'mine'\n")
    __import__("mine")
    (run / "recipe_code").mkdir(exist_ok=True)
    (run / "recipe_code" / "mine.py").write_text("class Other: ...\n")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["objective"] = {"kind": "mine:Other"}
    (run / "recipe.json").write_text(json.dumps(sealed(recipe)))
    with pytest.raises(ValueError, match="another mine: read the run in a process of its own"):
        multissl.load(run, trust=True)


def test_a_class_that_the_program_holds_is_read_without_asking(trained: Path, tmp_path: Path) -> None:
    recipe = json.loads((trained / "recipe.json").read_text())
    recipe["objective"] = {"kind": "tests.helpers.stubs:Spread"}
    (tmp_path / "recipe.json").write_text(json.dumps(sealed(recipe)))
    assert isinstance(read_recipe(tmp_path / "recipe.json").objective, stubs.Spread.Config)
    assert to_dict(read_recipe(trained / "recipe.json"))["steps"] == 2
    assert load_file(trained / "encoder.safetensors")
