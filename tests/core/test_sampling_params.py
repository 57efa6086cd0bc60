"""SamplingParams: every argument is validated at construction and named in the error."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import RequestError

NAN, INF = float("nan"), float("inf")
BAD_NUMBERS = [NAN, INF, -INF, True, "1", None, [1], 1j]
REFUSED = {
    "n": [0, -1, 129, 1.0, *BAD_NUMBERS],
    "max_tokens": [0, -5, 1.5, 2**63, *BAD_NUMBERS],
    "min_tokens": [-1, 17, 0.0, *BAD_NUMBERS],
    "temperature": [-0.1, -1e-300, 10**400, *BAD_NUMBERS],
    "top_p": [0, 0.0, -0.1, 1.0001, *BAD_NUMBERS],
    "top_k": [-2, 1.0, *BAD_NUMBERS],
    "min_p": [-0.1, 1.1, *BAD_NUMBERS],
    "presence_penalty": [-2.1, 2.1, *BAD_NUMBERS],
    "frequency_penalty": [-2.1, 2.1, *BAD_NUMBERS],
    "repetition_penalty": [0, -1, *BAD_NUMBERS],
    "seed": [2**63, -(2**63) - 1, 1.0, NAN, True, "1", [1]],
    "logprobs": [-1, 21, 1.0, NAN, True, "1"],
    "ignore_eos": [1, 0, None, "True", np.bool_(True)],
    "skip_special_tokens": [1, None],
    "include_stop_str_in_output": [1, None],
    "stop": [
        "",
        [""],
        ["a", ""],
        [1],
        3,
        b"a",
        [b"a"],
        {"a": 1},
        [["a"]],
        np.array("x"),
        bytearray(b"a"),
    ],
    "stop_token_ids": [
        3,
        "3",
        [-1],
        [2**31],
        [1.0],
        [True],
        ["1"],
        b"ab",
        [[1]],
        np.array(5),
        torch.tensor(5),
        bytearray(b"ab"),
        {5: 1.0},
    ],
    "logit_bias": [
        [1],
        "x",
        3,
        {"1": 1.0},
        {-1: 1.0},
        {1.0: 1.0},
        {True: 1.0},
        {2**31: 1.0},
        {1: 100.5},
        {1: -101},
        {1: NAN},
        {1: INF},
        {1: "1"},
        {1: None},
        {1: True},
    ],
}
ACCEPTED = {
    "n": [1, 128, np.int32(3)],
    "max_tokens": [16, 2**31],
    "min_tokens": [0, 16],
    "temperature": [0, 0.0, 1, 1e-9, 5.5, np.float32(0.5)],
    "top_p": [1, 1e-9, 0.9],
    "top_k": [0, -1, 1, 10**6],
    "min_p": [0, 1],
    "presence_penalty": [-2, 2, 0.0],
    "frequency_penalty": [-2, 2],
    "repetition_penalty": [1e-3, 1, 10],
    "seed": [None, 0, -1, 2**63 - 1, -(2**63)],
    "logprobs": [None, 0, 20],
    "ignore_eos": [True],
    "stop": [None, "x", ["a", "b"], ("a",), []],
    "stop_token_ids": [None, [], [0, 2**31 - 1], np.array([1, 2]), {7}],
    "logit_bias": [None, {}, {0: -100, 5: 100.0}, {np.int64(3): np.float32(1.5)}],
}
FIELDS = [field.name for field in dataclasses.fields(SamplingParams)]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_bad_values_are_refused_and_named(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert "expected" in str(caught.value)
    assert ", got " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ACCEPTED.items() for value in values]
)
def test_good_values_are_accepted(name: str, value: object) -> None:
    SamplingParams(**{name: value})


def test_every_field_is_in_the_tables() -> None:
    assert set(REFUSED) == set(FIELDS)


def test_defaults_are_the_documented_ones() -> None:
    params = SamplingParams()
    assert {name: getattr(params, name) for name in FIELDS} == {
        "n": 1,
        "max_tokens": 16,
        "min_tokens": 0,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": None,
        "seed": None,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "logprobs": None,
        "skip_special_tokens": True,
        "include_stop_str_in_output": False,
    }


def test_values_are_kept_in_plain_types() -> None:
    params = SamplingParams(
        n=np.int16(2),
        temperature=1,
        top_k=-1,
        stop="end",
        stop_token_ids=[np.int64(3)],
        logit_bias={np.int64(4): 1},
    )
    assert type(params.n) is int
    assert type(params.temperature) is float
    assert params.top_k == 0
    assert params.stop_strings == ("end",)
    assert params.stop_token_ids == (3,)
    assert [type(x) for x in (*params.logit_bias, *params.logit_bias.values())] == [int, float]


def test_the_callers_containers_are_copied() -> None:
    bias, stop = {1: 2.0}, ["a"]
    params = SamplingParams(logit_bias=bias, stop=stop)
    bias[1] = 5.0
    stop.append("b")
    assert params.logit_bias == {1: 2.0}
    assert params.stop_strings == ("a",)


def test_frozen_hashable_picklable() -> None:
    params = SamplingParams(logit_bias={1: 2.0}, stop=["a"], seed=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2
    assert len({params, SamplingParams(logit_bias={1: 2.0}, stop=["a"], seed=3)}) == 1
    assert pickle.loads(pickle.dumps(params)) == params
    assert dataclasses.replace(params, n=4).n == 4


def test_min_tokens_above_max_tokens_names_both() -> None:
    with pytest.raises(RequestError, match="min_tokens <= max_tokens = 4, got 5; raise max_tokens"):
        SamplingParams(max_tokens=4, min_tokens=5)


def test_greedy_and_penalties() -> None:
    assert SamplingParams(temperature=9e-6).is_greedy
    assert not SamplingParams(temperature=1e-5).is_greedy
    assert not SamplingParams().changes_logits
    for name, value in (("presence", 0.1), ("frequency", -0.1), ("repetition", 1.1)):
        assert SamplingParams(**{f"{name}_penalty": value}).changes_logits


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=5,
)


@given(name=st.sampled_from(FIELDS), value=anything)
def test_any_value_is_accepted_or_a_request_error(name: str, value: object) -> None:
    try:
        SamplingParams(**{name: value})
    except RequestError as error:
        assert name in str(error)


def test_what_was_checked_stays_as_it_was() -> None:
    given = {5: 1.0}
    params = SamplingParams(logit_bias=given)
    given[5] = 1e9
    bias = params.logit_bias
    assert bias == {5: 1.0} and isinstance(bias, dict)
    changes = (
        lambda: bias.__setitem__(5, 1e9),
        lambda: bias.update({7: 1e9}),
        lambda: bias.setdefault(7, 1e9),
        lambda: bias.__ior__({7: 1e9}),
        lambda: bias.pop(5),
        bias.clear,
        bias.popitem,
    )
    for change in changes:
        with pytest.raises(TypeError, match="frozen"):
            change()
    for copied in (copy.deepcopy(params), copy.copy(params), pickle.loads(pickle.dumps(params))):
        assert copied == params and type(copied.logit_bias) is type(bias)
    assert json.loads(json.dumps(dataclasses.asdict(params)))["logit_bias"] == {"5": 1.0}
    assert {**bias, 6: 2.0} == {5: 1.0, 6: 2.0}
