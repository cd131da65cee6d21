"""Configs: nested dataclasses that build what they describe, and their JSON.

A component's options are a dataclass nested in it, `class VICReg: class Config(Objective.Config)`; `build(*args)`
gives `VICReg(cfg, *args)`. A config becomes JSON with its registry name as `kind`, and comes back checked: an unknown
key is an error that suggests the nearest one, in files and in Python alike.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

from multissl import registry, trust
from multissl.registry import suggest
from multissl.trust import NOTHING, Trust


@dataclass(kw_only=True, slots=True)
class Config:
    """Base of all configs. Subclasses are dataclasses with `kw_only=True, slots=True`."""

    owner: ClassVar[Any] = None
    """The component that these options build, a subclass of `Component`; None for plain options."""
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """New names of options by the names that they had in recipe format 1, of this class beside those of its bases.
    Files of that format are read by it; elsewhere the old name is refused with the new one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super(Config, cls).__init_subclass__(**kwargs)

        # The dataclass decorator sets __init__ after this hook, so a misspelt keyword is caught one level above.
        def checked_new(klass: type, *_args: Any, **given: Any) -> Any:
            known = [f.name for f in fields(klass)]
            for name in given:
                if name not in known:
                    raise TypeError(no_option(config_name(klass), klass, name))
            return object.__new__(klass)

        cls.__new__ = checked_new  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        known = [f.name for f in fields(self)]
        if name not in known:
            raise AttributeError(no_option(config_name(type(self)), type(self), name))
        wanted = resolved_hints(type(self)).get(name, Any)
        object.__setattr__(self, name, checked(wanted, value, f"{config_name(type(self))}.{name}"))

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The component that these options describe."""
        if self.owner is None:
            raise TypeError(f"{type(self).__qualname__} describes no component")
        return self.owner(self, *args, **kwargs)

    def code_names(self) -> Iterable[str]:
        """Return what values of these options name code that is imported: texts `module:attribute`; by default none."""
        return ()

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed; limits are checked again."""
        return dataclasses.replace(self, **changes)


def replaced(config: Config, changes: Mapping[str, Any], where: str) -> Any:
    """Return a copy of the config at a path, "evals.drift." or "", with some options changed.

    What it refuses about one of its options bears the whole path of that option.
    """
    try:
        return config.replace(**changes)
    except ValueError as error:
        named = str(error).partition("=")[0] in vars_of(config)
        raise ValueError(f"{where if named else ''}{error}") from None


def new_names(cls: type[Config]) -> dict[str, str]:
    """Return the new names of a config's options by their old ones, as declared by the class and its bases."""
    return {old: new for base in reversed(cls.__mro__) for old, new in vars(base).get("renamed", {}).items()}


def no_option(where: str, cls: type[Config], name: str) -> str:
    """Return the message for an option that a config lacks: its new name, the nearest one, or all there are."""
    if name in (renamed := new_names(cls)):
        return f"{where} has no option {name!r}: it is called {renamed[name]!r} now"
    return f"{where} has no option {name!r}{suggest(name, [f.name for f in fields(cls)])}"


class Component:
    """A class whose nested `Config` builds it."""

    group: ClassVar[str] = ""
    """The registry's table of its kind, such as "objectives"; shared by all classes of a kind."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited = next((vars(base)["Config"] for base in cls.__mro__ if "Config" in vars(base)), None)
        if inherited is None:
            return
        if "Config" not in vars(cls):
            # A subclass without options of its own still builds itself, not its parent.
            body = {
                "__module__": cls.__module__,
                "__qualname__": f"{cls.__qualname__}.Config",
                "__slots__": (),
            }
            cls.Config = dataclass(kw_only=True)(type("Config", (inherited,), body))  # type: ignore[attr-defined]
        vars(cls)["Config"].owner = cls


def vars_of(config: Config) -> dict[str, Any]:
    """Return the values of a config's options by name."""
    return {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}


def config_name(cls: type[Config]) -> str:
    """Return how a config is called in messages: its registry name, else its component's class name."""
    return (registry.name_of(cls.owner) or cls.owner.__qualname__) if cls.owner else cls.__qualname__


def kind_of(cls: type[Config]) -> str | None:
    """Return the `kind` under which a component's options are stored; None for plain options."""
    owner = cls.owner
    return owner and (registry.name_of(owner) or f"{owner.__module__}:{owner.__qualname__}")


