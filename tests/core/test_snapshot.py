"""A snapshot shows what a copy would have shown."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict

import pytest

from sdengine.core.outputs import CompletionOutput
from sdengine.core.snapshot import Snapshot

ITEMS = list(range(10, 20))


def test_it_equals_a_copy_and_does_not_grow() -> None:
    items = list(ITEMS)
    shown, copied = Snapshot(items, 2, 9), items[2:9]
    items += [1, 2, 3]
    assert shown == copied and copied == shown
    assert len(shown) == 7 and list(shown) == copied and repr(shown) == repr(copied)
    assert shown == Snapshot(items, 2, 9) and shown != Snapshot(items, 1, 8) and shown != "x"
    assert 13 in shown and 1 not in shown and shown.index(13) == 1


@pytest.mark.parametrize("start", [None, -9, -2, 0, 3, 7, 9])
@pytest.mark.parametrize("stop", [None, -9, -2, 0, 3, 7, 9])
@pytest.mark.parametrize("step", [None, 1, 2, -1, -3])
def test_slices_are_lists_of_the_same_items(
    start: int | None, stop: int | None, step: int | None
) -> None:
    part = Snapshot(ITEMS, 2, 9)[start:stop:step]
    assert type(part) is list and part == ITEMS[2:9][start:stop:step]


def test_sums_are_lists() -> None:
    """As one joins a prompt and its completion."""
    shown, items = Snapshot(ITEMS, 2, 4), [1, 2]
    assert shown + items == [12, 13, 1, 2] and items + shown == [1, 2, 12, 13]
    assert shown + shown == [12, 13, 12, 13]
    joined = shown
    joined += items
    assert joined == [12, 13, 1, 2] and shown == [12, 13]
    with pytest.raises(TypeError):
        shown + "ab"  # type: ignore[operator]


def test_single_items() -> None:
    shown = Snapshot(ITEMS, 2, 9)
    assert [shown[i] for i in range(-7, 7)] == ITEMS[2:9] * 2
    for beyond in (7, -8):
        with pytest.raises(IndexError):
            shown[beyond]
    with pytest.raises(TypeError):
        hash(shown)


def test_copies_and_pickles_are_lists() -> None:
    shown = Snapshot(ITEMS, 2, 9)
    for copied in (copy.copy(shown), copy.deepcopy(shown), pickle.loads(pickle.dumps(shown))):
        assert type(copied) is list and copied == ITEMS[2:9]
    output = asdict(CompletionOutput(0, "x", shown))
    assert json.loads(json.dumps(output))["token_ids"] == ITEMS[2:9]
