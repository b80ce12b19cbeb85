"""Every bound and choice of an options class is enforced, and its docstring lists every field."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from mlimages.core import InputError, OptionField, option_fields
from mlimages.training import FineTuneConfig

CONFIG = FineTuneConfig(Path("labels.txt"), Path("run"))
FIELDS = {field.name: field for field in option_fields(FineTuneConfig)}
BOUNDED = [field for field in FIELDS.values() if field.option.min is not None or field.option.max is not None]
CHOICES = [field for field in FIELDS.values() if get_origin(field.type) is Literal]


def step(field: OptionField) -> float:
    return 1 if field.type is int else 1e-6


@pytest.mark.parametrize("field", BOUNDED, ids=lambda field: field.name)
def test_a_number_is_taken_at_its_bounds_and_refused_beyond(field: OptionField) -> None:
    for bound, beyond in ((field.option.min, -step(field)), (field.option.max, step(field))):
        if bound is None:
            continue
        replace(CONFIG, **{field.name: bound})
        with pytest.raises(InputError, match=f"^{field.name} is .*: it must be"):
            replace(CONFIG, **{field.name: bound + beyond})


def test_not_a_number_lies_outside_every_bound() -> None:
    with pytest.raises(InputError, match="weight_decay is nan"):
        replace(CONFIG, weight_decay=float("nan"))


@pytest.mark.parametrize("field", CHOICES, ids=lambda field: field.name)
def test_a_choice_is_one_of_its_values(field: OptionField) -> None:
    for value in get_args(field.type):
        replace(CONFIG, **{field.name: value})
    wrong: dict[str, Any] = {field.name: "else"}
    with pytest.raises(InputError, match=f"^{field.name} is 'else': it must be one of"):
        replace(CONFIG, **wrong)


def test_the_docstring_lists_every_field_with_its_help() -> None:
    text = " ".join((FineTuneConfig.__doc__ or "").split())
    for field in FIELDS.values():
        assert f"{field.name}: {field.option.help}" in text


def test_a_field_without_an_option_is_a_mistake_of_ours() -> None:
    @dataclass
    class Wrong:
        size: int = 1

    with pytest.raises((StopIteration, AttributeError, RuntimeError)):
        list(option_fields(Wrong))
