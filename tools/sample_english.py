"""Print docstrings and messages of the package, drawn by a seed, to be read aloud; and name what uses old words.

    python tools/sample_english.py --seed 3 --docstrings 20 --messages 10
    python tools/sample_english.py --all        # only words and names that were replaced, in the whole package

A drawn sample shows how the English reads better than the pages one happens to open. Ends with 1 where anything that is
printed uses a word of `REPLACED`.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "multissl"
COUNTED = "bits|bytes|calls|frames|pixels|rows|samples|seconds|steps|times|tokens|views|words|once"
UNIT = "character|clip|color|epoch|episode|frame|group|hour|minute|process|second|side|step|tick|view"
REPLACED = {
    r"floors?": "baseline", r"panels?": "figure", r"lone": "single stream", r"told|tells of": "describe, say",
    r"begun": "untrained", r"offers?|offered": "provides", r"admits?": "check_dataset_size",
    r"doors?": "encode function", r"sinks?": "logger", r"blind": "constant, ignores", r"lays": "assembles",
    r"(?:an?|one) (?!(?:at|and|as|from|in|is|of|to|with)\b)\w+ an? (?!time\b)\w+": "one X per Y",
    rf"(?:{COUNTED}) an? (?:{UNIT})": "X per Y",
}  # fmt: skip
"""Words of sentences that were replaced, as patterns, and what is said instead."""
ALLOWED = re.compile(
    r"the floor of U|a floor; of sound|before the floor|floor\(|the color-blind|cannot be told"
)
"""Where such a word means what it means everywhere, or is an outcome's name."""
NAMES = {
    "floor": "baseline", "panel": "figure", "lone": "single_stream", "told": "a noun", "begun": "untrained",
    "offers": "provides", "offered": "provides", "admit": "check_dataset_size", "expect": "prepare_for",
    "door": "encode function", "sinks": "loggers", "spread": "same_plan, std", "blind": "constant", "lay": "assemble",
    "take": "pop_flag, gather, select", "taken": "pop_flag, a noun", "held_out": "hidden_text, validation",
}  # fmt: skip
"""Names that were replaced, of anything that the package defines, without underscores at their ends."""
FUNCTION_NAMES = {
    "start": "load_pretrained",
    "share": "broadcast_object",
    "wide": "at_least_fp32",
}
"""Names that were replaced for functions and classes alone: values called so mean what the word means."""


class Text(NamedTuple):
    """A docstring or a message, and where it stands."""

    where: str
    text: str


def docstrings(path: Path) -> Iterator[Text]:
    """Yield the docstrings of a file: of the module, of classes and functions, and below fields."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for each in node.body:
                value = each.value if isinstance(each, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield Text(f"{path.relative_to(PACKAGE)}:{each.lineno}", value.value)


def messages(path: Path) -> Iterator[Text]:
    """Yield the messages of a file's errors and warnings, with `{...}` for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise):
            call = node.exc
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "warn" in node.func.attr:
            call = node
        else:
            continue
        for text in map(spelt, call.args if isinstance(call, ast.Call) else []):
            if text:
                yield Text(f"{path.relative_to(PACKAGE)}:{node.lineno}", text)


def defined_names(path: Path) -> Iterator[Text]:
    """Yield the replaced names that a file defines: its own, and those of functions, classes, arguments and values."""
    place = str(path.relative_to(PACKAGE))
    if words := name_words(path.stem, function=False):
        yield Text(f"{place}:1", words)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        words = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            words = name_words(node.name, function=True)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            words = name_words(node.id, function=False)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            words = name_words(node.attr, function=False)
        elif isinstance(node, ast.arg):
            words = name_words(node.arg, function=False)
        else:
            continue
        if words:
            yield Text(f"{place}:{node.lineno}", words)


def name_words(name: str, function: bool) -> str:
    """Return a replaced name with what it is called instead; empty for a name that may stay."""
    plain = name.strip("_").lower()
    better = NAMES.get(plain) or (FUNCTION_NAMES.get(plain) if function else None)
    return f"{name} -> {better}" if better else ""


def spelt(node: ast.expr) -> str:
    """Return the text of a string in the source, with `{...}` for what is filled in; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(spelt(v) if isinstance(v, ast.Constant) else "{...}" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return spelt(node.left) + spelt(node.right)
    return ""


def replaced_words(text: str) -> list[str]:
    """Return each replaced word in a text with what is said instead."""
    text = ALLOWED.sub("", text)
    return [
        f"{match.group(0)!r} -> {new}"
        for old, new in REPLACED.items()
        for match in re.finditer(rf"\b(?:{old})\b", text, re.IGNORECASE)
    ]


def main() -> int:
    """Print the sample or the findings; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docstrings", type=int, default=20, help="how many docstrings to draw")
    parser.add_argument("--messages", type=int, default=10, help="how many messages to draw")
    parser.add_argument(
        "--all", action="store_true", help="go through the whole package, print findings alone"
    )
    args = parser.parse_args()
    files = sorted(PACKAGE.rglob("*.py"))
    kinds = [[t for f in files for t in docstrings(f)], [t for f in files for t in messages(f)]]
    rng, bad = random.Random(args.seed), 0
    for texts, count in zip(kinds, (args.docstrings, args.messages), strict=True):
        for where, text in texts if args.all else rng.sample(texts, min(count, len(texts))):
            words = replaced_words(text)
            bad += bool(words)
            if words or not args.all:
                print(f"{where}  {' '.join(text.split())}" + "".join(f"\n    {w}" for w in words))
    if args.all:
        for where, words in [n for f in files for n in defined_names(f)]:
            bad += 1
            print(f"{where}  the name {words}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
