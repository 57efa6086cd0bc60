"""Conversion to GGUF, read back with the gguf package; run by llama.cpp where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers.comparison import compare
from benchmarks.peers.contestant import Settings, Task
from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.llama_cpp import LlamaCppPeer
from benchmarks.peers.own import PLAIN, SPECULATIVE, OwnPeer
from sdengine.errors import CheckpointError, ConfigError
from sdengine.model.checkpoint import open_checkpoint
from tests.engine.conftest import text_checkpoint
from tests.model.checkpoints import make_checkpoint

gguf = pytest.importorskip("gguf")


def values(tensor) -> torch.Tensor:
    """A tensor of a GGUF file in float32."""
    data = torch.from_numpy(np.array(tensor.data))
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        data = data.view(torch.bfloat16)
    return data.float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reader_finds_every_weight(dtype: str, tmp_path: Path) -> None:
    source = Path(text_checkpoint())
    write_gguf(source, tmp_path / "model.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    checkpoint = open_checkpoint(source)
    config = checkpoint.config
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert len(found) == 3 + 9 * config.num_layers
    stored = getattr(torch, dtype)

    def same(name: str, weight: torch.Tensor) -> bool:
        return torch.equal(values(found[name]), weight.to(stored).float())

    assert same("token_embd.weight", checkpoint.weight("embed"))
    assert same("output.weight", checkpoint.weight("lm_head"))
    for layer in range(config.num_layers):
        query, key, value = checkpoint.parts(f"layers.{layer}.qkv", torch.float32)
        gate, up = checkpoint.parts(f"layers.{layer}.gate_up", torch.float32)
        half = config.head_dim // 2
        order = [i // 2 + half * (i % 2) for i in range(config.head_dim)]
        for name, weight in (("attn_q", query), ("attn_k", key)):
            heads = weight.view(-1, config.head_dim, config.hidden_size)[:, order]
            assert same(f"blk.{layer}.{name}.weight", heads.reshape(weight.shape)), name
        for name, weight in (("attn_v", value), ("ffn_gate", gate), ("ffn_up", up)):
            assert same(f"blk.{layer}.{name}.weight", weight), name
        for name, small in (("attn_output", "o"), ("ffn_down", "down")):
            assert same(f"blk.{layer}.{name}.weight", checkpoint.weight(f"layers.{layer}.{small}"))
        norm = values(found[f"blk.{layer}.attn_norm.weight"])  # never rounded
        assert torch.equal(norm, checkpoint.weight(f"layers.{layer}.attn_norm"))


def test_sizes_and_tokens_go_along(tmp_path: Path) -> None:
    source = Path(text_checkpoint())
    write_gguf(source, tmp_path / "model.gguf", "float32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    config = open_checkpoint(source).config

    def field(name: str):
        return reader.get_field(name).contents()

    assert field("general.architecture") == "llama"
    assert field("llama.attention.head_count_kv") == config.num_kv_heads
    assert field("llama.rope.freq_base") == config.rope.theta
    assert field("llama.attention.layer_norm_rms_epsilon") == pytest.approx(config.rms_norm_eps)
    tokens = field("tokenizer.ggml.tokens")
    assert len(tokens) == config.vocab_size and tokens[-1].startswith("[PAD")
    assert field("tokenizer.ggml.eos_token_id") == config.eos_token_ids[0]


def test_what_would_be_converted_wrongly_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    for family, rope in (("llama_bias", "default"), ("qwen3", "default"), ("llama", "llama3")):
        with pytest.raises(ConfigError, match="to be written as GGUF"):
            write_gguf(make_checkpoint(family, rope), out, "float32")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        write_gguf(make_checkpoint(), out, "float32")
    assert not out.exists()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_llama_cpp_gives_our_text(settings: Settings, batch_size: int) -> None:
    reason = LlamaCppPeer().why_unavailable(settings)
    if reason is not None:
        pytest.skip(reason)
    settings = replace(settings, batch_size=batch_size)
    own = list(OwnPeer().contestants(replace(settings, draft_lengths=())))
    others = list(LlamaCppPeer().contestants(settings))
    assert [c.name for c in others] == ["llama.cpp plain", "llama.cpp draft 3"]
    tasks = [Task([list(range(3, 40)), [5, 9, 5, 9]][:batch_size], 16)]
    for standing in compare([*own, *others], tasks, 1, plain=PLAIN, speculative=SPECULATIVE):
        assert standing.first_difference is None, standing.name
        assert standing.num_prompts == batch_size
    for contestant in (*own, *others):
        contestant.close()
