from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from multissl.config import Component, Config, difference, from_dict, to_dict


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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"load": "much"}, "recipe.load='much': want int"),
        ({"wheel": {"kind": "tests.test_config:Wheel", "spokes": 3}}, "recipe.wheel.spokes=3: want a list"),
        ({"wheel": 3}, "recipe.wheel=3: want a mapping"),
        ({"load": True}, "recipe.load=True"),
    ],
)
def test_a_wrong_type_names_option_and_value(data: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Cart, data)


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
