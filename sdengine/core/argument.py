"""Checks of single arguments: what a number, a flag or a list must be before it enters a
configuration.

Each check returns the value in its plain Python type (a NumPy integer becomes `int`) or raises the
given error class with the argument's name, what was expected and what came. `bool` is never taken
for a number, nor a string for a list.
"""

from __future__ import annotations

import math
import numbers
import operator
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from sdengine.errors import SdengineError

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "check_bool",
    "check_choice",
    "check_float",
    "check_int",
    "check_int_list",
    "items_of",
    "python_command",
    "shown",
]

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
MAX_SHOWN_CHARS = 80


def python_command(code: str) -> str:
    """A line for a shell that runs Python code, whatever quotes and spaces it holds; for errors
    that say the way out."""
    return shlex.join(["python", "-c", code])


def shown(value: object) -> str:
    """Return a short text of any value and its type, for error messages."""
    text = repr(value)
    if len(text) > MAX_SHOWN_CHARS:
        text = text[: MAX_SHOWN_CHARS - 3] + "..."
    return f"{text} ({type(value).__name__})"


def items_of(value: object) -> list[Any] | None:
    """The items of a list, tuple, set, array or any other iterable; None for what is no list: a
    number, text, bytes, a mapping, or an array without dimensions, which only looks iterable.
    """
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        return None
    try:
        iterator = iter(value)
    except TypeError:  # no dimensions
        return None
    return list(iterator)


def check_int(
    error: type[SdengineError],
    name: str,
    value: object,
    low: int,
    high: int = INT64_MAX,
    way_out: str = "",
) -> int:
    """Return `value` as an int of [low, high].

    Raises:
        error: it is no integer (bool and float are none) or out of range.
    """
    if type(value) is int and low <= value <= high:
        return value  # the usual case, twenty times a request: no message is made
    expected = f"{name} to be an integer >= {low}"
    if high != INT64_MAX:
        expected = f"{name} to be an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise error.from_parts(expected, shown(value), way_out)
    number = operator.index(value)
    if number > high:
        expected = f"{name} to be an integer from {low} to {high}"
    if not low <= number <= high:
        raise error.from_parts(expected, str(number), way_out)
    return number


def check_float(
    error: type[SdengineError],
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    low_is_open: bool = False,
) -> float:
    """Return `value` as a finite float of [low, high], or of (low, high] when `low_is_open`.

    Raises:
        error: it is no real number, is NaN or infinite, or out of range.
    """
    if type(value) is float and low < value <= high and value != math.inf:
        return value  # as in check_int
    bound = f"{'>' if low_is_open else '>='} {low:g}"
    if high != math.inf:
        bound += f" and <= {high:g}"
    expected = f"{name} to be a finite number {bound}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise error.from_parts(expected, shown(value))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    is_below = number <= low if low_is_open else number < low
    if not math.isfinite(number) or is_below or number > high:
        raise error.from_parts(expected, repr(number))
    return number


def check_bool(error: type[SdengineError], name: str, value: object) -> bool:
    """Return `value`, which must be True or False itself.

    Raises:
        error: anything else, truthy or not.
    """
    if not isinstance(value, bool):
        raise error.from_parts(f"{name} to be True or False", shown(value))
    return value


def check_choice(
    error: type[SdengineError], name: str, value: object, choices: tuple[str, ...]
) -> str:
    """Return `value`, which must be one of the strings `choices`.

    Raises:
        error: anything else; the message lists the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise error.from_parts(f"{name} to be one of {', '.join(choices)}", shown(value))
    return value


def check_int_list(
    error: type[SdengineError], name: str, value: object, low: int, high: int
) -> tuple[int, ...]:
    """Return a list of ints as a tuple, every item in [low, high].

    Raises:
        error: it is no list (see `items_of`), or an item is no integer of the range.
    """
    items = items_of(value)
    if items is None:
        raise error.from_parts(f"{name} to be a list of integers", shown(value))
    return tuple(check_int(error, f"{name}[{i}]", item, low, high) for i, item in enumerate(items))
