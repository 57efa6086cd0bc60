"""EngineConfig and SpeculationConfig: validated once, contradictions refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdengine.core.config import METHODS, EngineConfig, SpeculationConfig
from sdengine.core.sampling_params import GREEDY_TEMPERATURE
from sdengine.errors import ConfigError

NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "eagle"}, "method to be one of dyspec, chain.*'eagle'"),
        ({"method": None}, "method"),
        ({"verifier": "typical"}, "verifier to be one of coupled, rejection"),
        ({"max_nodes": 0}, "max_nodes .*got 0; speculation=None decodes plainly"),
        ({"max_nodes": 1025}, "max_nodes .*from 1 to 1024, got 1025$"),
        ({"max_nodes": 8.0}, "max_nodes"),
        ({"max_nodes": True}, "max_nodes"),
        ({"max_depth": 0}, "max_depth"),
        ({"max_children": 33}, "max_children"),
        ({"adaptive": 1}, "adaptive to be True or False"),
        ({"calibrate": "no"}, "calibrate"),
        ({"max_batch_nodes": 0}, "max_batch_nodes"),
        ({"max_batch_nodes": 2**31}, "max_batch_nodes to be an integer from 1 to 2147483647"),
        ({"draft_temperature": -1.0}, "draft_temperature"),
        ({"draft_temperature": NAN}, "draft_temperature"),
        ({"draft_temperature": float("inf")}, "draft_temperature"),
        (
            {"verifier": "rejection", "draft_temperature": 0.0},
            r"draft_temperature of at least 1e-05.*got 0\.0; .*verifier=\"coupled\"",
        ),
        ({"verifier": "rejection", "draft_temperature": 9.9e-6}, "draft_temperature of at least"),
        ({"method": "ngram", "draft_temperature": 0.5}, 'no draft_temperature with method "ngram"'),
        ({"method": "ngram", "min_ngram": 6}, "min_ngram <= max_ngram = 5, got 6"),
        ({"min_ngram": 2}, 'no min_ngram with method "dyspec", got 2 .*belongs to "ngram"'),
        ({"method": "chain", "max_ngram": 3}, 'no max_ngram with method "chain", got 3'),
        ({"max_ngram": 0}, "max_ngram"),
        ({"branching": 2}, 'no branching with method "dyspec"'),
        ({"method": "kary", "branching": 0}, "branching"),
        ({"method": "kary", "branching": True}, "branching"),
        ({"method": "kary", "branching": []}, r"branching of 1 to max_depth = 8"),
        ({"method": "kary", "branching": [8, 8]}, "72 nodes; raise max_nodes"),
        ({"method": "kary", "branching": [1] * 9}, "max_depth = 8"),
        ({"method": "kary", "branching": [17]}, r"branching\[0\]"),
        ({"method": "kary", "branching": np.int64(0)}, "branching"),
        ({"method": "kary", "branching": np.bool_(True)}, "branching to be"),
        ({"method": "kary", "branching": 2.0}, "branching to be an integer or a list of integers"),
        ({"method": "sampled", "branching": "44"}, "branching to be an integer or a list"),
    ],
)
def test_bad_speculation_is_refused_and_named(changes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SpeculationConfig(**changes)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_working_defaults(method: str) -> None:
    config = SpeculationConfig(method=method)
    assert config.needs_draft_model == (method != "ngram")
    hash(config)
    expected = {"chain": (1,) * 8, "kary": (4, 2, 2, 1), "sampled": (4, 2, 2, 1)}
    assert config.level_widths == expected.get(method, ())


def test_one_setting_can_be_replaced() -> None:
    config = SpeculationConfig(method="kary")
    assert dataclasses.replace(config, max_nodes=9).level_widths == (4,)
    assert dataclasses.replace(config, method="dyspec").level_widths == ()


def test_draws_need_a_temperature_and_choices_do_not() -> None:
    for settings in (
        {"draft_temperature": 0.0},
        {"verifier": "rejection", "draft_temperature": GREEDY_TEMPERATURE},
        {"verifier": "rejection", "draft_temperature": 1e39},
        {"verifier": "rejection"},
        {"method": "ngram", "verifier": "rejection"},
    ):
        config = SpeculationConfig(**settings)
        assert config.draft_temperature == settings.get("draft_temperature")


@pytest.mark.parametrize("number", [np.int64(2), np.int32(2), np.uint8(2)])
def test_a_numpy_integer_is_an_integer(number: np.integer) -> None:
    config = SpeculationConfig(method="kary", branching=number)
    assert config == SpeculationConfig(method="kary", branching=2)
    assert type(config.branching) is int


def num_nodes(widths: tuple[int, ...]) -> int:
    total, level = 0, 1
    for width in widths:
        level *= width
        total += level
    return total


@given(
    nodes=st.integers(1, 100),
    depth=st.integers(1, 12),
    children=st.integers(1, 32),
    branching=st.none() | st.integers(1, 6),
)
def test_derived_branching_always_fits(nodes, depth, children, branching) -> None:
    limits = {"max_nodes": nodes, "max_depth": depth, "max_children": children}
    if branching is not None and branching > children:
        with pytest.raises(ConfigError, match="branching"):
            SpeculationConfig(method="kary", branching=branching, **limits)
        return
    widths = SpeculationConfig(method="kary", branching=branching, **limits).level_widths
    assert 1 <= len(widths) <= depth
    assert num_nodes(widths) <= nodes
    assert max(widths) <= children
    chain = SpeculationConfig(method="chain", **limits).level_widths
    assert chain == (1,) * min(nodes, depth)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": b"x"}, "model"),
        ({"draft": 3}, "draft"),
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:x"}, "device"),
        ({"device": None}, "device"),
        ({"dtype": "int8"}, "dtype"),
        ({"speculation": "eagle"}, "speculation to be one of auto, off, dyspec"),
        ({"speculation": True}, "speculation"),
        ({"speculation": {"method": "dyspec"}}, "speculation"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_seqs": "8"}, "max_num_seqs"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"num_kv_blocks": 0}, "num_kv_blocks"),
        ({"num_threads": 0}, "num_threads"),
        ({"block_size": 48}, "block_size to be a power of two, got 48"),
        ({"block_size": 4}, "block_size"),
        ({"max_num_batched_tokens": 7}, "max_num_batched_tokens .*>= 8.*max_num_seqs"),
        ({"enable_prefix_caching": None}, "enable_prefix_caching"),
        ({"seed": 2**63}, "seed"),
        ({"seed": None}, "seed"),
        ({"backend": "avx"}, "backend to be one of reference, cpu, triton, cuda"),
        ({"backend": {"linear": "cpu"}}, "backend to be one of reference, cpu.*got {'linear'"),
    ],
)
def test_bad_engine_settings_are_refused_and_named(changes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineConfig(**{"model": "m", **changes})


def test_speculation_shorthands() -> None:
    assert EngineConfig("m", speculation="chain").speculation == SpeculationConfig(method="chain")
    assert EngineConfig("m", speculation="off").speculation is None
    assert EngineConfig("m", speculation=None).speculation_for(True) is None
    assert EngineConfig("m").speculation_for(True) == SpeculationConfig(method="dyspec")
    assert EngineConfig("m").speculation_for(False) == SpeculationConfig(method="ngram")
    config = SpeculationConfig(method="ngram", max_nodes=5)
    assert EngineConfig("m", speculation=config).speculation_for(False) is config
    with pytest.raises(ConfigError, match=r'no draft model for.*"ngram", got draft=.d.; leave'):
        EngineConfig("m", "d", speculation="ngram").speculation_for(True)
    assert EngineConfig("m", "d", speculation=None).speculation_for(True) is None
    with pytest.raises(ConfigError, match=r'a draft model for.*"dyspec", got none; pass draft='):
        EngineConfig("m", speculation="dyspec").speculation_for(False)


def test_values_are_plain_and_frozen() -> None:
    config = EngineConfig(Path("a/m"), backend="reference")
    assert config.model == EngineConfig("a/m").model == str(Path("a/m"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
    hash(config)
    assert config.with_changes(seed=5).seed == 5
    with pytest.raises(ConfigError, match="seed"):
        config.with_changes(seed="x")
