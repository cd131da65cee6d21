"""The laws of the architecture, read from the source, each beside a planted violation that turns it red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from multissl import registry
from tests.helpers import laws

PACKAGE = Path(__file__).parents[1] / "multissl"
FOUNDATION = (
    "contract", "config", "registry", "schedules", "random", "parallel", "precision", "devices", "files",
    "statistics", "trust", "plain_data", "limits", "waiting", "shapes",
)  # fmt: skip
ROOMS: dict[str, tuple[str, ...]] = {
    "contract": FOUNDATION,
    "config": FOUNDATION,
    "registry": ("trust",),
    "trust": ("code_files", "files"),
    "code_files": (),
    "plain_data": (),
    "limits": (),
    "waiting": ("parallel",),
    "schedules": FOUNDATION,
    "random": (),
    "parallel": FOUNDATION,
    "precision": (),
    "devices": (),
    "statistics": (),
    "files": (),
    "shapes": ("files",),
    "losses": FOUNDATION,
    "layers": ("losses", *FOUNDATION),
    "sources": ("contract", "registry", "limits", "plain_data", "files", "waiting"),
    "modalities": ("sources", *FOUNDATION),
    "encoders": ("layers", *FOUNDATION),
    "objectives": ("losses", "layers", *FOUNDATION),
    "inference": FOUNDATION,
    "evaluators": ("inference", "layers", *FOUNDATION),
    "engine": FOUNDATION,
    # what stands above the parts
    "configs": (
        "recipe",
        "stages",
        "modalities",
        "encoders",
        "objectives",
        "evaluators",
        "layers",
        "engine",
        *FOUNDATION,
    ),
    "migrate": (),
    "stages": ("config", "registry"),
    "recipe": ("engine", "migrate", "stages", "layers.lora", *FOUNDATION),
    "check": ("recipe", *FOUNDATION),
    "build": ("recipe", "check", "engine", "weights", "layers.lora", *FOUNDATION),
    "weights": ("encoders", "layers", "run.folder", *FOUNDATION),
    "run": ("*",),
    "run.folder": FOUNDATION,  # file names and nothing else, so that weights of a run can be found
    "report": FOUNDATION,
    "exporting": ("*",),
    "catalogue": ("registry", "recipe", "trust"),
    "matrix": (),
    "option_values": ("config", "trust"),
    "options": ("option_values", "catalogue", "config", "registry", "recipe", "run", "trust"),
    "option_help": ("options", "catalogue", "config", "registry", "recipe"),
    "commands": ("option_help", "registry"),
    "completion": ("commands", "options", "catalogue", "registry"),
    "verify": ("*",),
    "moving": ("*",),
    "simple": ("recipe", "options", "registry", "run", "encoders"),
    "doctor": ("modalities", "sources", "inference", "report", *FOUNDATION),
    "cli": ("*",),
    "__main__": ("cli",),
    "version": (),
}
"""Who may import whom inside the package; everyone may import from its own room."""
GUESSES = {
    "encoders.module": "a user's own network may tell its width, and may be a function",
    "encoders.huggingface": "networks and configs of transformers",
    "encoders.timm": "networks of timm, of which each has other attributes",
    "parallel": "sharded tensors and plain ones",
    "sources.torchvision": "data sets of torchvision",
    "modalities.image.files": "pictures of Pillow, of which only some formats have pages",
    "modalities.rl.envs": "environments of gymnasium, of which Atari's hold an emulator",
    "modalities.rl.grouped": "groups and arrays of HDF5",
    "modalities.rl.recorded": "members of a file of arrays",
    "modalities.tabular.tables": "tables of pandas or plain mappings",
    "modalities.text.tokenizer": "tokenizers of transformers",
}
"""Where objects of other libraries are asked what they have, and of which."""


RUNNERS = {
    "registry.require": "optional packages by constants of the source, which the law checks",
    "engine.metrics.check_loggers": "packages that the class of a logger declares",
}
"""Functions beside `trust` that import by a value, and of what."""


def arrows(package: Path) -> list[str]:
    return laws.arrows(package, ROOMS)


def ranks(package: Path) -> list[str]:
    return laws.ranks(package, "parallel")


def parameters(package: Path) -> list[str]:
    return laws.parameters(package, "modalities")


def global_draws(package: Path) -> list[str]:
    return laws.global_draws(package, ["modalities"])


def guessed_attributes(package: Path) -> list[str]:
    return laws.guessed_attributes(package, GUESSES)


def idle_guesses(package: Path) -> list[str]:
    return laws.idle_guesses(package, GUESSES)


def unchecked_casts(package: Path) -> list[str]:
    return laws.unchecked_casts(package, 6)


def foreign_code(package: Path) -> list[str]:
    return laws.foreign_code(package, "trust", RUNNERS)


def run_files(package: Path) -> list[str]:
    return laws.run_files(package, "run.folder")


WRITERS = {"run.feature_files": "a file of features, where the user wants it"}
"""Where something is written to a disk by itself, and what; all else goes through `files`."""


def writes(package: Path) -> list[str]:
    return laws.writes(package, "files", WRITERS)


PLANTED: dict[str, tuple[Callable[[Path], list[str]], str, str]] = {
    "an objective imports a modality": (
        arrows, "objectives/deep/down.py", "from multissl.modalities.image.adapter import Image"
    ),
    "a modality imports an objective": (arrows, "modalities/sub/a.py", "import multissl.objectives.dino"),
    "a modality imports an objective in a function": (
        arrows, "modalities/sub/a.py", "def f():\n    from multissl.objectives import dino"
    ),
    "a source imports a modality": (arrows, "sources/sub/a.py", "from multissl.modalities.image.files import decode"),
    "a source asks for ranks": (arrows, "sources/sub/a.py", "from multissl.parallel import ranks"),
    "an encoder imports a loss": (arrows, "encoders/sub/a.py", "from multissl.losses.nce import one_way"),
    "the engine imports an encoder": (arrows, "engine/sub/a.py", "from multissl.encoders.mlp import MLPEncoder"),
    "the contract imports the engine": (arrows, "contract/sub/a.py", "from multissl.engine.learner import Learner"),
    "a loss imports a layer": (arrows, "losses/sub/a.py", "from multissl.layers.heads import MLPHead"),
    "a layer imports an encoder": (arrows, "layers/sub/a.py", "from multissl.encoders.mlp import MLPEncoder"),
    "a relative import hides where it leads": (arrows, "modalities/sub/a.py", "from ...objectives import dino"),
    "a file in no room": (arrows, "utils.py", ""),
    "two files name each other": (
        laws.circles,
        "layers/a.py", "from multissl.layers.b import x\n--- layers/b.py\nfrom multissl.layers import a",
    ),
    "two files name each other for a type checker": (
        laws.circles,
        "layers/a.py",
        "from multissl.layers.b import x\n--- layers/b.py\nif TYPE_CHECKING:\n    from multissl.layers.a import y",
    ),
    "a loss calls torch.distributed": (ranks, "objectives/sub/a.py", "import torch.distributed as dist"),
    "an attribute leads to torch.distributed": (
        ranks, "objectives/sub/a.py", "import torch\nworld = torch.distributed.get_world_size()"
    ),
    "a modality holds a module": (parameters, "modalities/sub/a.py", "import torch\nhead = torch.nn.Linear(2, 2)"),
    "a modality holds a parameter": (parameters, "modalities/sub/a.py", "from torch.nn import Parameter"),
    "a modality derives from a module": (
        parameters, "modalities/sub/a.py", "from torch import nn\nclass A(nn.Module): ..."
    ),
    "a modality draws from torch": (global_draws, "modalities/sub/a.py", "import torch\nx = torch.rand(3)"),
    "a modality draws under another name": (
        global_draws, "modalities/sub/a.py", "from torch import randn as noise\nx = noise(3)"
    ),
    "a modality draws from numpy": (
        global_draws, "modalities/sub/a.py", "import numpy as np\nx = np.random.permutation(3)"
    ),
    "a class is asked for what it does not declare": (
        guessed_attributes, "engine/sub/a.py", "def f(encoder):\n    return hasattr(encoder, 'projectors')"
    ),
    "a class is asked by an assembled name": (
        guessed_attributes, "engine/sub/b.py", "def f(x, n):\n    return getattr(x, f'min_{n}')"
    ),
    "a class is asked with a default": (
        guessed_attributes, "engine/sub/a.py", "def f(x):\n    return getattr(x, 'shared', None)"
    ),
    "a file that may guess at attributes no longer does": (idle_guesses, "encoders/module.py", "x = 1"),
    "seven casts to Any": (
        unchecked_casts, "engine/sub/a.py", "from typing import Any, cast\n" + "x = cast(Any, 1)\n" * 7
    ),
    "seven casts to Any under other names": (
        unchecked_casts, "engine/sub/a.py", "import typing as t\n" + "x = t.cast(t.Any, 1)\n" * 7
    ),


    "the trainer spells a file of a run": (
        run_files, "engine/sub/a.py", 'def f(run):\n    return (run / "summary.json").read_text()'
    ),
    "a file of a run is spelt inside a longer path": (
        run_files, "cli.py", 'def f(run):\n    return open(f"{run}/metrics.jsonl")'
    ),
    "a folder of a run is spelt": (run_files, "run/sub/a.py", 'FOLDER = "checkpoints"'),
    "the trainer writes a file by itself": (
        writes, "engine/sub/a.py", "def f(run):\n    (run / 'dump').write_text('')"
    ),
    "a file is opened to be written": (writes, "run/sub/a.py", "def f(path):\n    return path.open('w', newline='')"),
    "a file is opened to grow": (writes, "run/sub/a.py", "def f(path):\n    return open(path, mode='ab')"),
    "weights are written by themselves": (
        writes, "engine/a.py", "from safetensors.torch import save_file as save\ndef f(x, p):\n    save(x, p)"
    ),
    "a folder is removed by itself": (writes, "engine/a.py", "import shutil\nshutil.rmtree('run')"),
    "a file imports by a name": (
        foreign_code, "encoders/a.py", "import importlib\ndef f(x):\n    return importlib.import_module(x)"
    ),
    "a file imports by a name of another name": (
        foreign_code, "encoders/a.py", "from importlib import import_module as fetch\nfetch('os')"
    ),
    "a file calls __import__": (foreign_code, "sources/a.py", "def f(x):\n    return __import__(x)"),
    "a file runs a text": (foreign_code, "run/a.py", "def f(x):\n    exec(x)"),
    "a file unpickles": (foreign_code, "sources/a.py", "import pickle\ndef f(x):\n    return pickle.loads(x)"),
    "a class unpickles": (foreign_code, "sources/a.py", "from pickle import Unpickler as U\nclass A(U):\n    ..."),
    "a file loads with torch": (foreign_code, "weights/a.py", "import torch\ndef f(x):\n    return torch.load(x)"),
    "a file loads all that torch can": (
        foreign_code, "weights/a.py", "import torch\ndef f(x, y):\n    return torch.load(x, weights_only=y)"
    ),
    "a file allows pickled arrays": (
        foreign_code, "sources/a.py", "import numpy as np\ndef f(x, y):\n    return np.load(x, allow_pickle=y)"
    ),
    "a file trusts remote code": (foreign_code, "encoders/a.py", "def f(m, t):\n    return m(trust_remote_code=t)"),
    "a file reads YAML with tags": (foreign_code, "run/a.py", "import yaml\ndef f(x):\n    return yaml.unsafe_load(x)"),
    "a file requires what data says": (
        foreign_code, "run/a.py", "from multissl import registry\ndef f(x):\n    return registry.require(x)"
    ),
    "a file imports an admitted name without asking": (
        foreign_code, "layers/a.py", "from multissl.trust import import_named\ndef f(x):\n    return import_named(x)"
    ),
    "a modality draws from Python": (global_draws, "modalities/sub/a.py", "import random\nx = random.random()"),
}  # fmt: skip
"""By what is wrong: the law that sees it, the file it is planted in, and the file's text."""
LAWS = dict.fromkeys(law for law, _, _ in PLANTED.values())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_package_keeps_the_law(law: Callable[[Path], list[str]]) -> None:
    assert not law(PACKAGE)


@pytest.mark.parametrize("wrong", PLANTED)
def test_a_planted_violation_turns_its_law_red(wrong: str, tmp_path: Path) -> None:
    law, name, text = PLANTED[wrong]
    for part in f"--- {name}\n{text}".split("--- ")[1:]:
        path, _, source = part.partition("\n")
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source)
    assert law(tmp_path)


def test_every_registered_class_is_called_by_its_registered_name() -> None:
    """A moved class would otherwise be stored in recipes as `module:Class`, which no later version could read."""
    for group in registry.GROUPS:
        for name in registry.names(group):
            assert registry.name_of(registry.resolve(name, group)) == name, f"{group}: {name}"
