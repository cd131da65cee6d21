from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from multissl import registry
from multissl.config import Component, Config, difference, from_dict, hints_of, new_names, to_dict
from multissl.stages import Stage


class Base(Component):
    @dataclass(kw_only=True, slots=True)
    class Config(Config):
        pass

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg


class Wheel(Base):
    @dataclass(kw_only=True, slots=True)
    class Config(Base.Config):
        radius: float = 1.0
        spokes: tuple[int, ...] = (8, 8)


@dataclass(kw_only=True, slots=True)
class Cart(Config):
    wheel: Base.Config = field(default_factory=Wheel.Config)
    name: str = "cart"
    load: int | None = None


def test_a_config_builds_what_it_is_nested_in() -> None:
    assert isinstance(Wheel.Config().build(), Wheel)


def test_json_round_trip_keeps_kinds_and_types() -> None:
    cart = Cart(wheel=Wheel.Config(radius=2.5, spokes=(3,)), load=4)
    data = to_dict(cart)
    assert data["wheel"]["kind"] == "tests.test_config:Wheel"
    assert from_dict(Cart, data) == cart


@pytest.mark.parametrize(
    ("make", "nearest"),
    [
        (lambda: Cart(nmae="x"), "name"),  # type: ignore[call-arg]
        (lambda: setattr(Cart(), "naem", "x"), "name"),
        (lambda: from_dict(Cart, {"nam": "x"}), "name"),
        (lambda: from_dict(Cart, {"wheel": {"kind": "tests.test_config:Wheel", "radiu": 1}}), "radius"),
    ],
    ids=["python", "attribute", "file", "nested"],
)
def test_a_misspelt_option_suggests_the_right_one(make: object, nearest: str) -> None:
    with pytest.raises((TypeError, AttributeError, ValueError), match=f"did you mean [a-z.]*{nearest}"):
        make()  # type: ignore[operator]


class Tyre(Wheel):
    @dataclass(kw_only=True, slots=True)
    class Config(Wheel.Config):
        renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"colour": "color"})

        color: str = "black"


class Striped(Tyre):
    @dataclass(kw_only=True, slots=True)
    class Config(Tyre.Config):
        renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"grey": "gray"})

        gray: float = 0.5


def test_a_file_of_an_earlier_format_may_use_the_old_names_of_options() -> None:
    stored = {"wheel": {"kind": "tests.test_config:Striped", "colour": "red", "grey": 1.0, "radius": 2.0}}
    read = from_dict(Cart, stored, old=True)
    assert read == Cart(wheel=Striped.Config(color="red", gray=1.0, radius=2.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Striped.Config(colour="red"),  # type: ignore[call-arg]
        lambda: Striped.Config().replace(colour="red"),
        lambda: setattr(Striped.Config(), "colour", "red"),
        lambda: from_dict(Striped.Config, {"colour": "red"}),
        lambda: from_dict(Cart, {"wheel": {"kind": "tests.test_config:Striped", "colour": "red"}}),
    ],
    ids=["python", "replace", "attribute", "file", "nested"],
)
def test_elsewhere_an_old_name_is_refused_with_the_new_one(make: Callable[[], object]) -> None:
    with pytest.raises(
        (TypeError, AttributeError, ValueError), match="no option 'colour': it is called 'color' now"
    ):
        make()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"load": "much"}, "recipe.load='much': want int"),
        ({"wheel": {"kind": "tests.test_config:Wheel", "spokes": 3}}, "recipe.wheel.spokes=3: want a list"),
        ({"wheel": 3}, "recipe.wheel=3: want a mapping"),
        ({"load": True}, "recipe.load=True"),
        (
            {"wheel": {"kind": "tests.test_config:Wheel", "radius": "wide"}},
            "recipe.wheel.radius='wide': want a n",
        ),
    ],
)
def test_a_wrong_type_names_option_and_value(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Cart, data)


def test_an_option_that_has_no_default_and_is_not_given_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"stages.0 lacks 'name' and 'steps', which Stage has no default for"
    ):
        from_dict(Stage, {"changes": {}}, "stages.0")


def test_yaml_numbers_written_as_text_are_numbers() -> None:
    assert from_dict(Wheel.Config, {"radius": "1e-3"}).radius == 1e-3


