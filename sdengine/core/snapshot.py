"""A list as it was, without copying it.

Outputs are cumulative and come with every step, so copies of a text of n tokens would take n^2 / 2
assignments, each with a look at a number that has long left the cache. A sequence's tokens are only
ever appended to, so that a part of them never changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

Item = TypeVar("Item")


class Snapshot(Sequence[Item]):
    """Items [start, stop) of a list that only grows. Equal to a list of the same items; slices,
    sums, copies and pickles of it are lists.

    Args:
        items: the list; may grow at its end from now on, and do nothing else.
        start, stop: part of it, not negative.
    """

    __slots__ = ("_items", "_start", "_stop")

    def __init__(self, items: list[Item], start: int, stop: int) -> None:
        self._items = items
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items[self._start : self._stop])

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(self._start, self._stop)[index]
        if isinstance(places, int):
            return self._items[places]
        if places.step == 1:
            return self._items[places.start : places.stop]
        return [self._items[place] for place in places]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, Snapshot)):
            return NotImplemented
        return list(self) == list(other)

    def __add__(self, other: list[Item] | Snapshot[Item]) -> list[Item]:
        return self[:] + other[:] if isinstance(other, (list, Snapshot)) else NotImplemented

    def __radd__(self, other: list[Item]) -> list[Item]:
        return other + self[:] if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)
