"""Tiny models and a small corpus for the training tests; everything here takes milliseconds."""

from __future__ import annotations

import pytest
import torch

from sdengine.train.data import SourceFile, build_stream
from sdengine.train.distill import PairConfig, Streams
from sdengine.train.module import LlamaModule, LlamaShape
from sdengine.train.tokenizer import train_tokenizer
from tests.torch_threads import one_thread as one_thread

VOCAB_SIZE = 320
TINY_TARGET = LlamaShape(VOCAB_SIZE, 64, 96, 2, 4, 2, head_dim=16, max_position_embeddings=64)
TINY_DRAFT = LlamaShape(VOCAB_SIZE, 32, 48, 1, 2, 1, head_dim=16, max_position_embeddings=64)
TINY_CONFIG = PairConfig(
    tokens_per_step=128,
    tokens_per_pass=64,
    short_length=32,
    long_length=64,
    eval_tokens=128,
    dropout=0.2,
)


def source(name: str, lines: int) -> SourceFile:
    """A file of top-level functions."""
    text = "".join(f"def {name}_{i}(x):\n    return x + {i * i}\n\n" for i in range(lines))
    return SourceFile(f"{name}.py", text, "0" * 64, False)


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer((source(name, 60).text for name in ("alpha", "beta")), VOCAB_SIZE)


@pytest.fixture(scope="session")
def streams(tokenizer):
    train = build_stream(tokenizer, [source("alpha", 60), source("beta", 60)])
    return Streams(train, build_stream(tokenizer, [source("gamma", 40)]))


@pytest.fixture
def tiny_pair():
    """Fresh target and draft whose residual outputs are not zero, so that layers matter."""
    torch.manual_seed(0)
    pair = LlamaModule(TINY_TARGET, seed=0), LlamaModule(TINY_DRAFT, seed=1)
    for module in pair:
        for name, parameter in module.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                torch.nn.init.normal_(parameter, std=0.1)
    return pair
