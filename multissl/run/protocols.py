"""Which protocols measure, and with which options: those of a recipe or as registered, with what was typed of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multissl import registry
from multissl.config import Config, config_name, to_dict
from multissl.contract.evaluator import Evaluator
from multissl.options import ASSIGNED, Setting, apply, read
from multissl.registry import suggest

Protocols = dict[str, Evaluator.Config]
"""Options of evaluators by the names of their figures."""
USUAL: Mapping[str, tuple[str, ...]] = {"rl": ("state_probe", "collapse")}
USUAL_ELSEWHERE = ("knn", "linear_probe", "collapse")
"""What is measured of weights without a recipe where nobody says what, by modality."""
PUBLISHED_K = (20, 10, 100, 200)
"""Neighbors of DINO's and DINOv2's k-NN; 20, of which papers report the most, is the one that is compared."""


@dataclass(kw_only=True, slots=True)
class Chosen(Config):
    """The protocols as options are typed below them."""

    evals: Protocols = field(default_factory=dict)


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, Setting]]:
    """Return the names that words begin with, and the settings that follow."""
    count = next((i for i, w in enumerate(words) if w.startswith("-") or ASSIGNED.fullmatch(w)), len(words))
    return [*words[:count]], read([*words[count:]])


def usual(modality: str) -> Protocols:
    """Return what is measured where nobody says what."""
    protocols: Protocols = {
        name: registry.resolve(name, "evaluators").Config() for name in USUAL.get(modality, USUAL_ELSEWHERE)
    }
    if "knn" in protocols:
        protocols["knn"] = protocols["knn"].replace(k=PUBLISHED_K)
    return protocols


def chosen(names: Iterable[str], own: Protocols, usually: Protocols | None = None) -> Protocols:
    """Return the protocols of some names: those of a recipe under its names, others as registered; of no name, all.

    `usually` are those of no name where there is no recipe.
    """
    protocols: Protocols = {}
    for name in names:
        if name in own:
            protocols[name] = own[name]
            continue
        if name not in registry.names("evaluators"):
            known = [*own, *registry.names("evaluators")]
            raise ValueError(f"no protocol is called {name!r}{suggest(name, known)}")
        protocols[name] = registry.resolve(name, "evaluators").Config()
    return protocols or dict(own if usually is None else usually)


def with_options(protocols: Protocols, settings: dict[str, Setting]) -> Protocols:
    """Return the protocols with what was typed below their names, which is taken out of the settings."""
    typed = {name: settings.pop(name) for name in [*settings] if name in protocols}
    for name, setting in settings.items():
        if name in registry.names("evaluators"):
            flag = first_flag(setting)
            raise ValueError(
                f"{flag}: {name} is not among the protocols ({', '.join(protocols)}); name it before the options, "
                f"as in multissl eval PLACE {name} {flag} VALUE"
            )
    if not typed:
        return protocols
    holder = Chosen(evals=protocols)
    try:
        return apply(holder, {"evals": Setting("--evals", below=typed)}).evals
    except ValueError as error:
        raise ValueError(_without_holder(str(error), protocols)) from None


def _without_holder(text: str, protocols: Protocols) -> str:
    """Return a message about options as they are typed here, where protocols stand by themselves."""
    text = re.sub(rf"(?<![\w.-])(--)?evals\.(?=({'|'.join(map(re.escape, protocols))})\b)", "--", text)
    text = text.replace("--evals.", "--")
    names = ", ".join(f"--{name}.OPTION" for name in protocols)
    return text.replace(
        "multissl train NAME --help lists them all", f"want {names}; multissl list NAME says which"
    )


def first_flag(setting: Setting) -> str:
    """Return a setting's flag as it was typed, or that of the first one below it."""
    while setting.values is None and setting.below:
        setting = next(iter(setting.below.values()))
    return setting.flag


def described(evaluator: Evaluator) -> dict[str, Any]:
    """Return what a figure depends on beside features and data: protocol, version, options, what chose among them.

    Figures of an equal `digest` were measured in the same way.
    """
    options = {n: v for n, v in to_dict(evaluator.cfg).items() if n not in ("kind", "every")}
    what = {"protocol": config_name(type(evaluator.cfg)), "version": evaluator.version, "options": options}
    text = json.dumps(what, sort_keys=True)
    return {
        **what, "selected_on": evaluator.selected_on, "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
    }  # fmt: skip


def scored_split(evaluator: Evaluator) -> str:
    """Return the split that a protocol scores, "" where it has no such option."""
    return str(to_dict(evaluator.cfg).get("split", ""))
