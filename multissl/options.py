"""Options of a recipe as words: `--a.b VALUE`, `--a.b=VALUE` and `a.b=VALUE`, put into the recipe and checked.

Words are read into a tree of settings first and applied in one go, so that limits between options hold for what was
asked for and not for a state on the way. Imports no torch by itself: a wrong command is answered before that.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from multissl import catalogue, registry
from multissl.config import alternatives, config_name, replaced, vars_of
from multissl.option_values import from_json, parsed
from multissl.registry import suggest
from multissl.trust import NOTHING, Trust

if TYPE_CHECKING:
    from multissl.config import Config
    from multissl.recipe import Recipe

Options = TypeVar("Options", bound="Config")
ASSIGNED = re.compile(r"(?:--)?([A-Za-z][\w.-]*)=(.*)", re.DOTALL)
FLAG = re.compile(r"--[A-Za-z][\w.-]*")
SHORT = {name: f"modality.{name}" for name in ("data", "column", "label", "delimiter", "missing")}
"""Options that are typed without the component they belong to."""
ALIASES = {"learning_rate": "lr"}
"""Second spellings of options, by what they are called."""
RECIPE_WORDS = ("data", "epochs")
"""Options of a command that are no field of a recipe."""
LEADING = (
    "data", "out", "steps", "epochs", "batch_size", "optim.lr", "encoders.STREAM", "objective", "seed", "init", "evals",
)  # fmt: skip
"""What most runs change; `--steps` and `--epochs` are two spellings of one, so they count as ten."""


@dataclass(slots=True)
class Setting:
    """What was typed for one option and for those below it."""

    flag: str
    """As typed, for messages."""
    values: list[str] | None = None
    below: dict[str, Setting] = field(default_factory=dict)


def open_recipe(
    name: str, words: list[str], commands: tuple[str, ...] = (), trust: Trust = NOTHING
) -> tuple[Recipe, Recipe]:
    """Return the recipe of a name with options applied, and as it was; `commands` are options for suggestions alone.

    `trust` says which code a recipe file may name.
    """
    make = catalogue.find(name, trust)
    settings = read(words)
    default = make()
    epochs = settings.pop("epochs", None)
    if epochs and "steps" in settings:
        raise ValueError(
            f"{epochs.flag} and {settings['steps'].flag} both say how long to train: give one of the two"
        )
    recipe = apply(copy.deepcopy(default), settings, commands)
    if epochs:
        recipe.steps = steps_of(recipe, _single(epochs))
    return recipe, default


def read(words: list[str]) -> dict[str, Setting]:
    """Return the tree of settings that words make; of an option that is given twice the last one counts."""
    tree: dict[str, Setting] = {}
    current: Setting | None = None
    for word in words:
        assigned = ASSIGNED.fullmatch(word)
        belongs = current and current.values is not None and all(map(ASSIGNED.fullmatch, current.values))
        if assigned and (word.startswith("--") or not belongs):
            current = _place(tree, assigned[1], f"--{assigned[1]}")
            current.values = [assigned[2]]
        elif FLAG.fullmatch(word):
            current = _place(tree, word[2:], word)
            current.values = []
        elif re.fullmatch(r"-[A-Za-z]\w*", word) and word != "-inf":
            raise ValueError(f"{word}: an option begins with two dashes, -{word}")
        elif current is None or current.values is None:
            raise ValueError(f"{word!r} belongs to no option: write --a.b VALUE or a.b=VALUE")
        else:
            current.values.append(word)
    return tree


def _place(tree: dict[str, Setting], path: str, flag: str) -> Setting:
    """Return the place of an option in the tree, made if it is new."""
    path = path.replace("-", "_")
    here, setting = tree, Setting(flag)
    for part in SHORT.get(path, path).split("."):
        setting = here.setdefault(part, Setting(flag))
        here = setting.below
    setting.flag = flag
    return setting


def apply(recipe: Options, settings: dict[str, Setting], commands: tuple[str, ...] = ()) -> Options:
    """Return the recipe, or other options, with settings applied; an unknown one is refused with the nearest named."""
    try:
        return _changed(recipe, settings, "")
    except UnknownOptionError as error:
        replaced = {name for name, setting in settings.items() if setting.values is not None}
        known = [
            path for path, _, _ in walk(recipe) if path.partition(".")[0] not in replaced or "." not in path
        ]
        known += [
            path.removesuffix(name) + alias
            for path in known
            for alias, name in ALIASES.items()
            if path.rpartition(".")[2] == name
        ]
        if error.config:
            parent = error.path.rpartition(".")[0]
            known += [f"{parent}.{name}".lstrip(".") for name in vars_of(error.config)]
        raise ValueError(
            f"no option {error.flag}{_nearest(error, [*known, *commands, *RECIPE_WORDS])}"
        ) from None


class UnknownOptionError(Exception):
    """An option that the recipe lacks."""

    def __init__(self, flag: str, path: str, config: Config | None) -> None:
        super().__init__(flag)
        self.flag, self.path, self.config = flag, path, config


def _nearest(error: UnknownOptionError, known: list[str]) -> str:
    from multissl.config import new_names

    parent, _, name = error.path.rpartition(".")
    new = new_names(type(error.config)).get(name) if error.config else None
    if new:
        return f": it is called --{parent}.{new} now" if parent else f": it is called --{new} now"
    same = [path for path in dict.fromkeys(known) if path.rpartition(".")[2] == name]
    alike = [path for path in known if _alike(path.rpartition(".")[2], name)]  # one parent makes no likeness
    near = next(filter(None, (  # where the name is right, its parent is what was mistyped
        difflib.get_close_matches(error.path, paths, n, least)
        for paths, n, least in ((same, 1, 0.75), (alike, 1, 0.75), (same, 3, 0.0), (alike, 1, 0.6))
    )), [])  # fmt: skip
    if not near:
        by_name = {path.rpartition(".")[2]: path for path in reversed(known)}
        near = [by_name[n] for n in difflib.get_close_matches(name, by_name, n=1, cutoff=0.7)]
    if near:
        return f"; did you mean {' or '.join(f'--{path}' for path in near)}?"
    return "; multissl train NAME --help lists them all"


def _alike(one: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, one, other).ratio() > 0.6


def walk(config: Config, where: str = "") -> Iterator[tuple[str, Config, dataclasses.Field[Any]]]:
    """Yield the path of every option, with the config that holds it and its field."""
    from multissl.config import Config

    for each in dataclasses.fields(config):
        path, value = f"{where}{each.name}", vars_of(config)[each.name]
        yield path, config, each
        if isinstance(value, Config):
            yield from walk(value, f"{path}.")
        elif isinstance(value, Mapping):
            for key, member in value.items():
                if isinstance(member, Config):
                    yield from walk(member, f"{path}.{key}.")


# ---------------------------------------------------------------------------------- settings into a config


def _changed(config: Any, settings: dict[str, Setting], where: str) -> Any:
    from multissl.config import hints_of

    hints, values = hints_of(type(config)), vars_of(config)
    changes: dict[str, Any] = {}
    for name, setting in settings.items():
        own = name if name in values or ALIASES.get(name) not in values else ALIASES[name]
        if own not in values:
            typed = _first_typed(setting)
            path = f"{where}{name}" if typed is setting else typed.flag.lstrip("-").replace("-", "_")
            raise UnknownOptionError(typed.flag, path, config)
        if own in changes:
            raise ValueError(f"{setting.flag} is another spelling of --{where}{own}: give one of the two")
        option = next(f for f in dataclasses.fields(config) if f.name == own)
        optional = option.default_factory is not dataclasses.MISSING
        changes[own] = _value(hints[own], values[own], setting, f"{where}{own}", optional=optional)
    return replaced(config, changes, where) if changes else config


def _first_typed(setting: Setting) -> Setting:
    """Return the setting, or the first one below it that has a value."""
    return setting if setting.values is not None else next(_leaves(setting))


def _value(hint: Any, value: Any, setting: Setting, path: str, *, optional: bool = False) -> Any:
    from multissl.config import Config

    choices = [a for a in alternatives(hint) if a is not types.NoneType]
    if typing.get_origin(hint) is dict:
        return _mapping(typing.get_args(hint)[1], value, setting, path, optional=optional)
    if isinstance(choices[0], type) and issubclass(choices[0], Config):
        return _component(choices[0], hint, value, setting, path)
    if setting.below:
        below = next(iter(setting.below.values()))
        raise UnknownOptionError(below.flag, f"{path}.{next(iter(setting.below))}", None)
    return parsed(hint, setting.values or [], setting.flag)


def _component(cls: type[Config], hint: Any, value: Any, setting: Setting, path: str) -> Any:
    """Return the options of a component: of another one where its name was typed, with what was set below it."""
    from multissl.config import group_of

    if setting.values is not None:
        kind, group = _single(setting), group_of(cls)
        if kind.lower() == "none" and types.NoneType in alternatives(hint):
            return None
        if group is None:
            raise ValueError(
                f"{setting.flag} {kind}: it is no component; set its options, as {_example(path, value)}"
            )
        try:
            made = registry.resolve(kind, group).Config
        except ValueError as error:
            raise ValueError(f"{setting.flag} {kind}: {error}") from None
        if not issubclass(made, cls):
            raise ValueError(f"{setting.flag} {kind}: that is not of the kind that {path} takes")
        value = made()
    return _changed(cls() if value is None else value, setting.below, f"{path}.")


def _mapping(hint: Any, value: Any, setting: Setting, path: str, *, optional: bool) -> Any:
    from multissl.config import Config

    if not (isinstance(hint, type) and issubclass(hint, Config)):
        return _plain_mapping(hint, value, setting, path)
    if setting.values is not None:
        if not optional or _single(setting).lower() != "none":
            wanted = "none, which leaves them all out" if optional else f"{setting.flag}.NAME"
            raise ValueError(
                f"{setting.flag} {_single(setting)}: want {wanted}; {_flags_of_one(path, value)}"
            )
        _refuse_options_of_left_out(setting, setting.flag)
        return {}
    settings = dict(setting.below)
    if optional and "add" in settings and "add" not in value:
        value = _added(hint, value, settings.pop("add"), path)
    made = dict(value)
    known = {name.replace("-", "_"): name for name in value}
    for name, below in _by_key(settings, known).items():
        key = known.get(name)
        if key is not None and optional and below.values is not None and _single(below).lower() == "none":
            _refuse_options_of_left_out(below, below.flag)
            del made[key]
        elif key is not None and optional and below.values is not None:
            raise ValueError(
                f"{below.flag} {_single(below)}: want none, which leaves it out; {_flags_of_one(path, {key: 0})}"
            )
        elif key is not None:
            made[key] = _component(hint, hint, value[key], below, f"{path}.{key}")
        elif optional and below.values and _single(below).lower() != "none":
            made[name] = _component(hint, hint, None, below, f"{path}.{name}")
        else:
            raise ValueError(f"{below.flag}: {_member_of(hint, path)} {name!r}{suggest(name, known)}")
    return made


def _added(hint: type[Config], value: Any, setting: Setting, path: str) -> dict[str, Any]:
    """Return a mapping with the components that `--PATH.add NAME ...` names, each under its own name."""
    if setting.below or not setting.values:
        raise ValueError(
            f"{setting.flag}: want names, such as knn; --{path}.NAME.OPTION VALUE sets an option of one"
        )
    made = dict(value)
    for name in setting.values:
        if known := [key for key, each in made.items() if name in (key, config_name(type(each)))]:
            raise ValueError(f"{setting.flag} {name}: it is there; {_flags_of_one(path, known)}")
        made[name] = _component(
            hint, hint, None, dataclasses.replace(setting, values=[name]), f"{path}.{name}"
        )
    return made


def _by_key(below: dict[str, Setting], keys: Iterable[str]) -> dict[str, Setting]:
    """Return settings by the keys of a mapping, of which some hold dots: `0` below `blocks` sets `blocks.0`."""
    for key in (k for k in keys if "." in k):
        below, setting = _taken_out(below, key.split("."))
        if setting is not None:
            below[key] = setting
    return below


def _taken_out(below: dict[str, Setting], path: list[str]) -> tuple[dict[str, Setting], Setting | None]:
    """Return the settings without the one at a path, and that one, if there is one."""
    first, *rest = path
    if first not in below:
        return below, None
    others = {name: setting for name, setting in below.items() if name != first}
    if not rest:
        return others, below[first]
    inner, setting = _taken_out(below[first].below, rest)
    if setting is None:
        return below, None
    if inner or below[first].values is not None:
        others[first] = dataclasses.replace(below[first], below=inner)
    return others, setting


def _member_of(hint: type[Config], path: str) -> str:
    from multissl.config import group_of

    group = group_of(hint)
    if path in ("evals", "encoders"):
        return f"the recipe has no {'evaluator' if path == 'evals' else 'stream'}"
    return f"{path} has no {group.rstrip('s') if group else 'member'}"


def _flags_of_one(path: str, known: Iterable[str]) -> str:
    name = next(iter(known), "NAME")
    return f"an option of one is set by its own flag, such as --{path}.{name}.OPTION VALUE"


def _example(path: str, value: Any) -> str:
    from multissl.config import Config

    names = [*vars_of(value)] if isinstance(value, Config) else []
    return f"--{path}.{names[0] if names else 'OPTION'} VALUE"


def _refuse_options_of_left_out(setting: Setting, flag: str) -> None:
    for below in setting.below.values():
        if below.values is not None and [v.lower() for v in below.values] != ["none"]:
            raise ValueError(f"{below.flag} is an option of what {flag} none leaves out: give one of the two")
        _refuse_options_of_left_out(below, flag)


def _plain_mapping(hint: Any, value: Any, setting: Setting, path: str) -> dict[str, Any]:
    """Return a mapping of plain values: `--a k=v k2=v2`, `--a k v`, `--a '{"k": v}'`, or one of them by `--a.k v`.

    Keys are taken as typed, with dots and dashes.
    """
    made: dict[str, Any] = dict(value)
    words = setting.values
    if words is not None:
        if words and words[0].startswith("{"):
            return from_json(dict[str, hint], words, setting.flag)
        made = {}
        if words and all("=" in word for word in words):
            made = {k: parsed(hint, [v], setting.flag) for k, _, v in (word.partition("=") for word in words)}
        elif len(words) % 2 == 0:
            made = {k: parsed(hint, [v], setting.flag) for k, v in zip(words[::2], words[1::2], strict=True)}
        else:
            raise ValueError(f"{setting.flag} {' '.join(words)}: want names with values, as NAME=VALUE")
    for leaf in _leaves(setting):
        key = leaf.flag.lstrip("-").split(".", path.count(".") + 1)[-1]
        made[key] = parsed(hint, leaf.values or [], leaf.flag)
    return made


def _leaves(setting: Setting) -> Iterator[Setting]:
    """Yield the settings below one that have a value."""
    for below in setting.below.values():
        if below.values is not None:
            yield below
        yield from _leaves(below)


def _single(setting: Setting) -> str:
    return parsed(str, setting.values or [], setting.flag)


def only_data(words: list[str], refusal: str) -> str:
    """Return the value of `--data`; any other option is refused with a message that begins so."""
    settings = read(words)
    data = settings.pop("modality", None)
    given = data.below.pop("data", None) if data else None
    for other in [*settings.values(), *(data.below.values() if data else ())]:
        raise ValueError(f"{refusal}, got {other.flag!r}")
    return _single(given) if given else ""


def steps_of(recipe: Recipe, epochs: str) -> int:
    """Return the steps of `--epochs`, and print how they were counted."""
    from multissl.run.train import steps_for

    wanted = parsed(float, [epochs], "--epochs")
    samples = len(recipe.modality.build().dataset("train"))
    steps = steps_for(wanted, samples, recipe.batch_size)
    print(f"--epochs {epochs} of {samples:,} samples at --batch_size {recipe.batch_size} are {steps:,} steps")
    return steps
