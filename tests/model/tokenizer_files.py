"""Small tokenizers of the kinds that checkpoints have, trained on the spot and written as a model
directory.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.model.checkpoints import scratch_dir

CORPUS = [
    "def count(words):\n    return {word: words.count(word) for word in set(words)}\n",
    "the quick brown fox jumps over the lazy dog, the dog sleeps and the fox runs",
    "Grüße aus München: ein Käse für 3,50 €, naïve café, señor, ça va?",
    "import os\nfor name in os.listdir('.'):\n    print(name, len(name))\n",
    "数学は楽しい。 日本語の文章です。 今天天气很好",
] * 3

KINDS = ("byte_level", "sentencepiece", "metaspace")


@functools.cache
def make_tokenizer_dir(kind: str, *, vocab_size: int = 420, **settings: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json and return their directory.

    Args:
        kind: one of KINDS.
        vocab_size: of the trained vocabulary.
        settings: keys of tokenizer_config.json beside the special tokens.
    """
    directory = Path(tempfile.mkdtemp(prefix=kind + "-", dir=scratch_dir()))
    {"byte_level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace}[kind](
        vocab_size
    ).save(str(directory / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps({**specials, **settings}))
    return directory


def byte_level(vocab_size: int) -> tokenizers.Tokenizer:
    """As Llama 3 and Qwen: every byte has a token, `<s>` is put in front by the file itself."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.add_tokens(["<tool call>", "é!"])
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def sentencepiece(vocab_size: int) -> tokenizers.Tokenizer:
    """As Llama 2: `▁` for spaces, byte tokens for rare characters, the first space dropped."""
    tokenizer = tokenizers.Tokenizer(_bpe_with_bytes(vocab_size))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace(vocab_size: int) -> tokenizers.Tokenizer:
    """As some Mistral files: the same pieces, one Metaspace decoder, no byte tokens."""
    tokenizer = tokenizers.Tokenizer(_bpe_with_bytes(vocab_size))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def _bpe_with_bytes(vocab_size: int) -> models.BPE:
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        limit_alphabet=60,
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS, trainer)
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    return models.BPE(
        vocab=state["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
