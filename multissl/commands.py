"""The outer parser: which commands there are, their own flags, and the help on them."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from multissl import option_help
from multissl.registry import names, suggest

DESCRIPTION = "Self-supervised learning beyond images."
EPILOG = """\
examples
  multissl list image                      recipes of a part; also a word such as resnet50
  multissl data FOLDER                     what is in your data, and what is wrong with it
  multissl train image --data FOLDER       run a recipe; the same command resumes it
  multissl train image --help              all options of the recipe
  multissl encode runs/image --data MORE --out features.parquet
"""
RECIPE_OPTIONS = """\
Options of a recipe are typed as --a.b VALUE, --a.b=VALUE or a.b=VALUE; `multissl train NAME --help` lists them all.
What most runs change:
"""
MEASURING = """\
A protocol is a name of the run's recipe, or one of {}.
Its options are typed below its name; --data, --label and more say what is read; of weights without a run also
--modality audio, --modality.size 448, --encoders.image.pooling and --seed.

examples
  multissl eval runs/image                                              the recipe's protocols again
  multissl eval runs/image knn linear_probe --knn.k 5 --data FOLDER     others, on other data
  multissl eval dinov2_vits14_pretrain.pth knn --data FOLDER --out figures.json
  multissl eval features.parquet knn logistic_regression
"""
SHELLS = """\
bash   eval "$(multissl completion bash)"   in ~/.bashrc
zsh    eval "$(multissl completion zsh)"    in ~/.zshrc
fish   multissl completion fish > ~/.config/fish/completions/multissl.fish
"""
TRUST = {
    "--trust": {
        "action": "store_true",
        "help": "run code that a recipe file or a run names though you have not trained with it; read checkpoints that "
        "an older version pickled, which are then written anew",
    }
}
RECIPE = {"metavar": "NAME", "nargs": "?", "default": ""}
FOLDER = {
    "metavar": "RUN",
    "nargs": "?",
    "default": "",
    "help": "folder of the run; RUN@STEP or RUN@best for one of its checkpoints",
}
NAMES = "a name of `multissl list`, file.py[:function], .json or .yaml"
COMMANDS: dict[str, tuple[str, str, dict[str, dict[str, Any]]]] = {
    "train": (
        "train a recipe",
        "NAME [--out FOLDER] [--restart] [options of the recipe]",
        {
            "name": {**RECIPE, "help": NAMES},
            "--out": {
                "metavar": "FOLDER",
                "help": 'the run (default runs/NAME, "/" in it written as "-"); the same command resumes it',
            },
            "--restart": {
                "action": "store_true",
                "help": "set an old run in that folder aside and start again",
            },
            "--requeue-signal": {
                "metavar": "SIGNAL",
                "default": "",
                "help": "a run that this signal (USR1, TERM, ...) ended after a checkpoint exits with 75, "
                "which asks a scheduler to run the command again; others exit with 128 + their number",
            },
            "--accept-data": {
                "action": "store_true",
                "help": "resume though the data is not what the run was trained on so far",
            },
            **TRUST,
        },
    ),
    "data": (
        "say what data holds and what is wrong with it, and which recipe suits it",
        "PATH [--as MODALITY] [--out PAGE] [--limit N] [options of the modality]",
        {
            "name": {
                "metavar": "PATH",
                "nargs": "?",
                "default": "",
                "help": "whatever --data of a training takes: a folder, a table, a shard, gym:NAME, ...",
            },
            "--as": {
                "dest": "part",
                "metavar": "MODALITY",
                "default": "",
                "help": "image, audio, tabular, text, video, rl, or streams such as image_text (default: as most "
                "files are)",
            },
            "--out": {
                "metavar": "PAGE",
                "default": "",
                "help": "the page (default data-NAME.html); beside it, as .csv, all samples that findings are about",
            },
            "--limit": {
                "metavar": "N",
                "type": int,
                "default": 10_000,
                "help": "samples of each split that are read, drawn evenly; 0: all (default 10,000)",
            },
            **TRUST,
        },
    ),
    "list": (
        "list recipes, with size and whether measured, and components",
        "[WORD ...] [--matrix]",
        {
            "words": {
                "metavar": "WORD",
                "nargs": "*",
                "help": "recipes of a part (image), or with a word in name, first line or size (resnet50)",
            },
            "--matrix": {"action": "store_true", "help": "which objective runs on which modality, as tested"},
        },
    ),
    "show": (
        "print a recipe with all its options as JSON",
        "NAME [options of the recipe]",
        {"name": {**RECIPE, "help": NAMES}, **TRUST},
    ),
    "eval": (
        "measure a run again, other weights, or a file of features, by any protocol on any data",
        "RUN|hf:NAME|timm:NAME|FILE [PROTOCOL ...] [--data D] [--label L] [--out FILE] [--PROTOCOL.option V ...]",
        {
            "name": {
                **FOLDER,
                "metavar": "PLACE",
                "help": "folder of a run, RUN@STEP or RUN@best; hf:NAME, timm:NAME or a file of weights; a file that "
                "encode wrote",
            },
            "--out": {"metavar": "FILE", "default": "", "help": "write the figures as JSON, too"},
            **TRUST,
        },
    ),
    "encode": (
        "write the features of all samples, by the encoder of a run or of a recipe",
        "RUN|NAME --out FILE [--data PATH] [--split SPLIT] [--stream STREAM] [--tokens] [--layer K] ...",
        {
            "name": {
                **FOLDER,
                "metavar": "RUN|NAME",
                "help": "folder of a run, or a recipe with its options",
            },
            "--out": {
                "metavar": "FILE",
                "default": "",
                "help": "a table (.parquet, .csv) or an array (.npy, .safetensors), beside which FILE.rows.csv says "
                "which sample a row is; a command that was ended goes on",
            },
            "--split": {"metavar": "SPLIT", "default": "", "help": "one split instead of all"},
            "--stream": {"metavar": "STREAM", "default": "", "help": "which stream, where a run has several"},
            "--tokens": {"action": "store_true", "help": "every token instead of pooled features; an array"},
            "--layer": {
                "metavar": "K",
                "type": int,
                "default": 0,
                "help": "of the K-th block from the end, before the final norm; the last one is 1",
            },
            "--pool": {
                "choices": ("own", "mean", "concat"),
                "default": "own",
                "help": "as the encoder pools, the mean of the tokens, or both side by side (default own)",
            },
            "--fp16": {"action": "store_true", "help": "in half precision"},
            **TRUST,
        },
    ),
    "export": (
        "write a run in the format of another program, compared with it in a fresh process",
        "RUN --to TARGET --out FOLDER [--stream STREAM] [--push hf:USER/NAME]",
        {
            "name": FOLDER,
            "--to": {
                "metavar": "TARGET",
                "default": "",
                "help": "safetensors (multissl.load), hf (transformers), timm, onnx, torch.export, or one of a package",
            },
            "--out": {"metavar": "FOLDER", "default": "", "help": "a folder that is not there yet"},
            "--stream": {"metavar": "STREAM", "default": "", "help": "which stream, where a run has several"},
            "--push": {
                "metavar": "hf:USER/NAME",
                "default": "",
                "help": "upload the folder to Hugging Face's hub, too, with the token of `hf auth login`",
            },
            **TRUST,
        },
    ),
    "verify": (
        "compare short runs on several processes, in chunks, resumed with one process, for every objective",
        "[OBJECTIVE ...] [--processes N] [--folder PATH]",
        {
            "objectives": {"metavar": "OBJECTIVE", "nargs": "*", "help": "some objectives instead of all"},
            "--processes": {
                "metavar": "N",
                "type": int,
                "default": 2,
                "help": "1, 2, 4 or 8 on this machine; under torchrun or SLURM those that it started (default 2)",
            },
            "--folder": {
                "metavar": "PATH",
                "default": "",
                "help": "where checkpoints of the comparison go; several nodes have to see it",
            },
        },
    ),
    "audit": (
        "take some steps of a run again, and say whether they are what it recorded",
        "RUN [--steps A:B]",
        {
            "name": {**FOLDER, "help": "folder of the run"},
            "--steps": {
                "metavar": "A:B",
                "default": "",
                "help": "steps A to B - 1, counted from 0 (default: from the oldest checkpoint to the newest)",
            },
            **TRUST,
        },
    ),
    "report": ("write the report.html of a run again", "RUN", {"name": FOLDER, **TRUST}),
    "import": (
        "turn a training configuration of DINOv2 into a recipe, and say what becomes of its fields",
        "FILE.yaml [--out recipe.yaml] [--gpus N]",
        {
            "name": {
                "metavar": "FILE.yaml",
                "nargs": "?",
                "default": "",
                "help": "a file of dinov2/configs/train, or the config.yaml that their training wrote",
            },
            "--out": {
                "metavar": "recipe.yaml",
                "default": "",
                "help": "where the recipe goes (default: printed, and what becomes of the fields to stderr)",
            },
            "--gpus": {
                "metavar": "N",
                "type": int,
                "default": 1,
                "help": "GPUs that the configuration is for, each with its batch_size_per_gpu (default 1)",
            },
        },
    ),
    "completion": (
        "print a script that completes commands, recipes and options in a shell",
        "bash|zsh|fish",
        {"shell": {"metavar": "SHELL", "nargs": "?", "default": "", "help": "bash, zsh or fish"}},
    ),
}
"""By name: what it does, its usage, and the arguments of its parser."""
OF_RECIPES = ("train", "show", "encode", "data")
"""Commands that pass options on to a recipe."""
OF_OTHERS = ("eval",)
"""Commands that read the words that are left by themselves."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words."""
        message = re.sub(r"argument (\S+): expected one argument", r"\1 wants a value", message)
        raise ValueError(f"{message}; see {self.prog} --help")


