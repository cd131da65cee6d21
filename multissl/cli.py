"""The command line: words become calls, nothing else.

The outer parser knows the commands and their own flags; options of a recipe pass through it to `options`. What needs no
torch imports none: help, the list of recipes and a mistyped name answer at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from multissl import catalogue, commands, completion, matrix, option_help, options
from multissl.files import replace_text, set_aside
from multissl.registry import suggest
from multissl.run.folder import RunFolder, located
from multissl.run.lock import check_free
from multissl.trust import Trust
from multissl.version import __version__
from multissl.weights.reach import check_typed

AGAIN = 75
"""Exit code of a run that asks to be run again: EX_TEMPFAIL of sysexits.h."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals after which a training saves and ends, as the engine has them; named here so that a word costs no torch."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        return run(words)
    except (ValueError, ImportError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:  # in a training the second one: the first saves a checkpoint
        return fail(RuntimeError("interrupted"), 130)
    except BrokenPipeError:  # whoever reads us has seen enough: multissl list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(RuntimeError(described(error)), 1)
    except RuntimeError as error:
        # Ours say what to do; anything else is a bug, and a bug keeps its traceback.
        if type(error).__module__.startswith("multissl"):
            return fail(error, 130 if type(error).__name__ == "Interrupted" else 1)
        raise


def described(error: OSError) -> str:
    """Return an error of the system in one line, with a way out where there is one."""
    reason = error.strerror or str(error) or type(error).__name__
    name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    ways = {
        errno.ENOSPC: "; free some space, then repeat the command",
        errno.EDQUOT: "; free some space, then repeat the command",
        errno.EROFS: "; name a place that can be written to",
        errno.EACCES: "; look at whom it belongs to, or name another place",
        errno.EMFILE: "; raise the limit with ulimit -n, or give fewer --data.workers",
    }
    way = ways.get(error.errno or 0, "")
    if "temporary directory" in reason:
        way = "; set TMPDIR to a folder that can be written to"
    return f"{name}{reason}{way}"


def fail(error: Exception, code: int) -> int:
    """Print an error in one line, once however many ranks there are, and return its exit code."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr)
    return code


def run(words: list[str]) -> int:
    """Parse words and call their command."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(commands.outer_help())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[:2] == ["completion", "--words"]:
        print("\n".join(completion.candidates(words[2:])))
        return 0
    command = words[0]
    if command not in CALLS:
        raise ValueError(f"no command is called {command!r}{suggest(command, CALLS)}")
    known, rest = commands.parse(command, words[1:])
    if known.help and not (command in ("train", "show") and known.name):
        print(commands.parser_of(command).format_help())
        return 0
    set_threads()
    return CALLS[command](known, rest)


def named(words: argparse.Namespace, command: str) -> str:
    """Return the name that a command was given, or ask for it."""
    if not words.name:
        usage = f"multissl {command} {commands.COMMANDS[command][2]['name']['metavar']}"
        raise ValueError(f"{command} wants a name first: {usage}; see multissl list")
    return words.name


def set_threads() -> None:
    """Let threads that wait for work fall asleep soon. Called before torch is imported.

    By default they spin for milliseconds: beside one busy process (a worker, another rank) a step took 13 times as
    long. Asleep at once (OMP_WAIT_POLICY=PASSIVE) costs a quiet machine 25 %; 2,000 turns cost neither.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


# ------------------------------------------------------------------------------------------ commands


def train(words: argparse.Namespace, rest: list[str]) -> int:
    """Run `multissl train`."""
    name = named(words, "train")
    if words.help:
        return print_options(words, rest)
    init = options.read(rest).get("init")
    if init and init.values:
        check_typed(init.values[0], f"{init.flag} ")
    recipe, default = options.open_recipe(
        name,
        rest,
        ("out", "restart", "trust", "accept_data", "requeue_signal"),
        Trust(everything=words.trust),
    )
    again = signal_of(words.requeue_signal)
    folder = Path(words.out or Path("runs") / folder_name(name))
    if words.restart:
        check_free(RunFolder(folder).lock, print)
        if old := set_aside(folder):
            print(f"{folder} is now {old.name}")
    from multissl.engine.trainer import Interrupted
    from multissl.run.train import train as run_recipe

    try:
        run_recipe(
            recipe, folder, default, file=file_of(name), accept_data=words.accept_data, trust=words.trust
        )
    except Interrupted as error:
        return fail(error, AGAIN if error.number == again else 128 + error.number)
    return 0


def signal_of(name: str) -> int:
    """Return the number of a signal by its name, with or without SIG, or of its digits; 0 for no name."""
    if not name:
        return 0
    known = {s.name.removeprefix("SIG"): int(s) for s in ENDING}
    number = int(name) if name.isdigit() else known.get(name.upper().removeprefix("SIG"), -1)
    if number not in known.values():
        raise ValueError(f"--requeue-signal {name}: want one of {', '.join(known)}, after which a run saves")
    return number


def file_of(recipe: str) -> Path | None:
    """Return the Python file that a recipe's name says, if it says one."""
    path = recipe.partition(":")[0]
    return Path(path) if path.endswith(".py") else None


def folder_name(recipe: str) -> str:
    """Return what the folder of a run is called: the recipe's name, or the file's and the function's."""
    path, _, function = recipe.partition(":")
    if path.endswith(".py"):
        recipe = f"{Path(path).stem}-{function}"
    return re.sub(r"[^\w.]+", "-", recipe).strip("-")


def print_options(words: argparse.Namespace, rest: list[str]) -> int:
    """Print the options of a recipe, as changed by those that were typed."""
    recipe, _ = options.open_recipe(words.name, rest, trust=Trust(everything=words.trust))
    print(option_help.render(words.name, recipe))
    return 0


def examine_data(words: argparse.Namespace, rest: list[str]) -> int:
    """Run `multissl data`."""
    place = named(words, "data")
    if words.limit < 0:
        raise ValueError(f"--limit {words.limit}: want 0 for all samples, or how many of each split")
    from multissl.doctor.advice import advise
    from multissl.doctor.examination import examine
    from multissl.doctor.guess import pairs_of, part_of
    from multissl.doctor.page import page, sample_list

    part = words.part or part_of(place)
    recipe, _ = options.open_recipe(part, ["--data", place, *rest], trust=Trust(everything=words.trust))
    examination = examine(recipe.modality.build(), words.limit)
    pairs = "" if words.part else pairs_of(place, part)
    examination.advice += advise(part, place, examination, rest, pairs)
    out = Path(words.out or f"data-{folder_name(Path(place).name)}.html")
    replace_text(out, page(place, examination))
    replace_text(out.with_suffix(".csv"), sample_list(examination))
    print("\n".join(examination.lines()))
    print(f"{out} shows it, {out.with_suffix('.csv')} names every sample")
    return 0


def list_recipes(words: argparse.Namespace, _rest: list[str]) -> int:
    """Run `multissl list`."""
    if words.matrix:
        if words.words:
            raise ValueError(f"list --matrix takes no words, got {words.words[0]!r}")
        print(matrix.as_text())
        return 0
    print("\n".join(catalogue.lines(words.words) if words.words else catalogue.overview()))
    return 0


def show(words: argparse.Namespace, rest: list[str]) -> int:
    """Run `multissl show`."""
    name = named(words, "show")
    if words.help:
        return print_options(words, rest)
    import json

    recipe, _ = options.open_recipe(name, rest, trust=Trust(everything=words.trust))
    from multissl.config import to_dict

    print(json.dumps(to_dict(recipe), indent=1))
    return 0


def evaluate(words: argparse.Namespace, rest: list[str]) -> int:
    """Run `multissl eval`."""
    place = named(words, "eval")
    check_typed(place)
    from multissl.run.evaluate import evaluate_place, judge, write
    from multissl.run.protocols import split_words

    names, settings = split_words(rest)
    if names or settings or not located(place)[0].recipe.is_file():
        from multissl.parallel.ranks import process_group

        with process_group() as device:
            evaluation = evaluate_place(place, names, settings, device, words.trust)
    else:
        evaluation = judge(place, words.trust)
    for line in evaluation.lines():
        print(line)
    if words.out:
        write(evaluation, Path(words.out))
        print(f"{words.out}: the figures with all that they depend on")
    print(evaluation.verdict.text if evaluation.metrics else "no evaluator gave a figure")
    return 1 if names and not evaluation.metrics else 0


def encode(words: argparse.Namespace, rest: list[str]) -> int:
    """Run `multissl encode`."""
    name = named(words, "encode")
    if not words.out:
        raise ValueError(f"encode wants a file to write: multissl encode {name} --out features.parquet")
    data, recipe = "", None
    if located(name)[0].recipe.is_file():
        data = options.only_data(
            rest,
            "encode takes --out, --data, --split, --stream, --tokens, --layer, --pool and --fp16 beside a run",
        )
    else:
        recipe = options.open_recipe(name, rest, trust=Trust(everything=words.trust))[0]
    from multissl.engine.trainer import Interrupted
    from multissl.parallel.ranks import is_main, process_group
    from multissl.run import encode as features
    from multissl.run.model import load, untrained

    wanted = features.Wanted(tokens=words.tokens, layer=words.layer, pool=words.pool, half=words.fp16)
    with process_group() as device:
        model = load(name, device, data, words.trust) if recipe is None else untrained(recipe, device)
        say: Callable[[str], object] = print if is_main() else str
        try:
            rows = features.encode(model, words.out, words.split, words.stream, say=say, wanted=wanted)
        except Interrupted as error:
            return fail(error, 128 + error.number)
        say(f"{words.out}: {rows:,} lines")
    return 0


def export(words: argparse.Namespace, _rest: list[str]) -> int:
    """Run `multissl export`."""
    name = named(words, "export")
    if not words.to or not words.out:
        raise ValueError(
            f"export wants a target and a folder to write: multissl export {name} --to onnx --out exported"
        )
    from multissl.exporting.export import export as write

    made = write(name, words.to, words.out, words.stream, words.push, words.trust, print)
    print(f"{made.path}: features differ by {made.difference:.0e} at most; read it with\n\n{made.code}")
    if made.address:
        print(made.address)
    return 0


def report(words: argparse.Namespace, _rest: list[str]) -> int:
    """Run `multissl report`."""
    folder = named(words, "report")
    from multissl.run.report import report as write

    print(write(folder, trust=words.trust))
    return 0


def verify(words: argparse.Namespace, _rest: list[str]) -> int:
    """Run `multissl verify`."""
    from multissl.verify.table import verify as compare

    return compare(words.objectives, words.processes, words.folder)


def audit(words: argparse.Namespace, _rest: list[str]) -> int:
    """Run `multissl audit`."""
    folder = named(words, "audit")
    from multissl.engine.trainer import Interrupted
    from multissl.run import audit as again

    start, stop = steps_of(words.steps) if words.steps else again.window(folder)
    try:
        result = again.audit(folder, start, stop, words.trust)
    except Interrupted as error:
        return fail(RuntimeError("interrupted; nothing of the run was changed"), 128 + error.number)
    print(again.described(result))
    return 1 if result.differences else 0


def steps_of(text: str) -> tuple[int, int]:
    """Return the two ends of A:B."""
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise ValueError(f"--steps {text}: want two steps, the first before the second, such as 100:200")
    return int(start), int(stop)


def import_recipe(words: argparse.Namespace, _rest: list[str]) -> int:
    """Run `multissl import`."""
    name = named(words, "import")
    out = Path(words.out) if words.out else None
    if out is not None and (out.exists() or out.suffix not in (".yaml", ".yml")):
        raise ValueError(f"--out {out}: want a new file that ends in .yaml")
    from multissl.moving import dinov2

    imported = dinov2.import_dinov2(Path(name), words.gpus)
    print(dinov2.described(imported), file=sys.stderr if out is None else sys.stdout)
    text = dinov2.as_yaml(imported.recipe)
    if out is None:
        print(text, end="")
    else:
        replace_text(out, text)
        data = "" if imported.recipe.modality.data else " --data FOLDER"  # type: ignore[attr-defined]
        print(f"multissl train {out}{data}")
    return 0


def complete(words: argparse.Namespace, _rest: list[str]) -> int:
    """Run `multissl completion`."""
    print(completion.script(words.shell))
    return 0


CALLS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "train": train,
    "data": examine_data,
    "list": list_recipes,
    "show": show,
    "eval": evaluate,
    "encode": encode,
    "export": export,
    "verify": verify,
    "audit": audit,
    "report": report,
    "import": import_recipe,
    "completion": complete,
}
