"""Options, each defined once: a dataclass field holds its type, default, bounds and help.

The command line, the validation and the docstring are derived from it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mlimages.core.errors import InputError

_OptionsClass = TypeVar("_OptionsClass")

MAX_SEED = 2**32 - 1
"""Largest random seed of all functions; NumPy's legacy generators and scikit-learn have the same bound."""


@dataclass(frozen=True, slots=True)
class Option:
    """Describes a field of an options class, in `Annotated[TYPE, Option(...)]`.

    Attributes:
        help: one sentence that describes the effect.
        group: heading under which `--help` lists it.
        flags: names on the command line; `()` derives one from the field's name.
        metavar: placeholder of the value in `--help`.
        min, max: inclusive bounds of a number.
        parse: converts the text from the command line to a value; raises InputError.
        default_text: shown as the default instead of the value.
        is_advanced: listed only by `--help-all`.
        is_internal: not on the command line.
    """

    help: str
    group: str = "Options"
    flags: tuple[str, ...] = ()
    metavar: str = ""
    min: float | None = None
    max: float | None = None
    parse: Callable[[str], Any] | None = None
    default_text: str = ""
    is_advanced: bool = False
    is_internal: bool = False


@dataclass(frozen=True, slots=True)
class OptionField:
    """A field of an options class.

    Attributes:
        name: name of the field.
        type: type of the value. For `T | None` this is `T`; for a union of several types, it is the whole union.
        default: default value; `dataclasses.MISSING` for a required field.
        option: the description of the field.
        is_optional: whether None is also allowed.
    """

    name: str
    type: Any
    default: Any
    option: Option
    is_optional: bool = False


def option_fields(cls: type) -> Iterator[OptionField]:
    """Yield the fields of an options class, in order."""
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        annotated = hints[field.name]
        option = next(each for each in annotated.__metadata__ if isinstance(each, Option))
        kind, members = annotated.__origin__, get_args(annotated.__origin__)
        is_optional = NoneType in members
        if is_optional and len(members) == 2:
            kind = members[members[0] is NoneType]
        yield OptionField(field.name, kind, field.default, option, is_optional)


def check_options(options: Any) -> None:
    """Check the values of an options dataclass against the types, bounds and choices of its fields.

    NumPy scalars are replaced by Python's, which can be written as JSON.

    Raises:
        InputError: a value has the wrong type, lies outside its bounds, or is not one of the choices.
    """
    for field in option_fields(type(options)):
        value = _to_builtin(getattr(options, field.name))
        object.__setattr__(options, field.name, value)
        if value is None and field.is_optional:
            continue
        if get_origin(field.type) is Literal:
            check_choice(field.type, **{field.name: value})
        if expected := _describe_type_mismatch(field.type, value):
            raise InputError(f"{field.name} is {value!r}: it must be {expected}")
        low, high = field.option.min, field.option.max
        if (low is not None and not low <= value < math.inf) or (high is not None and not value <= high):
            bounds = (
                f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
            )
            raise InputError(f"{field.name} is {value}: it must be {bounds}")


def _to_builtin(value: Any) -> Any:
    """Convert a NumPy scalar, or those in a list or tuple, to a Python scalar; return other values unchanged."""
    if isinstance(value, list | tuple):
        return [*map(_to_builtin, value)] if isinstance(value, list) else tuple(map(_to_builtin, value))
    return value.item() if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0 else value


def check_choice(literal: Any, **values: object) -> None:
    """Check that each keyword argument has one of the values of a `Literal`; the message names the argument.

    Raises:
        InputError: a value is not one of the choices.
    """
    for name, value in values.items():
        if value not in get_args(literal):
            raise InputError(f"{name} is {value!r}: it must be one of {', '.join(get_args(literal))}")


def parse_bool(name: str, value: object) -> bool:
    """Return a Python or NumPy bool as a Python bool.

    Raises:
        InputError: the value is of another type; the message names it as `name`.
    """
    if expected := _describe_type_mismatch(bool, value):
        raise InputError(f"{name} is {value!r}: it must be {expected}")
    return bool(value)


def check_seed(seed: int) -> None:
    """Check a random seed that is passed as an argument.

    Raises:
        InputError: the seed is not a whole number from 0 to MAX_SEED.
    """
    if _describe_type_mismatch(int, seed) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed is {seed!r}: it must be a whole number from 0 to {MAX_SEED}")


def check_at_least(lower_bound: float, **values: float | None) -> None:
    """Check that values are finite numbers of at least `lower_bound`, or None.

    They are passed as keyword arguments, whose names appear in the message. If `lower_bound` is an int, they must be
    whole numbers.

    Raises:
        InputError: a value is no such number.
    """
    for name, value in values.items():
        kind = type(lower_bound)
        if value is not None and (_describe_type_mismatch(kind, value) or not lower_bound <= value < math.inf):
            noun = "whole number" if kind is int else "number"
            raise InputError(f"{name} is {value!r}: it must be a {noun} of at least {lower_bound:g}")


def _describe_type_mismatch(expected_type: Any, value: Any) -> str:
    """If `value` has the wrong type, return the right one, such as "a number"; "" if it is right or not checked."""
    if isinstance(expected_type, UnionType):
        forms = [_describe_type_mismatch(each, value) for each in get_args(expected_type) if each is not type(None)]
        return " or ".join(forms) if all(forms) else ""
    if get_origin(expected_type) is tuple:
        return "" if isinstance(value, tuple | list) else "a tuple"
    if get_origin(expected_type) in (Collection, Sequence):
        return "" if isinstance(value, Collection) else "a list"
    is_bool = type(value).__name__ in ("bool", "bool_")
    checks: dict[Any, tuple[bool, str]] = {
        bool: (is_bool, "True or False"),
        int: (hasattr(value, "__index__") and not is_bool, "a whole number"),
        float: (isinstance(value, Real) and not is_bool, "a number"),
        str: (isinstance(value, str), "a string"),
    }
    is_right, expected = checks.get(expected_type, (True, ""))
    return "" if is_right else expected


def document_fields(cls: type[_OptionsClass]) -> type[_OptionsClass]:
    """Decorate a class: append the help of its fields to its docstring, as `Attributes:`."""
    lines = [f"{field.name}: {field.option.help}" for field in option_fields(cls)]
    indents = " " * 8, " " * 12
    fill = textwrap.TextWrapper(116, *indents, break_on_hyphens=False).fill  # an option is searched for as a word
    wrapped = map(fill, lines)
    cls.__doc__ = f"{(cls.__doc__ or '').rstrip()}\n\n    Attributes:\n" + "\n".join(wrapped) + "\n    "
    return cls
