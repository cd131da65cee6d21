"""Print docstrings and messages of the package, drawn by a seed, to be read aloud; and name those in old words.

    python tools/sample_english.py --seed 3 --docstrings 20 --messages 10
    python tools/sample_english.py --all        # only what uses a word that was replaced, in the whole package

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
REPLACED = {
    r"floors?": "baseline", r"panels?": "figure", r"lone": "single stream", r"told|tells of": "describe, say",
    r"begun": "untrained", r"offered": "provides", r"admits?": "check_dataset_size", r"doors?": "encode function",
    r"sinks?": "logger", r"(?:an?|one) (?!(?:at|and|as|from|in|is|of|to|with)\b)\w+ an? (?!time\b)\w+": "one X per Y",
}  # fmt: skip
"""Words that were replaced, as patterns, and what is said instead."""
ALLOWED = re.compile(r"the floor of U|a floor; of sound|before the floor|math\.floor")
"""Where such a word means what it means everywhere."""


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
        f"{found.group(0)!r} -> {new}"
        for old, new in REPLACED.items()
        for found in re.finditer(rf"\b(?:{old})\b", text, re.IGNORECASE)
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
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
