"""The reference model's logits equal transformers' in fp32, for every family and RoPE type."""

from __future__ import annotations

import pytest
import torch

from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.reference import load_weights, reference_logits
from tests.model.checkpoints import CASES, CONTEXT, ORIGINAL, VOCAB, make_checkpoint

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)


def random_tokens(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def hf_logits(directory, tokens: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(tokens[None]).logits[0]


def our_logits(directory, tokens: torch.Tensor, **options) -> torch.Tensor:
    checkpoint = open_checkpoint(directory)
    return reference_logits(load_weights(checkpoint), checkpoint.config, tokens, **options)


@pytest.mark.parametrize(("family", "rope"), CASES)
@pytest.mark.parametrize("length", [1, ORIGINAL, 97])
def test_logits_equal_transformers(family: str, rope: str, length: int) -> None:
    directory = make_checkpoint(family, rope)
    tokens = random_tokens(length)
    # Beyond the original context longrope is another function, chosen by the model length.
    model_len = length if rope == "longrope" else None
    ours = our_logits(directory, tokens, model_len=model_len)
    theirs = hf_logits(directory, tokens)
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-5)


def test_dynamic_rope_beyond_the_context_equals_transformers_at_the_model_length() -> None:
    directory = make_checkpoint("llama", "dynamic")
    tokens = random_tokens(CONTEXT + 61)
    ours = our_logits(directory, tokens, model_len=tokens.numel())
    torch.testing.assert_close(ours, hf_logits(directory, tokens), atol=5e-5, rtol=1e-4)
    assert (our_logits(directory, tokens) - ours).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "qwen2_window", "mistral_window"])
def test_tree_rows_equal_the_path_as_a_plain_sequence(family: str) -> None:
    """Rows of a tree, in any order that keeps parents first, score as their root-to-node path."""
    directory = make_checkpoint(family)
    prefix = 33
    parents = [-1, 0, 0, 1, 1, 2, 5, 3]  # of the tree rows; row 0 is the root
    tokens = random_tokens(prefix + len(parents))
    paths = []
    for node, parent in enumerate(parents):
        paths.append(([] if parent < 0 else paths[parent]) + [node])
    total = prefix + len(parents)
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[prefix:, prefix:] = False
    positions = torch.arange(total)
    for node, path in enumerate(paths):
        mask[prefix + node, [prefix + i for i in path]] = True
        positions[prefix + node] = prefix + len(path) - 1
    logits = our_logits(directory, tokens, positions=positions, mask=mask)
    for node, path in enumerate(paths):
        sequence = torch.cat([tokens[:prefix], tokens[[prefix + i for i in path]]])
        expected = our_logits(directory, sequence)[-1]
        torch.testing.assert_close(logits[prefix + node], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_read_exactly(dtype: str) -> None:
    directory = make_checkpoint("llama", dtype=dtype)
    tokens = random_tokens(65)
    torch.testing.assert_close(
        our_logits(directory, tokens), hf_logits(directory, tokens), atol=3e-5, rtol=1e-5
    )
