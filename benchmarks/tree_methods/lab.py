"""Grows and walks trees without the passes whose results nothing reads.

A step of the engine verifies a whole tree in one target pass, but its walk only looks at the nodes
it visits. So the same walk comes out when the target scores visited nodes alone, one row after
another: a tree of 768 nodes then costs its draft passes and some five rows. Growing (draft passes,
`draft_topk`, `tree_expand`, `tree_select`) and walking (`tree_verify`) are the engine's own
launches on the engine's own buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.tree_methods.pairs import Pair
from sdengine.cache.kv_cache import KVCache
from sdengine.core.growth import TreePolicy
from sdengine.core.sampling_params import SamplingParams
from sdengine.drafters.draft_model import DraftModelDrafter, tree_room
from sdengine.factory.sizes import share_of_masks
from sdengine.kernels.acceptance_fit import NativeAcceptanceTables
from sdengine.kernels.calibration import identity_table
from sdengine.kernels.programs.memory import HostMemory
from sdengine.kernels.programs.program import Program, make_pool, make_program
from sdengine.kernels.token_tree import NO_LOGITS, ROOT_AND_NODES, ROOT_ONLY
from sdengine.runner.batch_state import HostView
from sdengine.runner.calibration import Calibrator
from sdengine.runner.iteration import Iteration
from sdengine.runner.variant import Variant
from sdengine.runner.workspace import Sizes, Workspace
from sdengine.verifiers.coupled import CoupledVerifier

BLOCK_SIZE = 64
DTYPE = torch.float32  # the bundled pair's rounding in bf16 is no part of what is compared


@dataclass(frozen=True, slots=True)
class Growth:
    """How trees are grown and walked.

    Args:
        policy: from a SpeculationConfig.
        max_nodes: most nodes of a tree.
        max_depth: deepest tree.
        num_candidates: K of a draft row.
        is_rejection: recursive rejection sampling instead of the coupled walk.
        calibrate: correct estimates online.
        positional_acceptance: [K], for static trees.
        draft_temperature: None follows the requests'.
    """

    policy: TreePolicy
    max_nodes: int
    max_depth: int
    num_candidates: int
    is_rejection: bool = False
    calibrate: bool = False
    positional_acceptance: torch.Tensor | None = None
    draft_temperature: float | None = None


class TreeLab:
    """Buffers and programs of one growth for B sequences.

    Args:
        pair: loaded models.
        growth: what to grow.
        batch_size: B.
        max_len: longest sequence.
    """

    def __init__(self, pair: Pair, growth: Growth, batch_size: int, max_len: int) -> None:
        self.growth = growth
        self.sizes = _sizes(pair, growth, batch_size, max_len)
        memory = HostMemory()
        self.workspace = Workspace.allocate(self.sizes, identity_table(), memory)
        self._host = HostView(self.workspace.state, memory)
        pool = make_pool(1)
        temperature = self.workspace.state.temperature
        if growth.draft_temperature is not None:
            temperature = torch.full((batch_size,), growth.draft_temperature)
        self.drafter = DraftModelDrafter(
            pair.draft,
            KVCache(pair.draft.config, self.sizes.num_blocks, BLOCK_SIZE, DTYPE, memory),
            growth.policy,
            self.workspace,
            is_sampled=growth.is_rejection,
            temperature=temperature,
            calibrate=growth.calibrate,
            num_threads=1,
            positional_acceptance=growth.positional_acceptance,
        )
        cache = KVCache(pair.target.config, self.sizes.num_blocks, BLOCK_SIZE, DTYPE, memory)
        verifier = CoupledVerifier(self.workspace)
        self.iteration = Iteration(
            "cpu", pool, self.workspace, pair.target, cache, self.drafter, verifier
        )
        verdict = self.iteration.verdict
        self.calibrator = Calibrator(
            NativeAcceptanceTables(
                memory.host(self.workspace.calibration),
                memory.host(verdict.tried),
                memory.host(verdict.accepted),
                by_rank=growth.is_rejection,
            )
        )
        self.tokens: list[list[int]] = []
        self._draft_computed: list[int] = []
        self._target_computed: list[int] = []
        self._pool = pool
        self._grow = self._describe_growing()
        self._score = self._describe_scoring()

    def program(self) -> Program:
        """An empty program for walks."""
        return make_program("cpu", self._pool)

    def _describe_growing(self) -> Program:
        program = self.program()
        self.iteration.describe_pending(program)
        self.drafter.propose(program, Variant(True))
        self.iteration.describe_selection(program)
        return program

    def _describe_scoring(self) -> Program:
        program = self.program()
        self.iteration.describe_pending(program)
        self.iteration.describe_verify(program, Variant(False))
        return program

    def start(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """Puts new sequences into the slots; their seeds are `params.seed`, + 1, + 2, ..."""
        assert len(prompts) == self.sizes.max_num_seqs and params.seed is not None
        self.tokens = [list(prompt) for prompt in prompts]
        self._draft_computed = [0] * len(prompts)
        self._target_computed = [0] * len(prompts)
        for slot in range(len(prompts)):
            self._host.temperature[slot] = params.temperature
            self._host.top_k[slot], self._host.top_p[slot] = 0, 1.0
            self._host.min_p[slot] = 0.0
            self._host.seeds[slot] = params.seed + slot
            self.calibrator.assign(slot, params)
            first = slot * self.sizes.max_blocks
            blocks = range(first, first + self.sizes.max_blocks)
            self._host.block_tables[slot] = list(blocks)

    def force(self, slot: int, tokens: Sequence[int], num_shared: int) -> None:
        """Replaces a sequence; its first `num_shared` tokens are what they were."""
        self.tokens[slot] = list(tokens)
        self._draft_computed[slot] = min(self._draft_computed[slot], num_shared)
        self._target_computed[slot] = min(self._target_computed[slot], num_shared)

    def grow(self, slots: Sequence[int]) -> None:
        """Grows and selects the trees of some slots below their last tokens."""
        host = self._host
        host.draft_wants_logits[:] = NO_LOGITS
        host.draft_pending_lens[:] = host.pending_lens[:] = 0
        host.node_budgets[:] = host.depth_limits[:] = 0
        for slot in slots:
            count = self._write_history(slot)
            host.draft_computed_lens[slot] = self._draft_computed[slot]
            host.draft_pending_lens[slot] = count - self._draft_computed[slot]
            host.draft_wants_logits[slot] = ROOT_AND_NODES
            host.pending_lens[slot] = 1
            host.computed_lens[slot] = count - 1
            host.node_budgets[slot] = self.growth.max_nodes
            host.depth_limits[slot] = self.growth.max_depth
            self._draft_computed[slot] = count
        self.workspace.total_budget[0] = self.growth.max_nodes * len(slots)
        self._grow.replay()

    def score(self, slots: Sequence[int]) -> torch.Tensor:
        """Passes the tokens that the target has not seen yet through it.

        Returns:
            [len(slots), V] logits after the last token of each; a view, gone at the next call.
        """
        host = self._host
        host.wants_logits[:] = NO_LOGITS
        host.pending_lens[:] = host.draft_pending_lens[:] = 0
        for slot in slots:
            count = self._write_history(slot)
            host.computed_lens[slot] = self._target_computed[slot]
            host.pending_lens[slot] = count - self._target_computed[slot]
            host.wants_logits[slot] = ROOT_ONLY
            host.max_emit[slot] = 1
            self._target_computed[slot] = count
        self._score.replay()
        rows = self.workspace.cu_logits[list(slots)].long()
        return self.workspace.logits[rows]

    def _write_history(self, slot: int) -> int:
        tokens = self.tokens[slot]
        self.workspace.state.history[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self._host.history_lens[slot] = len(tokens)
        return len(tokens)


def _max_width(growth: Growth) -> int:
    """Most nodes that a draft layer forwards: the engine's rule (`sdengine/factory/sizes.py`)."""
    width = max(growth.policy.grow(layer).max_width for layer in range(growth.max_depth))
    share = share_of_masks(growth.max_depth, growth.is_rejection)
    return min(width, share, growth.max_nodes)


def _sizes(pair: Pair, growth: Growth, batch_size: int, max_len: int) -> Sizes:
    width = _max_width(growth)
    room = tree_room(growth.max_nodes, growth.max_depth, width)
    max_blocks = -(-(max_len + room) // BLOCK_SIZE)
    return Sizes(
        max_num_seqs=batch_size,
        max_batched_tokens=batch_size * max_len,
        max_history=max_len + growth.max_depth + 1,
        block_size=BLOCK_SIZE,
        num_blocks=batch_size * max_blocks,
        max_blocks=max_blocks,
        vocab_size=pair.target.config.vocab_size,
        max_nodes=growth.max_nodes,
        max_depth=growth.max_depth,
        num_candidates=growth.num_candidates,
        max_width=width,
        num_stop_tokens=1,
    )
