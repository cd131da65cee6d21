"""List files over 400 lines and functions over 50: each is read again, and made two, or says why it is one.

    python tools/lint_sizes.py

A comment `# long file: why` anywhere in a file, or `# long: why` on the line above a function (or its decorators) or at
the end of its first line, keeps what is long for a reason. Ends with 1 where something has no reason.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("multissl", "tests", "benchmarks", "tools")
LONGEST_FILE, LONGEST_FUNCTION = 400, 50
REASON = re.compile(r"# long: \w+")
FILE_REASON = re.compile(r"^# long file: \w+", re.MULTILINE)


def findings(path: Path, text: str) -> list[str]:
    """Return what is too long in a file's text and has no reason."""
    lines = text.splitlines()
    long = []
    if len(lines) > LONGEST_FILE and not FILE_REASON.search(text):
        long.append(f"{path}: {len(lines)} lines")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            above = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 2
            reasons = lines[max(above, 0)] + lines[node.lineno - 1]
            if size > LONGEST_FUNCTION and not REASON.search(reasons):
                long.append(f"{path}:{node.lineno}: {node.name} has {size} lines")
    return long


def main() -> int:
    """Print the findings; the exit code."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    long = [line for path in files for line in findings(path.relative_to(ROOT), path.read_text())]
    print("\n".join(long) or f"{len(files)} files: none over {LONGEST_FILE} lines without a reason")
    return 1 if long else 0


if __name__ == "__main__":
    sys.exit(main())
