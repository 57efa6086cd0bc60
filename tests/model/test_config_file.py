"""config.json of every family: what is read, what a missing key means, what is refused by name."""

from __future__ import annotations

import json

import pytest

from sdengine.errors import CheckpointError
from sdengine.model.config import ModelConfig
from sdengine.model.config_file import ARCHITECTURES, load_model_config, parse_model_config
from tests.model.checkpoints import FAMILIES, make_checkpoint

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
}


def parse(family: str = "llama", **changes) -> ModelConfig:
    architecture = {name: key for key, name in ARCHITECTURES.items()}[family]
    return parse_model_config({"architectures": [architecture], **SIZES, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    directory = make_checkpoint(family)
    theirs = transformers.AutoConfig.from_pretrained(directory)
    ours = load_model_config(directory)
    assert ours.head_dim == getattr(theirs, "head_dim", None) or ours.head_dim == 16
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rope.theta == theirs.rope_theta
    assert ours.eos_token_ids == (2,)
    assert ours.bos_token_id == 1
    if getattr(theirs, "layer_types", None):
        kinds = ["full_attention" if w is None else "sliding_attention" for w in ours.layer_windows]
        assert kinds == theirs.layer_types
    else:
        assert set(ours.layer_windows) == {getattr(theirs, "sliding_window", None)}


@pytest.mark.parametrize("family", ARCHITECTURES.values())
def test_missing_keys_mean_what_transformers_takes(family: str) -> None:
    """A file with sizes only, as written by hand, gives transformers' defaults of the family."""
    transformers = pytest.importorskip("transformers")
    many_heads = {**SIZES, "hidden_size": 256, "num_attention_heads": 64}
    theirs = transformers.AutoConfig.for_model(family, **many_heads)
    ours = parse(family, **many_heads)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.rope.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_theta
    assert ours.head_dim == (128 if family == "qwen3" else 4)
    assert ours.tie_word_embeddings is False
    windows = {getattr(theirs, "sliding_window", None)}
    assert set(ours.layer_windows) == windows
    assert parse(family, num_key_value_heads=None).num_kv_heads == 8
    large = parse(family, **{**many_heads, "vocab_size": 40_000})
    assert large.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert large.bos_token_id == theirs.bos_token_id
    none = parse(family, **many_heads, bos_token_id=None, eos_token_id=None)
    assert none.bos_token_id is None and none.eos_token_ids == ()


def test_a_vocabulary_without_the_family_s_last_token_has_none() -> None:
    assert parse("phi3").eos_token_ids == () and parse("phi3").bos_token_id == 1


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("window", [{}, {"sliding_window": None}, {"sliding_window": 7}])
def test_a_window_of_null_is_none_as_in_transformers(family: str, window: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"num_key_value_heads": 4, "use_sliding_window": True, "max_window_layers": 1}
    theirs = transformers.AutoConfig.for_model(family, **SIZES, **settings, **window)
    ours = parse(family, **settings, **window)
    expected = theirs.sliding_window
    assert ours.layer_windows == (None, expected, expected, expected)


def test_windows_follow_the_switch_of_the_family() -> None:
    window = {"sliding_window": 32, "num_key_value_heads": 4}
    assert parse("llama", **window).layer_windows == (None,) * 4
    assert parse("mistral", **window).layer_windows == (32,) * 4
    assert parse("mistral", **{**window, "sliding_window": None}).layer_windows == (None,) * 4
    assert parse("phi3", **window).layer_windows == (32,) * 4
    assert parse("qwen2", **window).layer_windows == (None,) * 4
    window.update(use_sliding_window=True, max_window_layers=3)
    assert parse("qwen2", **window).layer_windows == (None, None, None, 32)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert parse("qwen3", layer_types=kinds, **window).layer_windows == (32, None, 32, None)


def test_switches_of_the_families() -> None:
    kv = {"num_key_value_heads": 4}
    flags = {
        family: (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm)
        for family in ARCHITECTURES.values()
        for config in [parse(family, **kv)]
    }
    assert flags == {
        "llama": (False, False, False, False),
        "mistral": (False, False, False, False),
        "qwen2": (True, False, False, False),
        "qwen3": (False, False, False, True),
        "phi3": (False, False, False, False),
    }
    biased = parse("llama", attention_bias=True, mlp_bias=True)
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, True)
    assert "layers.3.down_bias" in biased.weight_shapes()


def test_weight_shapes() -> None:
    config = parse("qwen3", head_dim=16, num_key_value_heads=2, tie_word_embeddings=True)
    shapes = config.weight_shapes()
    assert shapes["layers.0.qkv"] == ((8 + 4) * 16, 64)
    assert shapes["layers.0.o"] == (64, 128)
    assert shapes["layers.3.gate_up"] == (256, 64)
    assert shapes["layers.0.q_norm"] == (16,)
    assert "lm_head" not in shapes
    assert len(shapes) == 2 + 4 * 8


def test_dtype_in_both_notations() -> None:
    assert parse(torch_dtype="bfloat16").dtype == "bfloat16"
    assert parse(dtype="float16").dtype == "float16"
    assert parse().dtype is None


def test_several_end_of_sequence_tokens() -> None:
    assert parse(eos_token_id=[5, 7]).eos_token_ids == (5, 7)
    assert parse(eos_token_id=None).eos_token_ids == ()


def test_model_type_stands_in_for_architectures() -> None:
    assert parse_model_config({"model_type": "qwen2", **SIZES, "num_key_value_heads": 2}).qkv_bias


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "got GPT2LMHeadModel; this model is not supp"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "SequenceClassification"),
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": None, "model_type": "gemma2"}, "model_type 'gemma2'"),
        ({"architectures": 3}, "got 3"),
        ({"architectures": "LlamaForCausalLM"}, r"to be a list.*got 'LlamaForCausalLM' \(str\)"),
        ({"architectures": [["LlamaForCausalLM"]]}, r"got \['LlamaForCausalLM'\]; this model"),
        ({"architectures": None, "model_type": ["llama"]}, r"got model_type \['llama'\]"),
        ({"hidden_act": "gelu"}, "hidden_act.*'gelu'"),
        ({"quantization_config": {"bits": 4}}, "no quantization_config.*bits"),
        ({"num_local_experts": 8}, "no num_local_experts.*8"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"hidden_size": 65}, "multiple of num_attention_heads, or head_dim"),
        ({"hidden_size": None}, r"hidden_size in config\.json, got no such key"),
        ({"num_hidden_layers": 0}, "num_hidden_layers.*>= 1, got 0"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"vocab_size": 2.5}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads in config.json to divide"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings.*True or False"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn; convert"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"layer_types": ["full_attention"]}, "layer_types in config.json to be a list of 4"),
        ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_attention"),
    ],
)
def test_unsupported_is_refused_by_name(changes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        parse(**changes)


def test_options_of_another_family_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no attention_bias in config\.json of a mistral"):
        parse("mistral", num_key_value_heads=4, attention_bias=True)
    mixed = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(CheckpointError, match="alternating attention is not supported"):
        parse("mistral", num_key_value_heads=4, layer_types=mixed)


def test_a_neutral_value_of_an_unsupported_option_is_accepted() -> None:
    assert parse(quantization_config=None, num_experts=0, logit_scale=1.0).num_layers == 4


def test_a_real_llama_1_file(tmp_path) -> None:
    """The oldest notation: no key/value heads, no rope settings, legacy context key."""
    old = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "initializer_range": 0.02,
        "max_sequence_length": 2048,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "torch_dtype": "float16",
        "transformers_version": "4.28.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = load_model_config(tmp_path)
    assert (config.num_kv_heads, config.head_dim, config.default_context) == (32, 128, 2048)
