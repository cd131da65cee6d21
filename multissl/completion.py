"""Completion in the shell: commands, names of recipes, the leading options and names of components.

The script of a shell asks `multissl completion --words WORDS...` for what may follow; the answer imports no torch.
"""

from __future__ import annotations

from multissl import catalogue, registry
from multissl.commands import COMMANDS, OF_RECIPES
from multissl.options import LEADING
from multissl.registry import suggest

OWN = {
    "train": ("--restart", "--accept-data", "--requeue-signal", "--trust", "--help"),
    "show": ("--trust", "--help"),
    "list": ("--matrix", "--help"),
    "eval": ("--data", "--label", "--out", "--trust", "--help"),
    "encode": ("--split", "--stream", "--trust", "--help"),
}
"""Flags of commands beside the leading options of a recipe."""
GROUPS = {"--objective": "objectives", "--modality": "modalities", "--optim": "optimizers"}
"""Whose names may follow an option."""
SCRIPTS = {
    "bash": """\
_multissl() {
    local IFS=$'\\n'
    COMPREPLY=($(multissl completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _multissl multissl""",
    "zsh": """\
#compdef multissl
_multissl() {
    local -a candidates
    candidates=("${(@f)$(multissl completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${candidates[1]}" ]]; then compadd -a candidates; else _files; fi
}
compdef _multissl multissl""",
    "fish": """\
complete -c multissl -a '(multissl completion --words (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'""",
}


def script(shell: str) -> str:
    """Return what a shell evaluates to complete `multissl`."""
    if not shell:
        raise ValueError("completion wants a shell: bash, zsh or fish")
    if shell not in SCRIPTS:
        raise ValueError(f"completion {shell}: want bash, zsh or fish{suggest(shell, SCRIPTS)}")
    return SCRIPTS[shell]


def candidates(words: list[str]) -> list[str]:
    """Return what the last word may become, after those before it; nothing where a file is wanted."""
    *before, current = words or [""]
    return [word for word in _possible(before, current) if word.startswith(current)]


def _possible(before: list[str], current: str) -> list[str]:
    if not before:
        return [*COMMANDS, "--help", "--version"]
    command, *rest = before
    if command == "completion":
        return [*SCRIPTS]
    if command == "list":
        return [*registry.RECIPES, *OWN["list"]]
    if command == "eval" and rest and not any(word.startswith("-") for word in rest):
        return [*OWN["eval"]] if current.startswith("-") else registry.names("evaluators")
    if command not in OF_RECIPES:
        return []
    if not rest:
        return [*OWN[command]] if current.startswith("-") else [*registry.RECIPES, *catalogue.entries()]
    if rest[-1] in GROUPS:
        return registry.names(GROUPS[rest[-1]])
    if rest[-1].startswith("--encoders."):
        return registry.names("encoders")
    if rest[-1] == "--evals":
        return ["none"]
    if rest[-1].startswith("--") and not current.startswith("-"):
        return []
    # a recipe's streams are called as the modalities in its part, image_text has image and text
    streams = [name for name in registry.names("modalities") if name in rest[0].partition("/")[0].split("_")]
    options = [f"--{name}" for name in LEADING if name != "encoders.STREAM"]
    return [*options, *(f"--encoders.{stream}" for stream in streams), *OWN[command]]
