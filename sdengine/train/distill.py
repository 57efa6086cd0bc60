"""What the two stages of a pair minimise: objectives for the loop, and the figures of a pair.

Stage one (`JointObjective`) trains target and draft on the same batches: the target by
cross-entropy, the draft by forward KL to the target and a little cross-entropy.  Stage two
(`DraftObjective`) freezes the target and goes on with the draft alone, half on corpus text and
half on text sampled from the target, which is what it will have to predict in use.  The draft
reads these texts many times, the target reads each of them once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sdengine.train.data import (
    Blocks,
    BlockSampler,
    TokenStream,
    evaluation_blocks,
    evaluation_rows,
)
from sdengine.train.losses import (
    acceptance_loss,
    cross_entropy,
    expected_acceptance,
    forward_kl,
    greedy_agreement,
)
from sdengine.train.module import Dropout, LlamaModule
from sdengine.train.optim import build_optimizers
from sdengine.train.teacher import TaughtTexts

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LONG_BELOW = 0.25  # long sequences, which cost a fifth more a token, for the end of the cooldown


@dataclass(frozen=True, slots=True)
class PairConfig:
    """Hyper-parameters of the recipe.

    Attributes:
        tokens_per_step: of the whole batch.
        tokens_per_pass: of one forward and backward; 512 keeps a layer's activations in the L2
            cache of a core, a GPU wants the whole batch.
        workers: passes at a time, each on one thread; 1 leaves threading to torch.
        short_length, long_length: sequence length, and the one late in the cooldown.
        matrix_lr, embedding_lr: peaks of Muon and AdamW.
        dropout: share left out of what the target's layers add, in stage one. 2.8M tokens are few
            for 13M parameters: after five passes without it the target's loss was 1.64 on the
            corpus and 2.38 on held-out files.
        cross_entropy_share: weight of the labels in the draft's loss of stage one, beside the KL.
        overlap_weight: of 1 - acceptance in the draft's loss of stage two, beside the KL.
        draft_blocks: of `long_length` tokens, the corpus text of stage two.
        eval_tokens: held-out tokens of the evaluations during training.
        precision: "fp32", or "bf16" for the layers' products (see `LlamaModule`) and for Muon's;
            weights and sums of gradients are fp32 in both.
    """

    seed: int = 0
    tokens_per_step: int = 4096
    tokens_per_pass: int = 512
    short_length: int = 512
    long_length: int = 1024
    matrix_lr: float = 0.02
    embedding_lr: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.0
    cross_entropy_share: float = 0.1
    overlap_weight: float = 1.0
    draft_blocks: int = 1536
    eval_tokens: int = 16384
    precision: str = "fp32"
    device: str = "cpu"
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Streams:
    """The two halves of a tokenised corpus."""

    train: TokenStream
    held_out: TokenStream


def _target_logits(target: LlamaModule, piece: Blocks) -> Tensor:
    """fp32 [B, S, V], from the kept states if there are any."""
    if piece.states is None:
        return target(piece.inputs)
    return target.head(piece.states.float())


def evaluate_pair(
    target: LlamaModule,
    draft: LlamaModule,
    blocks: Blocks,
    map_function: Callable[..., Iterable] = map,
) -> dict[str, float]:
    """Held-out figures of both models.

    Args:
        target, draft: on the device of `blocks`.
        blocks: evaluated sequence by sequence.
        map_function: `map`, or that of an executor whose threads share the work.

    Returns:
        `target_nll` and `draft_nll` in nats per token; `alpha`, the acceptance expected at
        temperature 1; `greedy_agreement`, the share of equal most likely tokens.
    """

    @torch.no_grad()
    def work(piece: Blocks) -> dict[str, float]:
        target_logits, draft_logits = _target_logits(target, piece), draft(piece.inputs)
        values = {
            "target_nll": cross_entropy(target_logits, piece.labels, piece.mask),
            "draft_nll": cross_entropy(draft_logits, piece.labels, piece.mask),
            "alpha": expected_acceptance(draft_logits, target_logits, piece.mask),
            "greedy_agreement": greedy_agreement(draft_logits, target_logits, piece.mask),
        }
        weight = float(piece.mask.sum())
        return {"weight": weight, **{name: float(v) * weight for name, v in values.items()}}

    totals: dict[str, float] = {}
    for sums in map_function(work, blocks.split(1)):
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    count = totals.pop("weight")
    return {name: total / count for name, total in totals.items()}


class _Distillation(ABC):
    """What both stages share: corpus batches, optimisers, evaluation."""

    held_out: Blocks  # on the device

    def __init__(
        self, target: LlamaModule, draft: LlamaModule, streams: Streams, config: PairConfig
    ):
        self.target, self.draft, self.config = target, draft, config
        target.layer_dtype = draft.layer_dtype = PRECISIONS[config.precision]
        self.sampler = BlockSampler(streams.train, config.seed)
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        # One single-threaded worker a core meets its neighbour once a step; two threads inside
        # every operation meet hundreds of times, and each meeting waits for whoever lost its core.
        self._map: Callable[..., Iterable] = map
        if config.workers > 1:
            pool = ThreadPoolExecutor(config.workers, "piece", torch.set_num_threads, (1,))
            self._map = pool.map

    def _own(self, name: str, module: nn.Module) -> None:
        """Train `module` in this stage."""
        config = self.config
        optimizers = build_optimizers(
            module,
            config.matrix_lr,
            config.embedding_lr,
            config.weight_decay,
            PRECISIONS[config.precision],
            self._map,
        )
        self.modules[name] = module
        for kind, optimizer in zip(("muon", "adamw"), optimizers, strict=True):
            self.optimizers[f"{name}_{kind}"] = optimizer

    @abstractmethod
    def _loss(self, piece: Blocks, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What a piece adds to the loss, and figures of it for the log; `seed` is the piece's."""

    def _accumulate(self, batch: Blocks, step: int) -> dict[str, float]:
        """Set every gradient to that of the mean over the batch's pieces; returns mean figures."""
        per_piece = max(1, self.config.tokens_per_pass // batch.inputs.shape[1])
        pieces = batch.to(self.config.device).split(per_piece)
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        sequence = np.random.SeedSequence([self.config.seed, step])
        seeds = sequence.generate_state(len(pieces)).tolist()

        def work(piece: Blocks, seed: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
            loss, figures = self._loss(piece, seed)
            return torch.autograd.grad(loss / len(pieces), parameters), figures

        means: dict[str, float] = {}
        # Summed in the order of the pieces, whoever computed them: the same bits every time.
        for gradients, figures in self._map(work, pieces, seeds):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            for name, value in figures.items():
                means[name] = means.get(name, 0.0) + float(value.detach()) / len(pieces)
        return means

    def evaluate(self) -> dict[str, float]:
        """Held-out figures, names prefixed `held_out_`."""
        figures = evaluate_pair(self.target, self.draft, self.held_out, self._map)
        return {f"held_out_{name}": value for name, value in figures.items()}


class JointObjective(_Distillation):
    """Stage one: both models on the same batches."""

    def __init__(
        self, target: LlamaModule, draft: LlamaModule, streams: Streams, config: PairConfig
    ):
        super().__init__(target, draft, streams, config)
        held_out = evaluation_blocks(streams.held_out, config.short_length, config.eval_tokens)
        self.held_out = held_out.to(config.device)
        self._own("target", target)
        self._own("draft", draft)

    def accumulate(self, step: int, remaining: float) -> dict[str, float]:
        """Gradients of both models on one batch; long sequences late in the cooldown."""
        config = self.config
        length = config.long_length if remaining < LONG_BELOW else config.short_length
        batch = self.sampler.batch(step, config.tokens_per_step, length)
        return {**self._accumulate(batch, step), "length": float(length)}

    def _loss(self, piece: Blocks, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        target_logits = self.target(piece.inputs, Dropout(self.config.dropout, seed))
        draft_logits = self.draft(piece.inputs)
        loss = cross_entropy(target_logits, piece.labels, piece.mask)
        kl = forward_kl(draft_logits, target_logits, piece.mask)
        label_loss = cross_entropy(draft_logits, piece.labels, piece.mask)
        total = loss + kl + self.config.cross_entropy_share * label_loss
        return total, {"loss": loss, "draft_kl": kl}


class DraftObjective(_Distillation):
    """Stage two: the target is frozen; every other batch is its own sampled text.

    The corpus comes in long sequences: in 2400 steps of short ones alone a draft forgot what lies
    beyond them (acceptance 0.65 up to position 512, 0.46 from 768 on).

    Args:
        samples: uint16 [num_samples, short_length + 1], text of the target.
        directory: of the files with the target's states; None keeps them in memory.
    """

    def __init__(
        self,
        target: LlamaModule,
        draft: LlamaModule,
        streams: Streams,
        config: PairConfig,
        samples: np.ndarray,
        directory: Path | None = None,
    ):
        super().__init__(target, draft, streams, config)
        self._own("draft", draft)

        def taught(name: str, rows: np.ndarray) -> TaughtTexts:
            path = None if directory is None else directory / f"{name}_states.npy"
            bos_id = streams.train.bos_id
            return TaughtTexts(target, rows, bos_id, config.seed, path, self._map)

        rows = self.sampler.one_pass(config.long_length, config.draft_blocks)
        self.corpus, self.samples = taught("corpus", rows), taught("samples", samples)
        rows = evaluation_rows(streams.held_out, config.short_length, config.eval_tokens)
        held_out = taught("held_out", rows).take(np.arange(len(rows)))
        self.held_out = held_out.to(config.device)

    def _batch(self, step: int) -> Blocks:
        """Corpus on even steps, samples on odd ones."""
        texts = self.samples if step % 2 else self.corpus
        count = max(1, self.config.tokens_per_step // (texts.rows.shape[1] - 1))
        return texts.batch(step // 2 * count, count)

    def accumulate(self, step: int, remaining: float) -> dict[str, float]:
        """Gradient of the draft's loss on one batch."""
        return {**self._accumulate(self._batch(step), step), "is_sampled": float(step % 2)}

    def _loss(self, piece: Blocks, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            target_logits = _target_logits(self.target, piece)
        loss, kl = acceptance_loss(
            self.draft(piece.inputs), target_logits, piece.mask, self.config.overlap_weight
        )
        return loss, {"loss": loss, "draft_kl": kl}
