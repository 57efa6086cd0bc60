"""Defaults that a checkpoint brings: sampling parameters and end-of-sequence tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import CheckpointError
from sdengine.model.config_file import load_model_config
from sdengine.model.generation_config import default_sampling_params, load_eos_token_ids
from tests.model.checkpoints import make_checkpoint


def write(directory: Path, **values) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return directory


def test_without_a_file_the_defaults_are_the_interface_s(tmp_path) -> None:
    assert default_sampling_params(tmp_path) == SamplingParams()


def test_sampling_values_are_taken_over(tmp_path) -> None:
    write(tmp_path, do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.05)
    params = default_sampling_params(tmp_path)
    assert params == SamplingParams(temperature=0.6, top_p=0.9, top_k=50, repetition_penalty=1.05)
    write(tmp_path, do_sample=True, top_k=20, min_p=0.05, max_new_tokens=99, min_new_tokens=7)
    params = default_sampling_params(tmp_path)
    assert params == SamplingParams(top_k=20, min_p=0.05, max_tokens=99, min_tokens=7)


def test_a_top_k_of_null_keeps_all_tokens(tmp_path) -> None:
    """As transformers writes one that was switched off."""
    transformers = pytest.importorskip("transformers")
    transformers.GenerationConfig(do_sample=True, top_k=None).save_pretrained(tmp_path)
    assert '"top_k": null' in (tmp_path / "generation_config.json").read_text()
    assert default_sampling_params(tmp_path).top_k == 0


def test_a_least_number_of_tokens_raises_the_most(tmp_path) -> None:
    """The file of a checkpoint that says nothing of the most must not be refused for it."""
    params = default_sampling_params(write(tmp_path, do_sample=True, min_new_tokens=20))
    assert (params.min_tokens, params.max_tokens) == (20, 20)
    params = default_sampling_params(write(tmp_path, do_sample=True, min_new_tokens=2))
    assert (params.min_tokens, params.max_tokens) == (2, SamplingParams().max_tokens)


def test_without_do_sample_decoding_is_greedy(tmp_path) -> None:
    write(tmp_path, temperature=0.6, top_p=0.9)
    assert default_sampling_params(tmp_path) == SamplingParams(temperature=0.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"num_beams": 4},
            "without num_beams, got 4; it is not supported; take it out of the file",
        ),
        ({"stop_strings": ["\n"]}, "without stop_strings"),
        ({"min_length": 9}, "without min_length, got 9"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"do_sample": True, "temperature": -1}, "generation_config.json: expected temperature"),
        ({"do_sample": True, "top_p": "0.9"}, "top_p"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, values, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        default_sampling_params(write(tmp_path, **values))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_beam_groups", 2),
        ("penalty_alpha", 0.6),
        ("typical_p", 0.9),
        ("epsilon_cutoff", 3e-4),
        ("eta_cutoff", 1e-3),
        ("encoder_no_repeat_ngram_size", 3),
        ("bad_words_ids", [[5]]),
        ("sequence_bias", [[[5], 1.0]]),
        ("suppress_tokens", [5]),
        ("begin_suppress_tokens", [5]),
        ("forced_bos_token_id", 5),
        ("forced_eos_token_id", 5),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("guidance_scale", 1.5),
        ("encoder_repetition_penalty", 1.5),
        ("watermarking_config", {"bias": 2.0}),
        ("token_healing", True),
        ("dola_layers", "high"),
        ("max_time", 3.0),
        ("num_return_sequences", 3),
    ],
)
def test_so_is_every_other_option_that_would_change_the_output(tmp_path, key: str, value) -> None:
    with pytest.raises(CheckpointError, match=f"without {key}, got"):
        default_sampling_params(write(tmp_path, **{key: value}))
    assert default_sampling_params(write(tmp_path, **{key: None})).is_greedy


def test_end_of_sequence_tokens(tmp_path) -> None:
    config = load_model_config(make_checkpoint("llama"))
    assert load_eos_token_ids(tmp_path, config) == (2,)
    assert load_eos_token_ids(write(tmp_path, eos_token_id=[7, 9, 7]), config) == (7, 9)
    assert load_eos_token_ids(write(tmp_path, eos_token_id=5), config) == (5,)
    with pytest.raises(CheckpointError, match="below vocab_size = 199, got 199"):
        load_eos_token_ids(write(tmp_path, eos_token_id=199), config)
