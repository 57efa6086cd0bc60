"""Unusable input of every kind is refused by name, and nothing else in the engine is harmed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdengine.cli.main import main
from sdengine.core.config import SpeculationConfig
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import (
    BackendUnavailable,
    CacheFull,
    CheckpointError,
    ConfigError,
    RequestError,
    SdengineError,
)
from sdengine.runner import memory
from tests.engine.conftest import (
    MakeEngine,
    MakeLLM,
    related_draft,
    run_all,
    run_outputs,
    text_checkpoint,
)
from tests.model.checkpoints import VOCAB, make_checkpoint
from tests.model.tokenizer_files import make_tokenizer_dir

PROMPTS = [[(7 * i) % 190 + 3 for i in range(20)], [5, 9, 5, 9, 5, 9, 5]]
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
TREES = SpeculationConfig(max_nodes=8, max_depth=4, adaptive=False)
WEIGHTS = "model.safetensors"


# Checkpoints


def change_config(directory: Path, **values: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **values}))


def change_tensor(
    directory: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def spoil(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


def truncate(directory: Path) -> None:
    data = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(data[: len(data) // 2])


def corrupt(directory: Path) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[8:24] = b"\xff" * 16
    (directory / WEIGHTS).write_bytes(data)


def pickle(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"model\.safetensors"),
    "corrupt": (corrupt, r"model\.safetensors"),
    "missing": (lambda d: (d / WEIGHTS).unlink(), r"expected model\.safetensors or .*got neither"),
    "pickle": (pickle, r"got pytorch_model\.bin; only safetensors are read; convert with"),
    "no config": (lambda d: (d / "config.json").unlink(), r"config\.json"),
    "wrong shape": (
        lambda d: change_config(d, intermediate_size=90),
        r"mlp\.\w+\.weight of shape \[90, 96\], as config\.json says, got \[88, 96\]",
    ),
    "wrong depth": (lambda d: change_config(d, num_hidden_layers=4), r"tensor model\.layers\.3\."),
    "architecture": (
        lambda d: change_config(d, architectures=["MambaForCausalLM"], model_type="mamba"),
        "(?i)mamba",
    ),
    "NaN weight": (
        lambda d: change_tensor(d, "model.layers.1.mlp.down_proj.weight", spoil(float("nan"))),
        r"finite numbers in tensor model\.layers\.1\.mlp\.down_proj\.weight, got nan at element",
    ),
    "inf norm": (
        lambda d: change_tensor(d, "model.layers.2.input_layernorm.weight", spoil(float("inf"))),
        r"tensor model\.layers\.2\.input_layernorm\.weight, got inf at element 95 of 96",
    ),
    "NaN final norm": (
        lambda d: change_tensor(d, "model.norm.weight", spoil(float("nan"))),
        r"tensor model\.norm\.weight, got nan",
    ),
    "inf embedding": (
        lambda d: change_tensor(d, "model.embed_tokens.weight", spoil(-float("inf"))),
        r"tensor model\.embed_tokens\.weight, got -inf",
    ),
    "generation config": (
        lambda d: (d / "generation_config.json").write_text('{"eos_token_id": 100000}'),
        "eos_token_id of .* below vocab_size = 199, got 100000",
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint that may be damaged."""
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "model"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_target_is_refused(make_engine: MakeEngine, copy: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    change(copy)
    with pytest.raises(CheckpointError, match=words):
        make_engine(str(copy))


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d != "generation config"])
def test_a_damaged_draft_is_refused(make_engine: MakeEngine, copy: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    change(copy)
    with pytest.raises(CheckpointError, match=words):
        make_engine(draft=str(copy), speculation=TREES)


def test_a_damaged_draft_that_is_not_used_is_not_read(make_engine: MakeEngine, copy: Path) -> None:
    truncate(copy)
    run_all(make_engine(draft=str(copy), speculation=None), PROMPTS, [GREEDY] * 2)


def test_a_damaged_tokenizer_is_refused(make_llm: MakeLLM, copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        make_llm(str(copy))


def test_a_name_that_is_no_model_is_refused(make_llm: MakeLLM) -> None:
    with pytest.raises(CheckpointError, match=r"a model directory or a bundled pair .*'nowhere'"):
        make_llm("nowhere")


# Target and draft


def test_different_tokenizers_are_refused_with_the_first_differing_token(
    make_llm: MakeLLM, tmp_path: Path
) -> None:
    draft = Path(shutil.copytree(text_checkpoint(2), tmp_path / "draft"))
    file = json.loads((draft / "tokenizer.json").read_text())
    vocab = file["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[50:52]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (draft / "tokenizer.json").write_text(json.dumps(file))
    words = f"token 50 is {first!r} and {second!r}"
    with pytest.raises(ConfigError, match="same tokenizer, got two that differ: ") as caught:
        make_llm(draft=str(draft), speculation=TREES)
    assert words in str(caught.value)


@pytest.mark.parametrize("padding", [-24, 57])
def test_another_vocabulary_padding_of_the_draft_is_accepted(
    make_engine: MakeEngine, padding: int
) -> None:
    """Prompts hold tokens that the smaller draft has no row for, and plain decoding makes more."""
    draft = str(make_checkpoint(vocab_size=VOCAB + padding, num_hidden_layers=2))
    prompts = [[*PROMPTS[0], 198, 197, 196], PROMPTS[1]]
    params = [SamplingParams(max_tokens=40, ignore_eos=True, seed=i) for i in range(2)]
    expected = run_all(make_engine(), prompts, params)
    assert max(map(max, expected)) >= VOCAB - 24
    engine = make_engine(draft=draft, speculation=TREES)
    weights = engine.iteration.drafter._weights  # type: ignore[union-attr]
    assert len(weights.embed) >= VOCAB >= weights.lm_head.num_outputs
    assert run_all(engine, prompts, params) == expected


def test_a_method_without_its_draft_model_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(
        ConfigError, match='a draft model for speculation method "dyspec", got none'
    ):
        make_engine(speculation="dyspec")


# Settings


@pytest.mark.parametrize(
    "settings,error,words",
    [
        (
            {"device": "cuda"},
            BackendUnavailable,
            "device 'cuda': torch finds no CUDA device",
        ),
        (
            {"device": "cuda", "backend": "cpu"},
            ConfigError,
            "on device 'cuda', got 'cpu'",
        ),
        ({"device": "tpu"}, ConfigError, 'device to be "auto", "cpu".*tpu'),
        ({"backend": "metal"}, ConfigError, "backend to be one of reference, cpu.*metal"),
        ({"backend": "cuda"}, BackendUnavailable, "backend 'cuda': .*needs cuda and triton"),
        ({"dtype": "int4"}, ConfigError, "dtype to be one of auto.*int4"),
        ({"max_model_len": 100_000}, ConfigError, "max_model_len of at most 256.*got 100000"),
        ({"max_num_seqs": 0}, ConfigError, "max_num_seqs to be an integer from 1"),
        ({"max_num_batched_tokens": 2}, ConfigError, r"needs a row \(max_num_seqs\)"),
        ({"max_num_batched_tokens": 10**12}, CacheFull, "got .*GiB; lower max_num_seqs"),
        ({"num_kv_blocks": 10**9}, CacheFull, "a KV cache within .*; lower num_kv_blocks"),
        ({"num_kv_blocks": 10**12}, ConfigError, "num_kv_blocks to be an integer from 1"),
        ({"num_threads": 10**6}, ConfigError, "num_threads to be an integer from 1 to 1024"),
        ({"block_size": 24}, ConfigError, "block_size to be a power of two, got 24"),
        ({"speculation": "magic"}, ConfigError, "speculation to be one of"),
        ({"no_such_setting": 1}, TypeError, "no_such_setting"),
    ],
)
def test_impossible_settings_are_refused(
    make_engine: MakeEngine, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_engine(**settings)


@pytest.mark.parametrize(
    "name,value,words",
    [
        ("SDENGINE_NUM_THREADS", "0", "SDENGINE_NUM_THREADS to be an integer from 1 to 1024"),
        ("SDENGINE_BACKEND", "metal", "SDENGINE_BACKEND to be one of"),
        ("SDENGINE_TREADS", "2", "got SDENGINE_TREADS; unset it"),
        ("SDENGINE_BUNDLED_DIR", "/nowhere", "none is installed.*unset SDENGINE_BUNDLED_DIR"),
    ],
)
def test_impossible_variables_are_refused(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SdengineError, match=words):
        make_llm("python-completion")


def test_variables_reach_the_engine(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(text_checkpoint(), tmp_path / "my-pair" / "target")
    shutil.copytree(text_checkpoint(2), tmp_path / "my-pair" / "draft")
    monkeypatch.setenv("SDENGINE_BUNDLED_DIR", str(tmp_path))
    monkeypatch.setenv("SDENGINE_NUM_THREADS", "3")
    llm = make_llm("my-pair", speculation=TREES, num_threads=None)
    assert llm.engine._runner._pool.num_threads == 3
    assert llm.engine.iteration.drafter is not None
    assert make_llm("my-pair", num_threads=1).engine._runner._pool.num_threads == 1


def test_an_engine_without_room_for_one_block_is_refused(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    with pytest.raises(CacheFull, match="bytes for one KV block, got 5000 bytes; free memory"):
        make_engine()


# Requests


@pytest.mark.parametrize(
    "prompt,words",
    [
        ([], "at least one token, got an empty prompt"),
        ([5, VOCAB], r"token ids in \[0, 199\), got 199 at position 1"),
        ([-1], r"token ids in \[0, 199\), got -1 at position 0"),
        ([2**80], r"token ids in \[0, 199\)"),
        ([5, "a"], "token ids, got 'a' at position 1"),
        ([1.0], "token ids, got 1.0 at position 0"),
        ([True], "token ids, got True at position 0"),
        ([[5]], r"token ids, got \[5\] at position 0"),
        (torch.tensor([1.5]), "token ids, got tensor"),
        (None, "text or of token ids, got NoneType"),
        (5, "text or of token ids, got int"),
        (b"abc", "text or of token ids, got bytes"),
        ({1: 2}, "text or of token ids, got dict"),
        ({1, 2}, "text or of token ids, got set"),
        ("text", "token ids, because the checkpoint has no tokenizer.json, got text"),
        ([1] * 256, r"shorter than max_model_len = 256 tokens, got 256 tokens; shorten"),
        ([1] * 10**5, r"shorter than max_model_len = 256 tokens, got 100000 tokens"),
    ],
)
def test_bad_prompts_leave_the_others_alone(
    make_engine: MakeEngine, prompt: Any, words: str
) -> None:
    engine = make_engine(draft=related_draft(), speculation=TREES)
    expected = run_all(engine, PROMPTS[:1], [GREEDY])[0]
    engine.add_request("good", PROMPTS[0], GREEDY)
    tokens: list[int] = []
    while engine.has_unfinished_requests():
        with pytest.raises(RequestError, match=words):
            engine.add_request("bad", prompt, GREEDY)
        for output in engine.step():
            assert output.request_id == "good"
            tokens = list(output.outputs[0].token_ids)
    assert tokens == expected


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_text_that_is_no_text_is_refused(make_llm: MakeLLM, text: str) -> None:
    with pytest.raises(RequestError):
        make_llm().generate(text, GREEDY)


@pytest.mark.parametrize(
    "prompts,params,words",
    [
        ([], GREEDY, "at least one prompt, got an empty list"),
        (["fine", []], GREEDY, "an empty prompt"),
        (["fine", "too long " * 200], GREEDY, "shorter than max_model_len"),
        (["fine", 5.0], GREEDY, "text or of token ids, got float"),
        (5.0, GREEDY, "text or of token ids, got float"),
        (["fine", "also"], [GREEDY], "one SamplingParams, or 2 for 2 prompts, got 1"),
        (["fine"], 7, "one SamplingParams, or 1 for 1 prompts, got int"),
        (["fine"], [3], "params to be SamplingParams, got int"),
    ],
)
def test_a_bad_item_refuses_the_whole_call(
    make_llm: MakeLLM, prompts: Any, params: Any, words: str
) -> None:
    llm = make_llm()
    with pytest.raises(RequestError, match=words):
        llm.generate(prompts, params)
    assert not llm.engine.has_unfinished_requests()
    llm.generate("fine", GREEDY)


@pytest.mark.parametrize("prompt,params", [("fine", {}), ([], GREEDY), ("fine", 3)])
def test_a_bad_stream_is_refused_at_the_call(make_llm: MakeLLM, prompt: Any, params: Any) -> None:
    llm = make_llm()
    with pytest.raises(RequestError):
        llm.stream(prompt, params)
    assert not llm.engine.has_unfinished_requests()


def test_a_request_larger_than_the_whole_cache_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(num_kv_blocks=3)
    words = r"at most 24 tokens, the whole KV cache, got 20 prompt \+ 24 new.*raise num_kv_blocks"
    with pytest.raises(RequestError, match=words):
        engine.add_request("r", PROMPTS[0], GREEDY)
    fitting = replace(GREEDY, max_tokens=4)
    expected = run_all(make_engine(), PROMPTS[:1], [fitting])
    assert run_all(engine, PROMPTS[:1], [fitting]) == expected


def test_bias_of_a_token_that_does_not_exist_is_refused(make_engine: MakeEngine) -> None:
    params = SamplingParams(logit_bias={VOCAB: 1.0})
    with pytest.raises(RequestError, match=r"logit_bias tokens in \[0, 199\), got 199"):
        make_engine().add_request("r", [5], params)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_stop_tokens_that_do_not_exist_are_refused(make_engine: MakeEngine, backend: str) -> None:
    engine = make_engine(backend=backend)
    engine.add_request("good", [5], replace(GREEDY, max_tokens=3))
    params = SamplingParams(stop_token_ids=[VOCAB], min_tokens=2)
    with pytest.raises(RequestError, match=r"stop_token_ids in \[0, 199\), got 199"):
        engine.add_request("bad", [5], params)
    while engine.has_unfinished_requests():
        engine.step()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("speculates", [False, True])
@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 2**40},
        {"top_k": 1},
        {"temperature": 1e300},
        {"temperature": 1e-300},
        {"top_p": 1e-300},
        {"min_p": 1.0},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"stop_token_ids": [*range(64)] * 9, "min_tokens": 12},
        {"repetition_penalty": 1000.0, "frequency_penalty": 2.0, "presence_penalty": 2.0},
        {"repetition_penalty": 0.001, "frequency_penalty": -2.0, "presence_penalty": -2.0},
    ],
)
def test_extreme_parameters_are_obeyed(
    make_engine: MakeEngine, speculates: bool, params: dict[str, Any]
) -> None:
    sampling = SamplingParams(**{"max_tokens": 12, "ignore_eos": True, "seed": 1, **params})
    plain = run_all(make_engine(), PROMPTS[:1], [sampling])[0]
    assert len(plain) == 12 and all(0 <= token < VOCAB for token in plain)
    greedy = run_all(make_engine(), PROMPTS[:1], [replace(GREEDY, max_tokens=12)])[0]
    is_greedy = set(params) <= {"top_p", "min_p"} or params in (
        {"top_k": 1},
        {"temperature": 1e-300},
    )
    assert (plain == greedy) == is_greedy
    if speculates:
        engine = make_engine(draft=related_draft(), speculation=TREES)
        assert run_all(engine, PROMPTS[:1], [sampling])[0] == plain


def test_a_stop_string_without_end_is_obeyed(make_engine: MakeEngine) -> None:
    sampling = SamplingParams(max_tokens=12, ignore_eos=True, seed=1, stop=["\0" * 100_000])
    settings = [{}, {"draft": text_checkpoint(2), "speculation": TREES}]
    texts = [
        run_all(make_engine(text_checkpoint(), **s), PROMPTS[:1], [sampling]) for s in settings
    ]
    assert texts[0] == texts[1] and len(texts[0][0]) == 12


def test_max_tokens_without_end_stops_at_the_context(make_engine: MakeEngine) -> None:
    output = run_outputs(make_engine(), PROMPTS[:1], [replace(GREEDY, max_tokens=2**62)])[0]
    assert len(output.outputs[0].token_ids) == 256 - len(PROMPTS[0])
    assert output.outputs[0].finish_reason == "length"


# Command line


def run_command(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit code and standard error, which must be one line; standard output must be empty."""
    code = main(["generate", *argv])
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("sdengine: ")
    return code, err


@pytest.mark.parametrize(
    "damage", ["truncated", "pickle", "wrong shape", "architecture", "NaN weight"]
)
def test_the_command_line_answers_damage_in_one_line(
    capfd: pytest.CaptureFixture[str], copy: Path, damage: str
) -> None:
    DAMAGES[damage][0](copy)
    for argv in (["--model", str(copy)], ["--model", text_checkpoint(), "--draft", str(copy)]):
        code, err = run_command(capfd, "x", *argv)
        assert code == 2 and "expected" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "argv,words",
    [
        (["x", "--model", "nowhere"], "which is neither"),
        (["x" * 2000], "a prompt shorter than max_model_len"),
        ([""], "a prompt, got an empty one"),
        (["x", "--max-tokens", "0"], "max_tokens to be an integer >= 1, got 0"),
        (["x", "--temperature", "nan"], "temperature to be a finite number >= 0, got nan"),
        (["x", "--temperature", "-1"], "temperature to be a finite number >= 0, got -1"),
        (["x", "--seed", str(2**64)], "seed to be an integer"),
        (["x", "--speculation", "dyspec"], "a draft model for speculation method"),
        (["x", "--speculation", "magic"], "magic"),
    ],
)
def test_the_command_line_answers_bad_requests_in_one_line(
    capfd: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    model = [] if "--model" in argv else ["--model", text_checkpoint()]
    code, err = run_command(capfd, *argv, *model)
    assert code == 2 and words in err


def test_a_tokenizer_file_alone_is_no_model(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, err = run_command(capfd, "x", "--model", str(make_tokenizer_dir("byte_level")))
    assert code == 2 and "config.json" in err
