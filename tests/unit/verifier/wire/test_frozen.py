# SPDX-License-Identifier: Apache-2.0
"""`frozen` classes behave as frozen data classes with slots do."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace

import pytest

from quotary_verifier.wire.frozen import frozen


@frozen
class Plain:
    """Two fields, the second with a default, the third made anew, the fourth outside of comparison."""

    first: int
    second: str = "two"
    third: Mapping[str, int] = field(default_factory=dict)
    built: int | None = field(default=None, init=False, repr=False, compare=False)


@frozen
class Child(Plain):
    """One more field than its parent."""

    fourth: bytes = b"four"


@frozen
class Checked:
    """Refuses what it does not like."""

    only: int

    def __post_init__(self) -> None:
        if self.only < 0:
            raise ValueError("negative")


@frozen
class Empty:
    """Has nothing."""


@dataclass(frozen=True, slots=True)
class Model:
    """What `Plain` is meant to be like."""

    first: int
    second: str = "two"
    third: Mapping[str, int] = field(default_factory=dict)
    built: int | None = field(default=None, init=False, repr=False, compare=False)


def test_fields_are_taken_by_place_and_by_name_with_their_defaults() -> None:
    made = Plain(1, third={"a": 1})
    assert (made.first, made.second, made.third, made.built) == (1, "two", {"a": 1}, None)
    assert Plain(1).third is not Plain(1).third
    with pytest.raises(TypeError):
        Plain()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Plain(1, built=2)  # type: ignore[call-arg]


def test_no_field_can_be_set_or_deleted_and_no_other_attribute_added() -> None:
    made = Plain(1)
    for name in ("first", "another"):
        with pytest.raises(FrozenInstanceError, match=name):
            setattr(made, name, 2)
        with pytest.raises(FrozenInstanceError, match=name):
            delattr(made, name)
    assert not hasattr(made, "__dict__")


def test_objects_are_equal_if_they_are_of_one_class_and_their_fields_are() -> None:
    assert Plain(1) == Plain(1) != Plain(2)
    assert Plain(1) != Child(1)
    assert Plain(1) != (1, "two", {})
    assert Checked(1) == Checked(1) != Checked(2)
    assert Empty() == Empty()


def test_a_field_outside_of_comparison_does_not_count() -> None:
    made = Plain(1)
    object.__setattr__(made, "built", 7)
    assert made == Plain(1)


def test_equal_objects_have_equal_hashes_and_what_cannot_be_hashed_refuses() -> None:
    assert hash(Checked(1)) == hash(Checked(1))
    assert len({Checked(1), Checked(1), Checked(2)}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Plain(1))


def test_it_looks_like_a_data_class() -> None:
    assert repr(Plain(1)).replace("Plain", "Model") == repr(Model(1))
    assert [item.name for item in fields(Child)] == ["first", "second", "third", "built", "fourth"]
    assert replace(Child(1, fourth=b"x"), first=2) == Child(2, fourth=b"x")


def test_it_can_be_copied_and_pickled() -> None:
    made = Child(1, "x", {"a": 1}, b"y")
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made


def test_a_check_after_construction_is_done() -> None:
    with pytest.raises(ValueError, match="negative"):
        Checked(-1)


def test_a_constructor_is_compiled_when_the_first_object_is_made() -> None:
    @frozen
    class Late:
        """Nobody makes one yet."""

        only: int

    before = Late.__init__
    assert Late(1).only == 1
    assert Late.__init__ is not before
    assert inspect.signature(Late).parameters.keys() == {"only"}


def test_a_class_is_described_as_data_classes_are_before_and_after_its_first_object() -> None:
    @frozen
    class Described(Plain):
        """Adds one field to those of another class."""

        more: str = "more"

    assert is_dataclass(Described)
    assert [(item.name, item.type) for item in fields(Described)][-1] == ("more", "str")
    assert Described.__match_args__ == ("first", "second", "third", "more")
    assert Described.__dataclass_params__.frozen
    made = Described(1, more="x")
    assert [item.name for item in fields(made)] == ["first", "second", "third", "built", "more"]
    assert asdict(made) == {"first": 1, "second": "two", "third": {}, "built": None, "more": "x"}
    with pytest.raises(TypeError, match="unexpected keyword"):
        replace(made, other=2)


@frozen
class Unluckily:
    missing: dict[str, int] = field(default_factory=dict)


def test_a_field_may_have_any_name_and_still_takes_its_value() -> None:
    assert Unluckily({"a": 1}).missing == {"a": 1}
    assert Unluckily().missing == {}
