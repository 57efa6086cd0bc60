"""What the two stages of a pair minimise: objectives for the loop, and the figures of a pair.

Stage one (`JointObjective`) trains target and draft on the same batches: the target by
cross-entropy, the draft by forward KL to the target and a little cross-entropy.  Stage two
(`DraftObjective`) freezes the target and goes on with the draft alone, half on corpus text and
half on text sampled from the target, which is what it will have to predict in use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sdengine.train.data import Blocks, BlockSampler, TokenStream, evaluation_blocks, make_blocks
from sdengine.train.losses import (
    cross_entropy,
    expected_acceptance,
    forward_kl,
    greedy_agreement,
)
from sdengine.train.optim import build_optimizers


@dataclass(frozen=True, slots=True)
class PairConfig:
    """Hyper-parameters of the recipe.

    Attributes:
        tokens_per_step: of the whole batch.
        tokens_per_pass: of one forward and backward; bounds memory.
        short_length, long_length: sequence length before and during the cooldown.
        matrix_lr, embedding_lr: peaks of Muon and AdamW.
        cross_entropy_share: weight of the labels in the draft's loss of stage one, beside the KL.
        eval_tokens: held-out tokens of the evaluations during training.
    """

    seed: int = 0
    tokens_per_step: int = 4096
    tokens_per_pass: int = 2048
    short_length: int = 512
    long_length: int = 1024
    matrix_lr: float = 0.02
    embedding_lr: float = 3e-3
    weight_decay: float = 0.1
    cross_entropy_share: float = 0.1
    eval_tokens: int = 16384
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Streams:
    """The two halves of a tokenised corpus."""

    train: TokenStream
    held_out: TokenStream


@torch.no_grad()
def evaluate_pair(
    target: nn.Module, draft: nn.Module, blocks: Blocks, sequences_per_pass: int = 2
) -> dict[str, float]:
    """Held-out figures of both models.

    Returns:
        `target_nll` and `draft_nll` in nats per token; `alpha`, the acceptance expected at
        temperature 1; `greedy_agreement`, the share of equal most likely tokens.
    """
    totals: dict[str, float] = {}
    count = 0.0
    for piece in blocks.split(sequences_per_pass):
        target_logits, draft_logits = target(piece.inputs), draft(piece.inputs)
        weight = float(piece.mask.sum())
        values = {
            "target_nll": cross_entropy(target_logits, piece.labels, piece.mask),
            "draft_nll": cross_entropy(draft_logits, piece.labels, piece.mask),
            "alpha": expected_acceptance(draft_logits, target_logits, piece.mask),
            "greedy_agreement": greedy_agreement(draft_logits, target_logits, piece.mask),
        }
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + float(value) * weight
        count += weight
    return {name: total / count for name, total in totals.items()}


class _Distillation:
    """What both stages share: corpus batches, optimisers, evaluation."""

    def __init__(self, target: nn.Module, draft: nn.Module, streams: Streams, config: PairConfig):
        self.target, self.draft, self.config = target, draft, config
        self.sampler = BlockSampler(streams.train, config.seed)
        held_out = evaluation_blocks(streams.held_out, config.short_length, config.eval_tokens)
        self.held_out = held_out.to(config.device)
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    def _own(self, name: str, module: nn.Module, decays: bool) -> None:
        """Train `module` in this stage."""
        config = self.config
        optimizers = build_optimizers(
            module, config.matrix_lr, config.embedding_lr, config.weight_decay, decays
        )
        self.modules[name] = module
        for kind, optimizer in zip(("muon", "adamw"), optimizers, strict=True):
            self.optimizers[f"{name}_{kind}"] = optimizer

    def _pieces(self, batch: Blocks) -> list[Blocks]:
        length = batch.inputs.shape[1]
        return batch.to(self.config.device).split(max(1, self.config.tokens_per_pass // length))

    def evaluate(self) -> dict[str, float]:
        """Held-out figures, names prefixed `held_out_`."""
        sequences = max(1, self.config.tokens_per_pass // self.held_out.inputs.shape[1])
        figures = evaluate_pair(self.target, self.draft, self.held_out, sequences)
        return {f"held_out_{name}": value for name, value in figures.items()}


class JointObjective(_Distillation):
    """Stage one. The target decays in the cooldown, the draft keeps its learning rate."""

    def __init__(self, target: nn.Module, draft: nn.Module, streams: Streams, config: PairConfig):
        super().__init__(target, draft, streams, config)
        self._own("target", target, decays=True)
        self._own("draft", draft, decays=False)

    def accumulate(self, step: int, is_cooling: bool) -> dict[str, float]:
        """Gradients of both models on one batch; long sequences while cooling."""
        config = self.config
        length = config.long_length if is_cooling else config.short_length
        pieces = self._pieces(self.sampler.batch(step, config.tokens_per_step, length))
        sums = {"loss": 0.0, "draft_kl": 0.0}
        for piece in pieces:
            target_logits = self.target(piece.inputs)
            loss = cross_entropy(target_logits, piece.labels, piece.mask)
            draft_logits = self.draft(piece.inputs)
            kl = forward_kl(draft_logits, target_logits, piece.mask)
            label_loss = cross_entropy(draft_logits, piece.labels, piece.mask)
            total = loss + kl + config.cross_entropy_share * label_loss
            (total / len(pieces)).backward()
            sums["loss"] += float(loss.detach()) / len(pieces)
            sums["draft_kl"] += float(kl.detach()) / len(pieces)
        return {**sums, "length": float(length)}


class DraftObjective(_Distillation):
    """Stage two: the target is frozen; every other batch is its own sampled text.

    Args:
        samples: uint16 [num_samples, long_length + 1], text of the target.
    """

    def __init__(
        self,
        target: nn.Module,
        draft: nn.Module,
        streams: Streams,
        config: PairConfig,
        samples: np.ndarray,
    ):
        super().__init__(target, draft, streams, config)
        self.samples = samples
        self.bos_id = streams.train.bos_id
        self._own("draft", draft, decays=True)

    def _batch(self, step: int) -> Blocks:
        """Corpus on even steps, samples in a seeded order on odd ones."""
        config = self.config
        if step % 2 == 0:
            # Far from the blocks of stage one: another shuffle of the same text.
            return self.sampler.batch(step + 1_000_000, config.tokens_per_step, config.short_length)
        count = max(1, config.tokens_per_step // (self.samples.shape[1] - 1))
        first = (step // 2) * count
        rows = []
        for index in range(first, first + count):
            which_pass, place = divmod(index, len(self.samples))
            order = np.random.default_rng([config.seed, which_pass]).permutation(len(self.samples))
            rows.append(self.samples[order[place]])
        return make_blocks(np.stack(rows), self.bos_id)

    def accumulate(self, step: int, is_cooling: bool) -> dict[str, float]:
        """Gradient of the draft's KL on one batch."""
        pieces = self._pieces(self._batch(step))
        mean_kl = 0.0
        for piece in pieces:
            with torch.no_grad():
                target_logits = self.target(piece.inputs)
            kl = forward_kl(self.draft(piece.inputs), target_logits, piece.mask)
            (kl / len(pieces)).backward()
            mean_kl += float(kl.detach()) / len(pieces)
        return {"loss": mean_kl, "draft_kl": mean_kl, "is_sampled": float(step % 2)}
