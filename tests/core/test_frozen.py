"""Objects of a quick maker are those of the class itself."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from sdengine.core.frozen import quick_maker
from sdengine.core.outputs import RequestMetrics

VALUES = (1.5, 2.5, None, 7, 3, None)


def test_it_makes_frozen_objects_of_the_class() -> None:
    made, expected = quick_maker(RequestMetrics)(*VALUES), RequestMetrics(*VALUES)
    assert type(made) is RequestMetrics and made == expected and repr(made) == repr(expected)
    assert pickle.loads(pickle.dumps(made)) == expected
    assert dataclasses.replace(made, num_prompt_tokens=8) != expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.num_prompt_tokens = 8  # type: ignore[misc]


def test_every_field_has_to_be_given() -> None:
    with pytest.raises(TypeError):
        quick_maker(RequestMetrics)(*VALUES[:-1])
