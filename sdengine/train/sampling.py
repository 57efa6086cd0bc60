"""Text sampled from an exported model by the engine: what the draft is distilled on, and a measure
of loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM
from sdengine.train.data import TokenStream

ROWS_AT_ONCE = 64


def open_target(directory: Path, num_threads: int) -> LLM:
    """An engine that decodes many texts of the exported model in `directory` plainly, on the
    device that the engine chooses, wherever the model was trained.

    Raises:
        CheckpointError: if the directory is no exported model.
    """
    return LLM(
        str(directory),
        speculation=None,
        max_num_seqs=ROWS_AT_ONCE,
        num_threads=num_threads,
    )


def generate(
    llm: LLM, prompts: np.ndarray, length: int, temperatures: list[float], seed: int, bos_id: int
) -> np.ndarray:
    """Continue every prompt to `length` tokens.

    Args:
        llm: its context must hold `length` tokens.
        prompts: uint16 [B, S], all of one length.
        length: tokens of a row in the end, prompt included.
        temperatures: of each row; 0 is greedy.
        seed: row b is sampled with `seed + b`.
        bos_id: a row that ends goes on with a new document, as in the training stream.

    Returns:
        uint16 [B, length].

    Raises:
        RequestError: if the texts do not fit the context.
    """
    texts = prompts.tolist()
    unfinished = range(len(texts))
    while unfinished:
        params = [
            SamplingParams(
                max_tokens=length - len(texts[row]), temperature=temperatures[row], seed=seed + row
            )
            for row in unfinished
        ]
        outputs = llm.generate([texts[row] for row in unfinished], params)
        for row, output in zip(unfinished, outputs, strict=True):
            texts[row] += output.outputs[0].token_ids
            if len(texts[row]) < length:  # it ended with the end-of-sequence token
                texts[row].append(bos_id)
        unfinished = [row for row in unfinished if len(texts[row]) < length]
    return np.array(texts, dtype=np.uint16)


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
    llm: LLM, stream: TokenStream, count: int, length: int, seed: int, prompt_length: int = 16
) -> np.ndarray:
    """Text of the target after prompts from the training stream.

    Five rows in eight at temperature 1, two at 0.7 and one greedy: the draft serves all of them.

    Returns:
        uint16 [count, length].
    """
    cycle = [1.0, 1.0, 0.7, 1.0, 1.0, 0.0, 1.0, 0.7]
    prompts = statement_prompts(stream, count, prompt_length, seed)
    temperatures = (cycle * (count // len(cycle) + 1))[:count]
    return generate(llm, prompts, length, temperatures, seed + 1, stream.bos_id)


def repeated_ngram_share(rows: Iterable[Sequence[int]], n: int) -> float:
    """Share of the n-grams of each row that the same row already contained; mean over the rows that
    have any, 0 if none has."""
    shares = []
    for row in rows:
        grams = [tuple(row[index : index + n]) for index in range(len(row) - n + 1)]
        if grams:
            shares.append(1.0 - len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else 0.0
