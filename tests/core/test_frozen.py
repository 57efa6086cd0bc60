"""Objects of a quick maker are those of the class itself."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable

import pytest

from sdengine.core.frozen import late_maker, quick_maker
from sdengine.core.outputs import RequestMetrics, RequestOutput

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


class Maker:
    """Makes the late fields of an output and counts how often."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, prompt_tokens: int) -> dict[str, object]:
        self.num_calls += 1
        return {"outputs": [], "metrics": RequestMetrics(1.0, num_prompt_tokens=prompt_tokens)}


def late_output(maker: Maker) -> RequestOutput:
    make = late_maker(RequestOutput, "outputs", "metrics")
    return make("r", None, [1, 2], False, (maker, (2,)))  # type: ignore[no-any-return]


def test_late_fields_are_made_once_when_one_is_looked_at() -> None:
    maker = Maker()
    made = late_output(maker)
    assert type(made) is RequestOutput and made.request_id == "r" and maker.num_calls == 0
    assert made.metrics.num_prompt_tokens == 2 and made.outputs == [] and maker.num_calls == 1
    assert made._late is None, "what they were made of is not kept"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.outputs = []  # type: ignore[misc]


@pytest.mark.parametrize(
    "look", [repr, dataclasses.asdict, copy.copy, lambda made: pickle.loads(pickle.dumps(made))]
)
def test_whatever_reads_all_fields_sees_late_ones(look: Callable[[RequestOutput], object]) -> None:
    whole = RequestOutput("r", None, [1, 2], [], False, RequestMetrics(1.0, num_prompt_tokens=2))
    assert look(late_output(Maker())) == look(whole)
    assert late_output(Maker()) == whole


@pytest.mark.parametrize(
    "made", [late_output(Maker()), RequestOutput("r", None, [], [], True, None)]
)  # type: ignore[arg-type]
def test_other_names_are_no_attributes(made: RequestOutput) -> None:
    with pytest.raises(AttributeError, match="'RequestOutput' object has no attribute 'other'"):
        made.other  # type: ignore[attr-defined]  # noqa: B018
