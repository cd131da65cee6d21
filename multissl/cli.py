"""The command line: `multissl train | list | show | eval | encode | report`.

What needs no torch imports none: help, the list of recipes and a mistyped name answer at once.
"""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from multissl import catalogue, matrix, registry
from multissl.arguments import leave_out, spelled, take
from multissl.files import set_aside
from multissl.registry import suggest

if TYPE_CHECKING:
    from multissl.recipe import Recipe

HELP = """\
multissl: self-supervised learning beyond images

  multissl train NAME|FILE [options]   run a recipe: a name of `multissl list`, file.py:function, .json or .yaml
  multissl list                        recipes and components
  multissl list --matrix               which objective runs on which modality, as tested
  multissl show NAME|FILE [options]    a recipe with all its options, as JSON
  multissl eval RUN                    evaluate a finished run again
  multissl encode RUN|NAME --out FILE  features of all samples as a table, .parquet or .csv: by a run's encoder, of its
                                       data or --data PATH; or by what a recipe starts from, with options of train
  multissl report RUN                  write a run's report.html again

Options of train
  --data PATH          your own data (short for --modality.data)
  --out FOLDER         where the run goes (default runs/NAME); the same command resumes it
  --restart            set an old run in that folder aside and begin anew
  --epochs N           passes over the data, instead of --steps
  --objective NAME     another objective with its defaults; likewise --modality, --optim, --encoders.STREAM
  --evals none         train without evaluators; --evals.NAME none leaves out one of them
  --a.b VALUE or a.b=VALUE   any option of the recipe; `multissl train NAME --help` lists them
"""
SWAPS = ("objective", "modality", "optim")


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if args[0] == "--version":
        from multissl import __version__

        print(__version__)
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train, "list": list_recipes, "show": show, "eval": evaluate, "encode": encode, "report": report,
    }  # fmt: skip
    try:
        if args[0] not in commands:
            raise ValueError(f"no command is called {args[0]!r}{suggest(args[0], commands)}")
        return commands[args[0]](args[1:])
    except (ValueError, ImportError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:  # in a training the second one: the first saves a checkpoint
        return fail(RuntimeError("interrupted"), 130)
    except BrokenPipeError:  # whoever reads us has seen enough: multissl list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RuntimeError as error:
        # Ours say what to do; anything else is a bug, and a bug keeps its traceback.
        if type(error).__module__.startswith("multissl"):
            return fail(error, 130 if type(error).__name__ == "Interrupted" else 1)
        raise


def fail(error: Exception, code: int) -> int:
    """Say an error in one line, once however many ranks there are; its exit code."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr)
    return code


# ------------------------------------------------------------------------------------------ commands


def train(args: list[str]) -> int:
    """`multissl train`."""
    name, rest = named(args, "train")
    out, rest = take(rest, "--out")
    restart = "--restart" in rest
    recipe, default, rest = open_recipe(name, [a for a in rest if a != "--restart"])
    folder = Path(out or Path("runs") / re.sub(r"[^\w.]+", "-", name.removesuffix(".py")).strip("-"))
    if restart and (old := set_aside(folder)):
        print(f"{folder} is now {old.name}")
    from multissl.run import train as run

    result = run.train(recipe, folder, default)
    return 0 if result.folder else 1


def list_recipes(args: list[str]) -> int:
    """`multissl list`."""
    if args == ["--matrix"]:
        print(matrix.as_text())
        return 0
    found = catalogue.matching(args)
    if not found:
        raise ValueError(f"no recipe matches {' '.join(args)}; multissl list names them all")
    for entry in found:
        said = "measured" if entry.is_measured else catalogue.UNMEASURED
        print(f"  {entry.name:<28} {entry.size.partition(';')[0]:<44} {said:<11} {entry.line}")
    if args:
        return 0
    for group in registry.GROUPS:
        print(f"{group}: {', '.join(registry.names(group))}")
    return 0


def show(args: list[str]) -> int:
    """`multissl show`."""
    import json

    recipe, _, _ = open_recipe(*named(args, "show"))
    from multissl.config import to_dict

    print(json.dumps(to_dict(recipe), indent=1))
    return 0


def evaluate(args: list[str]) -> int:
    """`multissl eval`."""
    folder, rest = named(args, "eval")
    if rest:
        raise ValueError(f"eval takes the folder of a run and nothing else, got {rest[0]!r}")
    set_threads()
    from multissl.run import train as run

    figures = run.evaluate(Path(folder))
    for name, value in figures.items():
        print(f"{name:<32} {value:.4g}")
    if not figures:
        print("no evaluator gave a figure")
    return 0


def encode(args: list[str]) -> int:
    """`multissl encode`."""
    name, rest = named(args, "encode")
    out, rest = take(rest, "--out")
    split, rest = take(rest, "--split")
    stream, rest = take(rest, "--stream")
    if not out:
        raise ValueError(f"encode wants a file to write: multissl encode {name} --out features.parquet")
    recipe = None if Path(name, "recipe.json").is_file() else open_recipe(name, rest)[0]
    set_threads()
    import torch

    from multissl.run import encode as features
    from multissl.run import train as run

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe is None:
        data, rest = take(rest, "--data")
        if rest:
            raise ValueError(
                f"encode takes --out, --data, --split and --stream beside a run, got {rest[0]!r}"
            )
        model = run.load(name, device, data)
    else:
        model = run.begun(recipe, device)
    print(f"{out}: {features.encode(model, out, split, stream):,} lines")
    return 0


def report(args: list[str]) -> int:
    """`multissl report`."""
    folder, _ = named(args, "report")
    set_threads()
    from multissl.run import train as run

    print(run.report(Path(folder)))
    return 0


def open_recipe(name: str, args: list[str]) -> tuple[Recipe, Recipe, list[str]]:
    """The recipe with its options applied, and as it was."""
    make = catalogue.find(name)
    set_threads()
    default = make()
    recipe = copy.deepcopy(default)
    args = list(spelled(args))
    epochs, args = take(args, "--epochs")
    for field in SWAPS:
        kind, args = take(args, f"--{field}")
        if kind:
            group = {"modality": "modalities", "optim": "optimizers"}.get(field, f"{field}s")
            setattr(recipe, field, registry.resolve(kind, group).Config())
    for stream in recipe.encoders:
        kind, args = take(args, f"--encoders.{stream}")
        if kind:
            recipe.encoders[stream] = registry.resolve(kind, "encoders").Config()
    args = leave_out(recipe, args)
    recipe = override(recipe, args)
    if epochs:
        recipe.steps = steps_of(recipe, epochs)
    return recipe, default, args


def override(recipe: Recipe, args: list[str]) -> Recipe:
    """Apply `--a.b value` options; tyro prints help and complaints, with the nearest option."""
    import tyro

    from multissl.recipe import Recipe

    return tyro.cli(
        Recipe, default=recipe, args=args, prog="multissl train NAME", use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    )  # fmt: skip


def steps_of(recipe: Recipe, epochs: str) -> int:
    """--epochs in steps, said aloud."""
    from multissl.run.train import steps_for

    try:
        wanted = float(epochs)
    except ValueError:
        raise ValueError(f"--epochs {epochs}: want a number") from None
    samples = len(recipe.modality.build().dataset("train"))
    steps = steps_for(wanted, samples, recipe.batch_size)
    print(f"--epochs {epochs} of {samples:,} samples at --batch_size {recipe.batch_size} are {steps:,} steps")
    return steps


# ----------------------------------------------------------------------------------------- arguments


def named(args: list[str], command: str) -> tuple[str, list[str]]:
    """The first word that is no option, and the rest."""
    if not args or args[0].startswith("-"):
        if args and args[0] in ("-h", "--help"):
            print(HELP)
            raise SystemExit(0)
        raise ValueError(f"{command} wants a name first: multissl {command} NAME; see multissl list")
    return args[0], args[1:]


def set_threads() -> None:
    """Let threads that wait for work fall asleep soon. Called before torch is imported.

    By default they spin for milliseconds: beside one busy process (a worker, another rank) a step took 13 times as
    long. Asleep at once (OMP_WAIT_POLICY=PASSIVE) costs a quiet machine 25 %; 2,000 turns cost neither.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
