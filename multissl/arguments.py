"""Words of the command line before tyro reads them: other spellings, and flags that are no option of a recipe.

Imports no torch, as the command line answers mistakes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from multissl.registry import suggest

if TYPE_CHECKING:
    from multissl.recipe import Recipe


def take(args: list[str], flag: str) -> tuple[str, list[str]]:
    """The value of `flag` (its last one) and the arguments without it."""
    value, rest, words = "", [], iter(args)
    for word in words:
        if word == flag or word.startswith(f"{flag}="):
            value = word.partition("=")[2] if "=" in word else next(words, "")
            if not value:
                raise ValueError(f"{flag} wants a value")
        else:
            rest.append(word)
    return value, rest


def spelled(args: list[str]) -> Iterator[str]:
    """Arguments as tyro reads them: a.b=c as --a.b c, true as True, --data as --modality.data."""
    for word in args:
        found = re.fullmatch(r"(?:--)?([A-Za-z][\w.-]*)=(.*)", word)
        for part in (f"--{found[1]}", found[2]) if found else (word,):
            yield {"true": "True", "false": "False", "--data": "--modality.data"}.get(part, part)


def leave_out(recipe: Recipe, args: list[str]) -> list[str]:
    """Take the evaluators out of a recipe that `--evals none` or `--evals.NAME none` names; the other arguments."""
    known = {name.replace("-", "_"): name for name in recipe.evals}
    for flag in dict.fromkeys(word for word in args if re.fullmatch(r"--evals(\.[^.]*)?", word)):
        value, args = take(args, flag)
        name = flag.removeprefix("--evals").removeprefix(".").replace("-", "_")
        if flag != "--evals" and name not in known:
            raise ValueError(f"{flag}: the recipe has no evaluator {name!r}{suggest(name, known)}")
        if value.lower() != "none":
            raise ValueError(
                f"{flag} {value}: want none, which leaves {'them all' if flag == '--evals' else 'it'} out; an option of"
                f" one is set by its own flag, such as --evals.{name or next(iter(known), 'NAME')}.every 100"
            )
        for gone in [name] if name else known:
            for word in args:
                if word.replace("-", "_").startswith(f"__evals.{gone}."):
                    raise ValueError(
                        f"{word} is an option of what {flag} none leaves out: give one of the two"
                    )
            recipe.evals.pop(known[gone], None)
    return args
