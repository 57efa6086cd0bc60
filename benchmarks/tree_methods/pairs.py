"""The pairs of the comparison: the bundled one, and its target with two worse drafts that are
trained here, from nothing, in a minute.

`undertrained` has the bundled draft's shape and has seen little text. `bigram` is an n-gram model
in a Llama checkpoint: its attention writes nothing, so that only the last token counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from sdengine.core.env import read_environment
from sdengine.kernels.programs.program import make_pool
from sdengine.llm import BUNDLED
from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.registry import resolve_model
from sdengine.runner.weights import ModelWeights, PackedLayout, load_weights

PAIRS = ("bundled", "undertrained", "bigram")
MODEL_LEN = 1024
UNDERTRAINED_STEPS, UNDERTRAINED_TOKENS, SEQUENCE = 40, 4096, 256
BIGRAM_STEPS = 60
RATE = 4e-3


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Weights of target and draft, float32."""

    name: str
    target: ModelWeights
    draft: ModelWeights


def load_pair(name: str, directory: Path) -> Pair:
    """Loads a pair; its draft is trained first when `directory` does not hold it yet.

    Args:
        name: one of PAIRS.
        directory: where trained drafts are kept.
    """
    paths = resolve_model(BUNDLED, bundled_dir=read_environment().bundled_dir)
    assert paths.draft is not None
    draft = paths.draft if name == "bundled" else directory / name
    if name != "bundled" and not (draft / "config.json").is_file():
        train_draft(name, paths.draft, draft)
    layout = PackedLayout(torch.float32, make_pool(1))
    target, other = (
        load_weights(open_checkpoint(path), torch.float32, MODEL_LEN, layout)
        for path in (paths.target, draft)
    )
    return Pair(name, target, other)


def train_draft(name: str, like: Path, out: Path) -> None:
    """Trains one of the worse drafts on the training files and exports it.

    Args:
        name: "undertrained" or "bigram".
        like: the bundled draft, for its shape and tokenizer.
        out: directory of the checkpoint.
    """
    from tokenizers import Tokenizer

    from sdengine.train.data import build_stream, standard_library_files
    from sdengine.train.export import export_checkpoint, load_exported
    from sdengine.train.module import LlamaModule

    tokenizer = Tokenizer.from_file(str(like / "tokenizer.json"))
    files = [file for file in standard_library_files() if not file.is_held_out]
    tokens = torch.from_numpy(build_stream(tokenizer, files).tokens.astype("int64"))
    module = LlamaModule(load_exported(like).shape, seed=1)
    train = train_on_text if name == "undertrained" else train_on_bigrams
    train(module, tokens)
    export_checkpoint(module, tokenizer, out)


def train_on_text(module: torch.nn.Module, tokens: torch.Tensor) -> None:
    """Next-token cross-entropy over a few random batches."""
    generator = torch.Generator().manual_seed(0)
    count = UNDERTRAINED_TOKENS // SEQUENCE
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(UNDERTRAINED_STEPS):
        starts = torch.randint(len(tokens) - SEQUENCE - 1, (count,), generator=generator)
        rows = torch.stack([tokens[s : s + SEQUENCE + 1] for s in starts.tolist()])
        loss = F.cross_entropy(module(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_on_bigrams(module: torch.nn.Module, tokens: torch.Tensor) -> None:
    """Cross-entropy of all counted pairs at once; attention stays shut."""
    vocab = module.shape.vocab_size
    counts = torch.zeros(vocab * vocab).index_add_(
        0, tokens[:-1] * vocab + tokens[1:], torch.ones(len(tokens) - 1)
    )
    shares = counts.view(vocab, vocab) / counts.sum()
    trained = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("self_attn" not in name)
        if "self_attn" not in name:
            trained.append(parameter)
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    every = torch.arange(vocab).view(vocab, 1)
    for _ in range(BIGRAM_STEPS):
        loss = -(shares * F.log_softmax(module(every)[:, 0], dim=-1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
