"""RoPE frequencies and tables equal transformers' own functions; their semantics depend on the
model length only.
"""

from __future__ import annotations

import math

import pytest
import torch

from sdengine.errors import CheckpointError
from sdengine.model.rope import attention_factor, cos_sin_table, inverse_frequencies
from sdengine.model.rope_config import RopeConfig, parse_rope

HEAD_DIM = 64
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + i / 50 for i in range(HEAD_DIM // 2)],
    "long_factor": [1.0 + i * 1.7 for i in range(HEAD_DIM // 2)],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

# name: (max_position_embeddings, theta, rope_scaling, top-level keys)
SETTINGS = {
    "default": (2048, 1e4, None, {}),
    "llama_3_theta": (8192, 5e5, None, {}),
    "linear": (4096, 1e4, {"type": "linear", "factor": 4.0}, {}),
    "dynamic": (2048, 1e4, {"type": "dynamic", "factor": 3.0}, {}),
    "llama_3.2": (131072, 5e5, LLAMA3, {}),
    "yarn_qwen": (131072, 1e6, YARN, {}),
    "yarn_unset_original": (4096, 1e4, {"rope_type": "yarn", "factor": 16.0}, {}),
    "yarn_attention": (131072, 1e6, {**YARN, "attention_factor": 0.83}, {}),
    "yarn_mscale": (131072, 1e4, {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}, {}),
    "yarn_betas": (131072, 1e4, {**YARN, "beta_fast": 8.0, "beta_slow": 3.0}, {}),
    "yarn_beyond_the_head": (3392, 10.0, {**YARN, "original_max_position_embeddings": 848}, {}),
    "yarn_of_few_tokens": (24, 1e4, {**YARN, "original_max_position_embeddings": 6}, {}),
    "yarn_untruncated": (131072, 1.5e5, {**YARN, "truncate": False}, {}),
    "longrope_phi": (131072, 1e4, LONGROPE, {"original_max_position_embeddings": 4096}),
    "longrope_factor": (4096, 1e4, {**LONGROPE, "factor": 8.0}, {}),
    "longrope_both": (
        131072,
        1e4,
        {**LONGROPE, "factor": 8.0},
        {"original_max_position_embeddings": 4096},
    ),
    "longrope_attention": (4096, 1e4, {**LONGROPE, "factor": 8.0, "attention_factor": 1.3}, {}),
}


def rope_of(name: str) -> RopeConfig:
    context, theta, scaling, top = SETTINGS[name]
    return parse_rope(
        {"rope_theta": theta, "rope_scaling": scaling, **top}, "llama", HEAD_DIM, context
    )


def hf_parameters(name: str, seq_len: int) -> tuple[torch.Tensor, float]:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    context, theta, scaling, top = SETTINGS[name]
    config = transformers.LlamaConfig(
        hidden_size=HEAD_DIM * 4,
        num_attention_heads=4,
        max_position_embeddings=context,
        rope_theta=theta,
        rope_scaling=None if scaling is None else dict(scaling),
        **top,
    )
    kind = "default" if scaling is None else config.rope_scaling["rope_type"]
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("model_len", [1, 2048, 4096, 4097, 20011])
def test_frequencies_equal_transformers(name: str, model_len: int) -> None:
    expected, factor = hf_parameters(name, model_len)
    rope = rope_of(name)
    torch.testing.assert_close(inverse_frequencies(rope, model_len), expected, atol=0, rtol=3e-7)
    assert attention_factor(rope) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("name", ["llama_3.2", "yarn_mscale", "longrope_phi"])
def test_tables_equal_the_angles_transformers_forms(name: str) -> None:
    frequencies, factor = hf_parameters(name, 5000)
    table = cos_sin_table(rope_of(name), 5000)
    assert table.shape == (5000, 2, HEAD_DIM // 2)
    assert table.dtype == torch.float32
    assert table.is_contiguous()
    angles = (frequencies[:, None] @ torch.arange(5000).float()[None, :]).T
    torch.testing.assert_close(table[:, 0], angles.cos() * factor, atol=2e-6, rtol=0)
    torch.testing.assert_close(table[:, 1], angles.sin() * factor, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_table_is_a_prefix_of_a_longer_one_for_the_same_model_length(name: str) -> None:
    rope = rope_of(name)
    assert torch.equal(cos_sin_table(rope, 6000, 17), cos_sin_table(rope, 6000)[:17])


@pytest.mark.parametrize("name", SETTINGS)
def test_within_the_default_context_the_model_length_does_not_matter(name: str) -> None:
    rope = rope_of(name)
    longest = inverse_frequencies(rope, rope.default_context)
    for model_len in (1, rope.default_context // 2):
        assert torch.equal(inverse_frequencies(rope, model_len), longest)
    is_length_dependent = rope.type in ("dynamic", "longrope")
    beyond = inverse_frequencies(rope, rope.default_context + 1)
    assert torch.equal(beyond, longest) != is_length_dependent


@pytest.mark.parametrize(
    ("name", "default", "longest"),
    [
        ("default", 2048, 2048),
        ("linear", 16384, 16384),
        ("dynamic", 2048, 6144),
        ("llama_3.2", 131072, 131072),
        ("yarn_qwen", 131072, 131072),
        ("yarn_unset_original", 65536, 65536),
        ("longrope_phi", 4096, 131072),
    ],
)
def test_context_lengths(name: str, default: int, longest: int) -> None:
    rope = rope_of(name)
    assert (rope.default_context, rope.longest_context) == (default, longest)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_newer_notation_means_the_same(name: str) -> None:
    context, theta, scaling, top = SETTINGS[name]
    section = {**(scaling or {}), "rope_theta": theta}
    section["rope_type"] = section.pop("type", section.get("rope_type", "default"))
    newer = parse_rope({"rope_parameters": section, **top}, "llama", HEAD_DIM, context)
    assert newer == rope_of(name)


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN}, "say the same"),
        ({"rope_parameters": YARN, "rope_scaling": {**YARN, "factor": 2.0}}, "say the same"),
        ({"rope_scaling": {**YARN, "type": "linear"}}, "type and rope_type.*to be the same"),
    ],
)
def test_what_contradicts_itself_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        parse_rope(config, "llama", HEAD_DIM, 4096)


def test_what_is_said_twice_is_read_once() -> None:
    older = {"type": "yarn", "factor": 4.0}
    both = {"rope_parameters": {**YARN, "rope_theta": 5e4}, "rope_scaling": older}
    rope = parse_rope(both, "llama", HEAD_DIM, 4096)
    assert (rope.type, rope.factor, rope.theta) == ("yarn", 4.0, 5e4)
    twice = {"rope_scaling": {**YARN, **older}}
    assert parse_rope(twice, "llama", HEAD_DIM, 4096).type == "yarn"


def test_partial_rotation_in_both_notations() -> None:
    for config in (
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ):
        assert parse_rope(config, "phi3", HEAD_DIM, 2048).dim == HEAD_DIM // 2


@pytest.mark.parametrize("alias", ["su", "yarn", "longrope"])
def test_early_names_of_longrope_in_phi3(alias: str) -> None:
    config = {"rope_scaling": {**LONGROPE, "type": alias}}
    rope = parse_rope(config, "phi3", HEAD_DIM, 131072)
    assert rope.type == "longrope"
    assert rope.original_max_position_embeddings == 4096
    assert attention_factor(rope) == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rope_type.*'mrope'"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_type.*None"),
        ({"rope_scaling": {"type": "su", **{}}}, "rope_type.*'su'"),
        ({"rope_scaling": "linear"}, "rope_scaling in config.json to be an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor missing"),
        ({"rope_scaling": {"type": "linear", "factor": -1.0}}, "factor in config.json"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor in config.json"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "factor in config.json"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 1}}, "got twist"),
        ({"rope_scaling": {"type": "linear", "factor": 1e6}}, "2048 tokens to at most 16777216"),
        ({"rope_scaling": {**YARN, "factor": 1e308}}, "factor in rope_scaling.*got 1e\\+308"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [1.0]}}, "long_factor.*32 numbers, got 1"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor > low"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"partial_rotary_factor": 0.3}, "even number of dimensions"),
        ({"partial_rotary_factor": 2.0}, "even number of dimensions"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "one set of rope_parameters",
        ),
    ],
)
def test_unsupported_settings_are_refused_by_name(config, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        parse_rope(config, "llama", HEAD_DIM, 2048)