def parser_of(command: str) -> Parser:
    """Return the parser of a command's own words; options of recipes are left to its caller."""
    does, usage, arguments = COMMANDS[command]
    epilog = SHELLS if command == "completion" else ""
    if command == "eval":
        epilog = MEASURING.format(", ".join(names("evaluators")))
    if command in ("train", "show"):
        epilog = RECIPE_OPTIONS + "\n".join(option_help.leading(None, 100))
    parser = Parser(
        f"multissl {command}",
        usage=f"multissl {command} {usage}",
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    for name, options in arguments.items():
        parser.add_argument(name, **options)
    parser.add_argument("-h", "--help", action="store_true", help="print this help")
    return parser


def parse(command: str, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return a command's own words, and those that are left for a recipe; where it has none they are refused."""
    parser = parser_of(command)
    known, rest = parser.parse_known_args(words)
    if rest and command not in (*OF_RECIPES, *OF_OTHERS) and not known.help:
        flags = [name for name in COMMANDS[command][2] if name.startswith("--")]
        hint = suggest(rest[0], flags) if flags else f"; see multissl {command} --help"
        raise ValueError(f"{command} does not take {rest[0]!r}{hint}")
    return known, rest


def outer_help() -> str:
    """Return the help on all commands."""
    lines = [
        "usage: multissl COMMAND ...",
        "",
        DESCRIPTION,
        "",
        "commands (multissl COMMAND --help says more)",
    ]
    lines += [f"  {name:<12} {does}" for name, (does, _, _) in COMMANDS.items()]
    return "\n".join([*lines, "  --version    print the version", "", EPILOG])
