"""Small bugs in Python source: where one can be planted, and the text with it.

A bug is one change of one place: arguments swapped, a call dropped, a constant changed, a name exchanged for its
sibling (a split, a role, a masking), a condition inverted, an operator turned. Places whose change nobody could call
wrong are left out: docstrings, messages, errors and the checks that raise them, assertions, annotations, pictures.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

SIBLINGS = (
    ("train", "val", "test"), ("global", "local", "clean"), ("drop", "replace", "none"), ("student", "exported"),
    ("mean", "sum"), ("reflect", "constant"),
)  # fmt: skip
"""Words of which one is easily written for another."""
TURNED = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
"""An operator as it is written, and what stands in its place."""
SYMMETRIC = {
    "max",
    "min",
    "isinstance",
    "maximum",
    "minimum",
    "allclose",
    "Literal",
    "cast",
    "transpose",
    "mse_loss",
}
"""Calls whose arguments may stand in any order, or which check types alone."""
SPOKEN = {
    "say",
    "warn",
    "warn_nothing_to_measure",
    "warn_not_finite",
    "ValueError",
    "TypeError",
    "RuntimeError",
    "describe",
}
"""Calls that make text for people."""
UNSEEN = {
    "__post_init__",
    "__repr__",
    "figures",
    "neighbor_strip",
    "pictures",
    "titles",
    "describe",
    "verdict",
    "alarm",
    "nearest_pairs",
    "framed",
}
"""Functions that check options, draw, or speak."""


TINY = 1e-6
"""Numbers up to here only keep a division from failing; twice as much does too."""


@dataclass(frozen=True)
class Mutant:
    """A bug: bytes `start` to `end` of a file's text become `text`."""

    file: str
    function: str
    kind: str
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """Return the source with the bug."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def lines(self, source: str) -> tuple[int, str, str]:
        """Return the number of the first line that differs, the line, and what it becomes."""
        before, after = source.splitlines(), self.apply(source).splitlines()
        for number, (old, new) in enumerate(zip(before, after, strict=False), 1):
            if old != new:
                return number, old.strip(), new.strip()
        raise ValueError(f"{self.file}: a bug that changes nothing")


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Return all bugs that can be planted in the functions of a file, in the order of their places."""
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    made = [m for m in finder.made if m.apply(source) != source]
    return sorted(made, key=lambda m: (m.start, m.end, m.text))


class _Finder(ast.NodeVisitor):
    """Collects bugs on the way through the functions of a file."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.data = file, source.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.where: list[str] = []
        self.inside = 0
        self.made: list[Mutant] = []

    def visit(self, node: ast.AST) -> None:
        """Collect the bugs of a node, then those below it."""
        if isinstance(node, ast.ClassDef):
            self._below(node.body, node.name, 0)
        elif isinstance(node, ast.FunctionDef):
            if node.name not in UNSEEN:
                self._below(node.body, node.name, 1)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.visit(node.value)
        elif not (_is_text(node) or _is_check(node)):
            if self.inside:
                self.made += self._bugs(node)
            super().visit(node)

    def _below(self, body: list[ast.stmt], name: str, inside: int) -> None:
        self.where.append(name)
        self.inside += inside
        for each in body:
            self.visit(each)
        self.inside -= inside
        self.where.pop()

    def visit_keyword(self, node: ast.keyword) -> None:
        """Leave `strict` alone, which asserts that two lengths agree, and what changes no value."""
        if node.arg not in ("strict", "non_blocking", "indent"):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Leave alone which fixed number a generator is seeded with."""
        seeds = _called(node) in ("manual_seed", "default_rng")
        if not (seeds and all(isinstance(a, ast.Constant) for a in node.args)):
            self.generic_visit(node)

    def _bugs(self, node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.Call):
            yield from self._swapped(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield self._bug("call dropped", node, "pass")
        if isinstance(node, ast.Constant):
            yield from self._changed(node)
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield self._bug("condition inverted", node.test, f"not ({self._text(node.test)})")
        if isinstance(node, ast.comprehension):
            for test in node.ifs:
                yield self._bug("condition inverted", test, f"not ({self._text(test)})")
        if isinstance(node, ast.BinOp | ast.AugAssign):
            left, right = (
                (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
            )
            yield from self._turned(left, node.op, right)
        if isinstance(node, ast.Compare):
            yield from self._turned(node.left, node.ops[0], node.comparators[0])
        if isinstance(node, ast.BoolOp):
            yield from self._turned(node.values[0], node.op, node.values[1])

    def _swapped(self, node: ast.Call) -> Iterator[Mutant]:
        if _called(node) in SYMMETRIC:
            return
        for first, second in zip(node.args, node.args[1:], strict=False):
            if isinstance(first, ast.Starred) or isinstance(second, ast.Starred):
                continue
            between = self.data[self._end(first) : self._start(second)].decode()
            text = self._text(second) + between + self._text(first)
            yield self._made("arguments swapped", self._start(first), self._end(second), text)

    def _changed(self, node: ast.Constant) -> Iterator[Mutant]:
        value = node.value
        if isinstance(value, bool):
            yield self._bug("constant changed", node, str(not value))
        elif isinstance(value, int):
            yield self._bug("constant changed", node, str(value + 1))
        elif isinstance(value, float) and not 0 < value <= TINY:
            yield self._bug("constant changed", node, repr(value * 2 if value else 1.0))
        elif isinstance(value, str):
            for words in SIBLINGS:
                if value in words:
                    other = words[(words.index(value) + 1) % len(words)]
                    yield self._bug("name exchanged", node, f'"{other}"')

    def _turned(self, left: ast.AST, operator: ast.AST, right: ast.AST) -> Iterator[Mutant]:
        if type(operator) not in TURNED:
            return
        old, new = TURNED[type(operator)]
        start, end = self._end(left), self._start(right)
        between = self.data[start:end].decode()
        place = re.search(rf"(?<![\w#]){re.escape(old)}(?!\w)", between)
        if place:
            text = between[: place.start()] + new + between[place.end() :]
            yield self._made("operator turned", start, end, text)

    def _bug(self, kind: str, node: ast.AST, text: str) -> Mutant:
        return self._made(kind, self._start(node), self._end(node), text)

    def _made(self, kind: str, start: int, end: int, text: str) -> Mutant:
        return Mutant(self.file, ".".join(self.where), kind, start, end, text)

    def _start(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def _end(self, node: ast.AST) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> str:
        return self.data[self._start(node) : self._end(node)].decode()


def _called(node: ast.Call) -> str:
    """Return the last name of what is called."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_text(node: ast.AST) -> bool:
    """Return whether a node makes text for people: a docstring, a message, a line on the display."""
    if isinstance(node, ast.Expr):
        node = node.value
        if isinstance(node, ast.Constant):
            return True
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and _called(node) in SPOKEN)


def _is_check(node: ast.AST) -> bool:
    """Return whether a statement does nothing but refuse: an assertion, or an `if` around a `raise`."""
    if isinstance(node, ast.If):
        return not node.orelse and all(isinstance(x, ast.Raise) for x in node.body)
    return isinstance(node, ast.Raise | ast.Assert)
