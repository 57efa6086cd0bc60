"""Whether an enlarged model says what the small one says: logits, greedy text, acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sdengine.core.config import SpeculationConfig
from sdengine.core.outputs import RequestOutput
from sdengine.core.sampling_params import SamplingParams
from sdengine.llm import LLM
from sdengine.model.checkpoint import open_checkpoint
from sdengine.model.reference import load_weights, reference_logits
from sdengine.model.registry import ModelPaths
from sdengine.model.tokenizer import load_tokenizer

__all__ = [
    "LogitAgreement",
    "TextAgreement",
    "compare_logits",
    "compare_text",
    "first_difference",
    "margin_at",
]


@dataclass(frozen=True, slots=True)
class LogitAgreement:
    """Root mean square distances to the small model's logits in float64.

    Args:
        small_error: of the small model in plain torch, in the dtype compared.
        large_error: of the large one, likewise.
        surplus_distance: from the least real logit down to the greatest surplus one; infinite where
            the vocabularies are the same.
    """

    small_error: float
    large_error: float
    surplus_distance: float


@dataclass(frozen=True, slots=True)
class TextAgreement:
    """The same requests on both pairs.

    Args:
        num_equal: texts equal to the last token.
        num_texts: of so many.
        small_length: mean acceptance length of the small pair.
        large_length: of the large one.
    """

    num_equal: int
    num_texts: int
    small_length: float
    large_length: float


def compare_logits(small: Path, large: Path, texts: Sequence[str], dtype: str) -> LogitAgreement:
    """Scores texts with the reference model; it holds the large one in memory as a whole.

    Args:
        small: directory of the small model.
        large: of the enlarged one.
        texts: scored token by token.
        dtype: float32 or bfloat16, to compute in.
    """
    tokenizer = load_tokenizer(small)
    tokens = [torch.tensor(tokenizer.encode(text)) for text in texts]
    exact = _logits(small, tokens, torch.float64)
    rounded = _logits(small, tokens, getattr(torch, dtype))
    found = _logits(large, tokens, getattr(torch, dtype))
    vocab = exact.shape[1]
    surplus = found[:, vocab:]
    distance = exact.min() - surplus.max() if surplus.numel() else torch.tensor(torch.inf)
    return LogitAgreement(_rms(rounded - exact), _rms(found[:, :vocab] - exact), float(distance))


def _logits(model: Path, tokens: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """All rows of all texts, float64 [N, V]."""
    checkpoint = open_checkpoint(model)
    weights = load_weights(checkpoint, dtype)
    rows = [reference_logits(weights, checkpoint.config, ids).double() for ids in tokens]
    return torch.cat(rows)


def _rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


def compare_text(
    small: ModelPaths,
    large: ModelPaths,
    texts: Sequence[str],
    dtype: str,
    max_tokens: int,
    max_nodes: int = 8,
) -> TextAgreement:
    """Completes texts greedily with both pairs, all at once, with a fixed budget.

    Args:
        small: target and draft of the small pair.
        large: of the enlarged one.
        texts: prompts.
        dtype: float32 or bfloat16.
        max_tokens: of each completion.
        max_nodes: draft tokens of a step and sequence.
    """
    mine, theirs = (
        _complete(paths, texts, dtype, max_tokens, max_nodes) for paths in (small, large)
    )
    equal = sum(
        list(a.outputs[0].token_ids) == list(b.outputs[0].token_ids) for a, b in zip(mine, theirs)
    )
    return TextAgreement(equal, len(mine), _acceptance_length(mine), _acceptance_length(theirs))


def _complete(
    paths: ModelPaths, texts: Sequence[str], dtype: str, max_tokens: int, max_nodes: int
) -> list[RequestOutput]:
    llm = LLM(
        str(paths.target),
        str(paths.draft),
        dtype=dtype,
        max_num_seqs=len(texts),
        speculation=SpeculationConfig(max_nodes=max_nodes, adaptive=False),
    )
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return llm.generate(list(texts), params)


def _acceptance_length(outputs: Sequence[RequestOutput]) -> float:
    stats = [o.metrics.speculation for o in outputs if o.metrics.speculation is not None]
    return sum(s.mean_acceptance_length for s in stats) / len(stats)


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token in which two texts of one length differ, None where none does."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)


def margin_at(model: Path, tokens: Sequence[int], one: int, other: int) -> float:
    """How far apart the exact logits of two next tokens are."""
    logits = _logits(model, [torch.tensor(tokens)], torch.float64)[-1]
    return float((logits[one] - logits[other]).abs())