def to_dict(value: Any) -> Any:
    """Return the JSON values of a config; components carry `kind`, their registry name or `module:Class`."""
    if isinstance(value, Config):
        body = {f.name: to_dict(getattr(value, f.name)) for f in fields(value)}
        kind = kind_of(type(value))
        return {"kind": kind, **body} if kind else body
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(
        f"{type(value).__name__} cannot be written into a recipe file: keep it out of the recipe or run from Python"
    )


def named_code(value: Any) -> list[str]:
    """Return all code that a config names, at any depth: kinds `module:Class` and what its options import."""
    if isinstance(value, Config):
        kind = kind_of(type(value)) or ""
        names = [*([kind] if ":" in kind else []), *value.code_names()]
        return names + [name for f in fields(value) for name in named_code(getattr(value, f.name))]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [name for v in value for name in named_code(v)] if isinstance(value, list | tuple) else []


def from_dict(
    cls: Any, data: Any, where: str = "recipe", *, old: bool = False, trust: Trust = NOTHING
) -> Any:
    """Return a config of type `cls` from JSON values; `where` is the path used in messages.

    `old`: the values are of an earlier recipe format, whose options may bear the names of `Config.renamed`. `trust`
    says which code the values may name; other code is refused before it is imported.
    """
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if len(alternatives(cls)) > 1:
        return _first_fit(cls, data, lambda one: from_dict(one, data, where, old=old, trust=trust))
    if origin is typing.Literal:
        if data not in args:
            raise ValueError(f"{where}={data!r}{suggest(str(data), map(str, args))}")
        return data
    if origin in (list, tuple, dict):
        return _container(cls, data, where, functools.partial(from_dict, old=old, trust=trust))
    if is_dataclass(cls):
        return _dataclass(cast(type, cls), data, where, old, trust)
    if cls is Any:
        return data
    if cls is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if cls is Path and isinstance(data, str):
        return Path(data)
    if cls is float and isinstance(data, str):  # YAML reads 1e-3 as text
        return _number(data, where)
    if not isinstance(data, cls) or (cls is int and isinstance(data, bool)):
        raise ValueError(f"{where}={data!r}: want {cls.__name__}, got {type(data).__name__}")
    return data


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}={text!r}: want a number, got str") from None


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _first_fit(union: Any, value: Any, read: Callable[[Any], Any]) -> Any:
    """Return the value as the first type of a union that `read` takes it as, or raise what the first one says."""
    if value is None and types.NoneType in alternatives(union):
        return None
    errors: list[ValueError] = []
    for one in (a for a in alternatives(union) if a is not types.NoneType):
        try:
            return read(one)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _entries(
    kind: Any, values: Sequence[Any], where: str, read: Callable[[Any, Any, str], Any], shown: Any
) -> Any:
    """Return values as a list or tuple type, each entry as `read` takes it; `shown` is what messages quote."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list or args[-1] is Ellipsis:
        args = (args[0],) * len(values)
    if len(args) != len(values):
        raise ValueError(f"{where}={shown!r}: want {len(args)} values, got {len(values)}")
    return origin(read(a, v, f"{where}.{i}") for i, (a, v) in enumerate(zip(args, values, strict=True)))


def _container(kind: Any, data: Any, where: str, read: Callable[[Any, Any, str], Any]) -> Any:
    if typing.get_origin(kind) is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where}={data!r}: want a mapping")
        return {k: read(typing.get_args(kind)[1], v, f"{where}.{k}") for k, v in data.items()}
    if not isinstance(data, list | tuple):
        raise ValueError(f"{where}={data!r}: want a list")
    return _entries(kind, data, where, read, data)


def _dataclass(cls: type[Config], data: Any, where: str, old: bool, trusted: Trust) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}={data!r}: want a mapping of options")
    data = dict(data)
    own = any(f.name == "kind" for f in fields(cls))  # an option that happens to be called so
    kind = None if own else data.pop("kind", None)
    if kind is not None:
        found = _component(kind, group_of(cls), f"{where}.kind", trusted).Config
        if not issubclass(found, cls):
            raise ValueError(f"{where}.kind={kind!r} is no {config_name(cls)}")
        cls = found
    hints, known = hints_of(cls), [f.name for f in fields(cls)]
    if old:
        renamed = new_names(cls)
        data = {renamed.get(name, name): value for name, value in data.items()}
    for name in data:
        if name not in known:
            raise ValueError(no_option(where, cls, name))
    values = {
        n: from_dict(hints[n], value, f"{where}.{n}", old=old, trust=trusted) for n, value in data.items()
    }
    if lacking := [f.name for f in fields(cls) if f.name not in values and _is_required(f)]:
        raise ValueError(
            f"{where} lacks {' and '.join(map(repr, lacking))}, which {config_name(cls)} has no default for"
        )
    config = cls(**values)
    for name in config.code_names():
        trust.check_trusted(name, where, trusted)
    return config


def _is_required(option: dataclasses.Field[Any]) -> bool:
    return option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING


def _component(kind: Any, group: str | None, where: str, trusted: Trust) -> Any:
    """Return the component of a kind that data names; code that is neither ours nor loaded has to be admitted."""
    if not isinstance(kind, str):
        raise ValueError(f"{where}={kind!r}: want the name of a component")
    if ":" not in kind:
        return registry.resolve(kind, group)
    loaded = registry.loaded(kind)
    if not (isinstance(loaded, type) and issubclass(loaded, Component)) and not kind.startswith("multissl."):
        trust.check_trusted(kind, where, trusted)
    try:
        component = registry.resolve(kind, group)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}={kind!r} cannot be imported ({error})") from None
    if not (isinstance(component, type) and issubclass(component, Component)):
        raise ValueError(f"{where}={kind!r} is no component")
    return component


def checked(wanted: Any, value: Any, option: str) -> Any:
    """Return the value of an option as its declared type, converted where nothing is lost, or raise a ValueError.

    Lists become tuples, a single text becomes a tuple of one, numbers of numpy Python's, paths become texts and texts
    paths. Nothing else is converted: "20" is no number. `option` is how the message calls it.
    """
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if len(alternatives(wanted)) > 1:
        return _first_fit(wanted, value, lambda one: checked(one, value, option))
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool) != any(
            a is value for a in args if isinstance(a, bool)
        ):
            raise ValueError(f"{option}={value!r}{suggest(str(value), map(str, args))}")
        return value
    if origin in (tuple, list):
        return _checked_sequence(wanted, value, option)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{option}={value!r}: want a mapping by name, got {type(value).__name__}")
        return {k: checked(args[1], v, f"{option}.{k}") for k, v in value.items()}
    if wanted is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if wanted is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return value if isinstance(value, int) else float(value)  # a whole number is said as it was typed
    if wanted is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(wanted, type) or (wanted not in (int, float) and isinstance(value, wanted)):
        return value
    raise ValueError(f"{option}={value!r}: want {described(wanted)}, got {type(value).__name__}")


def described(wanted: type) -> str:
    """Return how messages call a type."""
    if issubclass(wanted, Config):
        return f"options of {config_name(wanted)}, such as {wanted.__qualname__}()"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}
    return words.get(wanted, wanted.__name__)


def _checked_sequence(wanted: Any, value: Any, option: str) -> Any:
    if isinstance(value, str | os.PathLike):  # a text is one entry, not its letters
        value = (value,)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise ValueError(
            f"{option}={value!r}: want several values, such as a tuple, got {type(value).__name__}"
        )
    return _entries(wanted, list(value), option, checked, value)


@functools.cache
def resolved_hints(cls: type) -> Mapping[str, Any]:
    """Return the field types of a config; none for a class that names types only its function knows."""
    try:
        return hints_of(cls)
    except NameError:
        return {}


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Resolved field types of a config class; names are looked up in the modules of its bases too."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            hints.update(typing.get_type_hints(base))
    return hints


def group_of(cls: type) -> str | None:
    """Return the registry group that a config class's components belong to ("objectives"), if any."""
    owners = (base.owner for base in cls.__mro__ if issubclass(base, Config))
    return next((owner.group for owner in owners if owner and owner.group), None)


def difference(old: Any, new: Any, where: str = "") -> list[str]:
    """Lines `path: old -> new` for every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            line
            for k in keys
            for line in difference(old.get(k, "(absent)"), new.get(k, "(absent)"), f"{where}.{k}".lstrip("."))
        ]
    return [] if old == new else [f"{where}: {old} -> {new}"]
