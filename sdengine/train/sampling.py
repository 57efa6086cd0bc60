"""Text sampled from a model in plain torch: what the draft is distilled on, and a measure of loops.

Slow and simple on purpose: the engine generates for users, this module generates for training,
where all rows have one length and weights still change.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdengine.train.data import TokenStream
from sdengine.train.module import KeyValueCache, LlamaModule


@torch.no_grad()
def generate(
    module: LlamaModule,
    prompts: Tensor,
    num_tokens: int,
    temperatures: Tensor,
    seed: int,
    eos_id: int,
    bos_id: int,
) -> Tensor:
    """Continue every prompt by `num_tokens` tokens.

    Args:
        module: on the device of `prompts`.
        prompts: int64 [B, S], all of one length.
        num_tokens: new tokens a row; S + num_tokens must fit the position table.
        temperatures: fp32 [B]; 0 is greedy.
        seed: of the Gumbel noise.
        eos_id, bos_id: a row that ends goes on with a new document, as in the training stream.

    Returns:
        int64 [B, S + num_tokens], prompts included.
    """
    batch, prompt_length = prompts.shape
    total = prompt_length + num_tokens
    assert total <= module.shape.max_position_embeddings, total
    device = str(prompts.device)
    random = torch.Generator(device).manual_seed(seed)
    cache = KeyValueCache(module.shape, batch, total, device)
    output = torch.empty((batch, total), dtype=torch.int64, device=device)
    output[:, :prompt_length] = prompts
    logits = module(prompts, cache)[:, -1]
    for position in range(prompt_length, total):
        noise = torch.empty_like(logits).exponential_(generator=random).log_().neg_()
        chosen = (logits + temperatures[:, None] * noise).argmax(-1)
        chosen = torch.where(output[:, position - 1] == eos_id, bos_id, chosen)
        output[:, position] = chosen
        if position + 1 < total:
            logits = module(chosen[:, None], cache)[:, -1]
    return output


def statement_prompts(stream: TokenStream, count: int, length: int, seed: int) -> np.ndarray:
    """Prompts cut from a stream: `<|bos|>` and the first tokens of random top-level statements.

    Returns:
        uint16 [count, length].
    """
    usable = stream.statement_starts[stream.statement_starts + length < len(stream)]
    chosen = np.random.default_rng(seed).choice(usable, size=count, replace=len(usable) < count)
    rows = np.empty((count, length), dtype=np.uint16)
    rows[:, 0] = stream.bos_id
    rows[:, 1:] = stream.tokens[chosen[:, None] + np.arange(length - 1)]
    return rows


def target_samples(
    module: LlamaModule,
    stream: TokenStream,
    count: int,
    length: int,
    seed: int,
    eos_id: int,
    prompt_length: int = 16,
    rows_per_pass: int = 64,
) -> np.ndarray:
    """Text of the target after prompts from the training stream.

    Five rows in eight at temperature 1, two at 0.7 and one greedy: the draft serves all of them.

    Returns:
        uint16 [count, length].
    """
    device = str(module.cos.device)
    cycle = torch.tensor([1.0, 1.0, 0.7, 1.0, 1.0, 0.0, 1.0, 0.7], device=device)
    prompts = statement_prompts(stream, count, prompt_length, seed)
    pieces = []
    for first in range(0, count, rows_per_pass):
        rows = torch.from_numpy(prompts[first : first + rows_per_pass].astype(np.int64)).to(device)
        temperatures = cycle.repeat(len(rows) // len(cycle) + 1)[: len(rows)]
        text = generate(
            module,
            rows,
            length - prompt_length,
            temperatures,
            seed + 1 + first,
            eos_id,
            stream.bos_id,
        )
        pieces.append(text.cpu().numpy().astype(np.uint16))
    return np.concatenate(pieces)


def repeated_ngram_share(rows: np.ndarray, n: int) -> float:
    """Share of the n-grams of each row that the same row already contained; mean over rows."""
    shares = []
    for row in rows:
        grams = [tuple(row[index : index + n]) for index in range(len(row) - n + 1)]
        shares.append(1.0 - len(set(grams)) / len(grams))
    return float(np.mean(shares))
