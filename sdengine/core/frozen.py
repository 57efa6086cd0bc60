"""Frozen dataclasses, made quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, make_dataclass
from typing import Any, ParamSpec, TypeVar

Args = ParamSpec("Args")
Frozen = TypeVar("Frozen")


def quick_maker(frozen: Callable[Args, Frozen]) -> Callable[Args, Frozen]:
    """What makes objects of a frozen dataclass with slots in a third of the time.

    The class' own `__init__` goes around its `__setattr__`, field by field: 1.9 us for six fields,
    where assignments take 0.2 us (Python 3.11, Zen 3). Here an object of a mutable class with the
    same slots is filled, which then becomes one of the frozen class.

    Args:
        frozen: the class, without `__post_init__`. Its maker has to be given every field, and has
            no defaults.
    """
    cls: Any = frozen

    def become_frozen(self: Any) -> None:
        self.__class__ = cls

    twin: Any = make_dataclass(
        f"Unfrozen{cls.__name__}",
        [(f.name, f.type) for f in fields(cls)],
        namespace={"__post_init__": become_frozen},
        slots=True,
    )
    return twin  # type: ignore[no-any-return]
