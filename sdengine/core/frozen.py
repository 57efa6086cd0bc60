"""Frozen dataclasses, made quickly or when somebody looks at them, and what they may hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, make_dataclass
from typing import Any, NoReturn, ParamSpec, TypeVar

Args = ParamSpec("Args")
Frozen = TypeVar("Frozen")
Key = TypeVar("Key")
Value = TypeVar("Value")


class FrozenDict(dict[Key, Value]):
    """A dict that stays as it was made, so that what was checked of it stays true."""

    __slots__ = ()

    def _refuse(self, *args: object, **named: object) -> NoReturn:
        raise TypeError("expected a new dict, got a change of one that is frozen; copy it: dict(d)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


class LateFields:
    """Base of a frozen dataclass with slots some fields of which are made when one of them is
    looked at for the first time: a step makes objects that nobody may look at.

    Such an object has in place of these fields a function and its arguments, which returns them by
    name. What that reads must not change any more; called by two threads it makes equal fields.
    """

    __slots__ = ("_late",)

    def __getattr__(self, name: str) -> Any:
        """Called where a slot is empty, and for what no object of the class has."""
        try:
            late = object.__getattribute__(self, "_late")
        except AttributeError:  # made with all of its fields
            late = None
        if late is not None:
            make, arguments = late
            for late_name, value in make(*arguments).items():
                object.__setattr__(self, late_name, value)
            object.__setattr__(self, "_late", None)
        return object.__getattribute__(self, name)


def late_maker(frozen: type[Any], *late_names: str) -> Callable[..., Any]:
    """As `quick_maker`, for a class with `LateFields`: all fields but those named have to be given,
    and then a function and the tuple of its arguments that make these."""
    names = [f.name for f in fields(frozen) if f.name not in late_names]
    return _maker(frozen, [*names, "_late"])  # type: ignore[no-any-return]


def quick_maker(frozen: Callable[Args, Frozen]) -> Callable[Args, Frozen]:
    """A function that makes objects of a frozen dataclass with slots in a third of the time.

    The class' own `__init__` goes around its `__setattr__`, field by field: 1.9 us for six fields,
    where assignments take 0.2 us (Python 3.11, Zen 3). Here an object of a mutable class with the
    same slots is filled, which then becomes one of the frozen class. The function is written out,
    as `dataclass` does it, because one call is what a step can afford: with the mutable class'
    `__init__` and `__post_init__` it was two, in code that no cache holds between two steps.

    Args:
        frozen: the class, without `__post_init__`. Its maker has to be given every field, and has
            no defaults.
    """
    cls: Any = frozen
    return _maker(cls, [f.name for f in fields(cls)])  # type: ignore[no-any-return]


def _maker(cls: Any, names: list[str]) -> Any:
    """A function that makes an object of a class and fills these slots of it."""
    own_names = [f.name for f in fields(cls)]
    twin = make_dataclass(
        f"Unfrozen{cls.__name__}", own_names, bases=cls.__bases__, init=False, slots=True
    )
    lines = [
        f"def make_{cls.__name__}({', '.join(names)}):",
        "made = new(twin)",
        *(f"made.{name} = {name}" for name in names),
        "made.__class__ = frozen",
        "return made",
    ]
    scope: dict[str, Any] = {"new": object.__new__, "twin": twin, "frozen": cls}
    exec("\n    ".join(lines), scope)
    return scope[f"make_{cls.__name__}"]