def test_difference_lists_leaves() -> None:
    old, new = to_dict(Cart()), to_dict(Cart(wheel=Wheel.Config(radius=3.0), name="dray"))
    assert difference(old, new) == ["wheel.radius: 1.0 -> 3.0", "name: cart -> dray"]


def test_an_option_may_be_called_kind() -> None:
    @dataclass(kw_only=True, slots=True)
    class Paint(Config):
        kind: str = "oil"

    assert from_dict(Paint, to_dict(Paint(kind="lime"))) == Paint(kind="lime")


class Spare(Wheel):
    """Has no options of its own."""


def test_a_component_without_options_of_its_own_builds_itself() -> None:
    assert isinstance(Spare.Config(radius=2.0).build(), Spare)
    assert isinstance(Wheel.Config().build(), Wheel)
    assert not isinstance(Wheel.Config().build(), Spare)


@dataclass(kw_only=True, slots=True)
class Every(Config):
    count: int = 1
    rate: float = 0.5
    on: bool = False
    kind_of: Literal["a", "b"] = "a"
    paths: tuple[str, ...] = ()
    size: tuple[int, int] = (4, 4)
    name: str = ""
    folder: Path = Path()
    wheels: dict[str, Base.Config] = field(default_factory=dict)
    limit: float | None = None


@pytest.mark.parametrize(
    ("option", "value", "stored"),
    [
        ("paths", "pairs.tar", ("pairs.tar",)), ("paths", Path("a"), ("a",)), ("paths", ["a", "b"], ("a", "b")),
        ("size", [2, 3], (2, 3)), ("rate", 1, 1), ("name", Path("a/b"), "a/b"), ("folder", "a/b", Path("a/b")),
        ("limit", None, None), ("limit", 2, 2), ("count", np.int64(3), 3), ("rate", np.float32(0.5), 0.5),
    ],
)  # fmt: skip
def test_what_loses_nothing_is_converted_in_python_too(option: str, value: Any, stored: Any) -> None:
    assert getattr(Every(**{option: value}), option) == stored
    made = Every()
    setattr(made, option, value)
    assert getattr(made, option) == stored
    assert type(getattr(made, option)) is type(stored)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("count", "20", "Every.count='20': want a whole number, got str"), ("count", 2.5, "want a whole number"),
        ("count", True, "want a whole number, got bool"), ("rate", "0.1", "want a number, got str"),
        ("on", 1, "want True or False, got int"), ("kind_of", "c", "Every.kind_of='c'; known: a, b"),
        ("size", (1, 2, 3), "want 2 values, got 3"), ("paths", 3, "want several values"),
        ("name", 3, "want a text, got int"), ("wheels", [], "want a mapping by name"),
        ("wheels", {"left": Wheel}, r"Every.wheels.left=.*want options of Base, such as Base.Config\(\)"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused_in_python_too(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Every(**{option: value})
    with pytest.raises(ValueError, match=message):
        setattr(Every(), option, value)


PLAIN = {"kernels", "layouts", "sources", "exporters"}
"""Groups whose classes are built without options."""
NAMED = [(group, name) for group in registry.GROUPS if group not in PLAIN for name in registry.GROUPS[group]]


@pytest.mark.parametrize(("group", "name"), NAMED)
def test_no_option_of_a_registered_component_takes_a_number_as_text(group: str, name: str) -> None:
    try:
        config = registry.resolve(name, group).Config
        made = config()
    except (ImportError, TypeError) as error:  # a package that is missing, options that have to be given
        pytest.skip(str(error))
    for option, wanted in hints_of(config).items():
        if wanted in (int, float, bool):
            with pytest.raises(ValueError, match=rf"\.{option}='20': want "):
                setattr(made, option, "20")
        if wanted == tuple[str, ...]:
            setattr(made, option, "x/pairs.tar")
            assert getattr(made, option) == ("x/pairs.tar",)


CONFIGS = [
    registry.resolve(name, group).Config
    for group in ("modalities", "encoders", "objectives", "evaluators")
    for name in registry.names(group)
]


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda c: c.owner.__qualname__)
def test_what_a_component_says_is_renamed_is_an_option_of_it(cls: type[Config]) -> None:
    known = {f.name for f in fields(cls)}
    assert set(new_names(cls).values()) <= known
    assert not set(new_names(cls)) & known
