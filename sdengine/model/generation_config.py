"""What a checkpoint says about generation: its end-of-sequence tokens and its default sampling
parameters.

The file is read as the reference implementation reads it: without `do_sample: true` decoding is
greedy, and sampling without a `top_k` keeps 50 tokens. An option that would change the output and
is not implemented is refused, not dropped. Only `max_length` is not read: it counts the prompt,
too, which parameters for any prompt cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import CheckpointError, RequestError
from sdengine.model.config import ModelConfig
from sdengine.model.config_file import read_json, token_ids

__all__ = ["default_sampling_params", "load_eos_token_ids", "read_generation_config"]

FILE = "generation_config.json"
DEFAULT_TOP_K = 50
COPIED = ("temperature", "top_p", "top_k", "min_p")

# Options that change the output: key -> values that switch it off.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None, []),
    "sequence_bias": (None, {}),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "dola_layers": (None,),
    "max_time": (None,),
    "num_return_sequences": (None, 1),
    "stop_strings": (None, []),
    "min_length": (None, 0),
}


def read_generation_config(directory: str | Path) -> dict[str, Any] | None:
    """Return the parsed generation_config.json, or None when there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = Path(directory) / FILE
    return read_json(path) if path.is_file() else None


def load_eos_token_ids(directory: str | Path, config: ModelConfig) -> tuple[int, ...]:
    """Return the tokens that end a generation: generation_config.json's, else config.json's.

    Raises:
        CheckpointError: an id is none, or beyond the vocabulary.
    """
    given = token_ids(read_generation_config(directory) or {}, "eos_token_id")
    eos_token_ids = given or config.eos_token_ids
    for token_id in eos_token_ids:
        if token_id >= config.vocab_size:
            raise CheckpointError.from_parts(
                f"eos_token_id of {directory} below vocab_size = {config.vocab_size}", str(token_id)
            )
    return tuple(dict.fromkeys(eos_token_ids))


def default_sampling_params(directory: str | Path) -> SamplingParams:
    """Return the parameters for callers that pass none.

    Without the file they are SamplingParams(); with it they are the file's.

    Raises:
        CheckpointError: the file asks for something that is not supported or not valid.
    """
    given = read_generation_config(directory)
    if given is None:
        return SamplingParams()
    path = Path(directory) / FILE
    for key, neutral in UNSUPPORTED.items():
        if given.get(key) not in neutral:
            raise CheckpointError.from_parts(
                f"{path} without {key}",
                repr(given[key]),
                "it is not supported; take it out of the file",
            )
    try:
        return SamplingParams(**_arguments(given))
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if given.get("do_sample"):
        if "top_k" not in given:  # null: all of them
            arguments["top_k"] = DEFAULT_TOP_K
        arguments.update({key: given[key] for key in COPIED if given.get(key) is not None})
    else:
        arguments["temperature"] = 0.0
    if given.get("repetition_penalty") is not None:
        arguments["repetition_penalty"] = given["repetition_penalty"]
    if given.get("max_new_tokens") is not None:
        arguments["max_tokens"] = given["max_new_tokens"]
    if given.get("min_new_tokens") is not None:
        least = arguments["min_tokens"] = given["min_new_tokens"]
        arguments.setdefault("max_tokens", max(SamplingParams().max_tokens, least))
    return arguments
