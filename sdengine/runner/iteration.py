"""One iteration as one program: propose, forward, verify, commit. Described once per variant.

    begin     begin_step  gather_pending
    propose   gather_pending  build_rows  draft pass  draft_topk  tree_expand   (again per layer)
    forward   tree_select  build_rows  target pass
    verify    penalize  tree_verify  token_logprobs
    commit    commit_plan  kv_compact  kv_compact

Where requests ask for it, a draft's logits go through penalize and filter_logits, too, before
draft_topk. Every size that changes between steps lies in a small tensor, so the same few programs
serve all steps; and nothing between the first and the last launch looks at host state.
"""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import Any

import torch

from sdengine.cache.kv_cache import KVCache
from sdengine.kernels.move_plan import MovePlan
from sdengine.kernels.programs.device_program import StagedProgram, is_captured
from sdengine.kernels.programs.graph_branches import GraphBranches
from sdengine.kernels.programs.limits import NO_LIMITS, Limits
from sdengine.kernels.programs.program import Program, make_program, num_threads
from sdengine.runner.demand import Demand, limits_of, rows_of_trees
from sdengine.runner.drafter import Drafter
from sdengine.runner.forward import Activations, Logits, Spans, describe_forward
from sdengine.runner.logprobs import LogprobBuffers, describe_logprobs
from sdengine.runner.penalties import describe_penalties
from sdengine.runner.variant import Variant
from sdengine.runner.verifier import Verifier, allocate_verdict
from sdengine.runner.weights import ModelWeights
from sdengine.runner.workspace import Workspace

RECORDED_AFTER = 32
"""Steps with trees that the program of larger ones serves before theirs is recorded. To describe
and capture one takes an estimated fifty times what a step saves by it, and holds up the step: trees
that grow from 2 to 64 nodes in a few steps would ask for five."""


class Iteration:
    """The programs of one engine.

    Args:
        backend: one of BACKENDS.
        pool: native thread pool of the CPU backend, None for the others.
        workspace: buffers.
        weights: the target model.
        cache: its KV cache.
        drafter: grows trees, None for plain decoding.
        verifier: walks them.
        branches: lets a GPU skip draft layers without rows.

    Attributes:
        recording_s: what recording programs has taken, all in all.
    """

    def __init__(
        self,
        backend: str,
        pool: Any,
        workspace: Workspace,
        weights: ModelWeights,
        cache: KVCache,
        drafter: Drafter | None,
        verifier: Verifier,
        branches: GraphBranches | None = None,
    ) -> None:
        sizes, memory = workspace.sizes, workspace.memory
        self.workspace = workspace
        self.drafter = drafter
        self.weights = weights
        self.pool = pool
        self.verdict = allocate_verdict(memory, sizes)
        self.logprobs = LogprobBuffers.allocate(memory, sizes.max_num_seqs, self.verdict.max_depth)
        self.backend = backend
        # Whether programs differ by their limits: a device's grids are of a fixed size.
        self.is_on_device = backend in ("triton", "cuda")
        self._cache = cache
        self.verifier = verifier
        self._branches = branches
        self._buffers = Activations.allocate(
            weights, sizes.max_target_rows, sizes.max_context, num_threads(pool), memory
        )
        self._spans = Spans(workspace.target_rows, workspace.state.block_tables)
        self._num_emitted = memory.zeros(sizes.max_num_seqs, dtype=torch.int32)
        max_moves, device = self.verdict.max_depth, memory.device
        self._moves = MovePlan.allocate(sizes.max_num_seqs, max_moves, device)
        self._draft_moves = MovePlan.allocate(sizes.max_num_seqs, max_moves, device)
        self._programs: dict[Variant, Program] = {}
        self._num_asked: Counter[Variant] = Counter()  # while there was no program
        # Start, after proposing, end: nanoseconds, written by the program itself.
        self.times_ns = memory.results(3, dtype=torch.int64)
        self.recording_s = 0.0

    def describe_usual(self, has_penalties: bool = False, has_filters: bool = False) -> None:
        """Describes the variants that most requests need: some 5 ms for plain decoding, 25 for
        trees of eight layers, which the first requests would wait for. On a GPU the smallest of
        each is captured, too, which compiles the kernels that all sizes share, and that of one
        sequence's largest tree.

        Args:
            has_penalties: of those requests, that their logits are changed.
            has_filters: that tokens are left out.
        """
        if self.is_on_device and not is_captured(self.workspace.memory.device):
            return
        variants = [Variant(False, limits=self.limits(Demand()))]
        if self.drafter is not None:
            sizes, missing = self.workspace.sizes, None
            if self.drafter.cache is not None:
                missing = 1
                following = self.limits(Demand(num_missing=missing))
                variants.append(Variant(False, catches_up=True, limits=following))
            for num_nodes, depth in ((1, 1), (sizes.max_nodes, sizes.max_depth)):
                demand = Demand(num_trees=1, num_nodes=num_nodes, num_missing=missing, depth=depth)
                variants.append(Variant(True, limits=self.limits(demand)))
        cuts = has_filters and self.drafter is not None and self.drafter.uses_filters
        for variant in dict.fromkeys(variants):
            filtered = cuts and variant.drafts
            wanted = variant._replace(has_penalties=has_penalties, has_filters=filtered)
            if wanted not in self._programs:
                self._record(wanted)

    def limits(self, demand: Demand) -> Limits:
        """Of the smallest program that serves so much; none where one serves all."""
        if not self.is_on_device:
            return NO_LIMITS
        return limits_of(demand, self.workspace.sizes, skips_layers=self.skips_layers)

    @property
    def skips_layers(self) -> bool:
        """Whether the device skips draft layers without rows by itself."""
        return self._branches is not None

    def empty_program(self, limits: Limits) -> Program:
        """A program of the engine's kind, without launches."""
        return make_program(self.backend, self.pool, self.workspace.memory, limits, self._branches)

    def program(self, variant: Variant) -> Program:
        """The recorded iteration of a variant; that of larger trees until it was asked for often.
        Described when none serves."""
        program = self._programs.get(variant)
        if program is None:
            program = self._larger(variant) or self._record(variant)
        return program

    def _larger(self, variant: Variant) -> Program | None:
        """The smallest program that serves as well and has no more rows than the largest trees of
        as many sequences: one for a prompt's would cost more than it spares."""
        if not variant.drafts or not self.is_on_device:
            return None
        self._num_asked[variant] += 1
        if self._num_asked[variant] > RECORDED_AFTER:
            return None
        most = rows_of_trees(variant.limits, self.workspace.sizes)
        larger = [v for v in self._programs if v.serves(variant) and most.covers(v.limits)]
        smallest = min(larger, key=lambda other: other.limits.order, default=None)
        return None if smallest is None else self._programs[smallest]

    def _record(self, variant: Variant) -> Program:
        begin = perf_counter()
        program = self.empty_program(variant.limits)
        program.stop_at_zero(self.workspace.num_logits)  # nobody goes on
        self._describe(program, variant)
        if isinstance(program, StagedProgram):
            program.prepare()
        self._programs[variant] = program
        self.recording_s += perf_counter() - begin
        return program

    def _describe(self, program: Program, variant: Variant) -> None:
        # Twice where there are workers: the barrier after the first launch waits for them to wake,
        # which is no drafting.
        for _ in range(1 if self.is_on_device else 2):
            program.launch("timestamp", out_ns=self.times_ns[0:1])
        self._describe_begin(program, variant)
        self.describe_pending(program)
        self._describe_propose(program, variant)
        program.launch("timestamp", out_ns=self.times_ns[1:2])
        self.describe_verify(program, variant)
        program.launch("timestamp", out_ns=self.times_ns[2:3])

    def describe_verify(self, program: Program, variant: Variant) -> None:
        """Appends everything after the trees are grown: the part of an iteration whose cost depends
        on their size."""
        workspace = self.workspace
        logits = Logits(workspace.logits, workspace.sampled_rows, workspace.num_logits)
        self._describe_forward(program, logits, variant.drafts)
        if variant.has_penalties:
            known, rows = workspace.state.history_lens, workspace.target_rows
            tree = workspace.token_tree if variant.drafts else None
            describe_penalties(program, workspace.penalties, known, logits, rows, tree)
        self.verifier.verify(program, self.verdict)
        if variant.has_logprobs:
            describe_logprobs(program, workspace, self.verdict, self.logprobs)
        self._describe_commit(program, variant)

    def describe_pending(self, program: Program) -> None:
        """Appends the packing of the target's pending tokens; drafting, too, counts their rows."""
        workspace, state = self.workspace, self.workspace.state
        program.launch(
            "gather_pending",
            history=state.history,
            computed_lens=state.computed_lens,
            pending_lens=state.pending_lens,
            num_seqs=workspace.num_seqs,
            pending_tokens=workspace.pending_tokens,
            cu_pending=workspace.cu_pending,
        )

    def _describe_begin(self, program: Program, variant: Variant) -> None:
        workspace, state = self.workspace, self.workspace.state
        has_cache = self.drafter is not None and self.drafter.cache is not None
        follows = has_cache and (variant.drafts or variant.catches_up)
        program.launch(
            "begin_step",
            num_seqs=workspace.num_seqs,
            min_running=workspace.min_running,
            scheduled_lens=state.scheduled_lens,
            can_draft=state.can_draft,
            max_total_lens=state.max_total_lens,
            groups=state.groups,
            is_balanced=workspace.is_balanced,
            first_stops=state.first_stops,
            stop_tokens=workspace.stop_tokens,
            depth_limit=workspace.depth_limit,
            node_limit=workspace.node_limit,
            history=state.history,
            history_lens=state.history_lens,
            num_emitted=self._num_emitted,
            computed_lens=state.computed_lens,
            draft_computed_lens=state.draft_computed_lens if follows else None,
            pending_lens=state.pending_lens,
            wants_logits=state.wants_logits,
            max_emit=state.max_emit,
            draft_pending_lens=state.draft_pending_lens,
            draft_wants_logits=state.draft_wants_logits,
            node_budgets=state.node_budgets,
            depth_limits=state.depth_limits,
            root_values=state.root_values,
            max_draft_rows=workspace.sizes.max_batched_tokens,
            has_trees=variant.drafts,
        )

    def describe_selection(self, program: Program) -> None:
        """From the trees that were grown to those that are verified."""
        workspace = self.workspace
        program.launch(
            "tree_select",
            draft=workspace.draft_tree,
            thresholds=workspace.thresholds,
            cu_pending=workspace.cu_pending,
            num_seqs=workspace.num_seqs,
            scratch=workspace.tree_scratch,
            tree=workspace.token_tree,
            total_budget=workspace.total_budget,
        )

    def _describe_propose(self, program: Program, variant: Variant) -> None:
        if variant.drafts:
            assert self.drafter is not None
            self.drafter.propose(program, variant)
        elif variant.catches_up:
            assert self.drafter is not None
            self.drafter.catch_up(program)

    def _describe_forward(self, program: Program, logits: Logits, has_trees: bool) -> None:
        self._describe_rows(program, has_trees)
        limit = program.limits.rows
        spans, buffers = self._spans, self._buffers
        describe_forward(program, self.weights, self._cache, spans, buffers, logits, limit)

    def _describe_rows(self, program: Program, has_trees: bool) -> None:
        workspace, state = self.workspace, self.workspace.state
        if has_trees:
            self.describe_selection(program)
        program.launch(
            "build_rows",
            pending_tokens=workspace.pending_tokens,
            cu_pending=workspace.cu_pending,
            computed_lens=state.computed_lens,
            wants_logits=state.wants_logits,
            num_seqs=workspace.num_seqs,
            block_tables=state.block_tables,
            block_size=workspace.sizes.block_size,
            tree=workspace.token_tree if has_trees else None,
            rows=workspace.target_rows,
            logit_rows=workspace.logit_rows,
            cu_logits=workspace.cu_logits,
            num_logits=workspace.num_logits,
        )

    def _describe_commit(self, program: Program, variant: Variant) -> None:
        workspace, state, drafter = self.workspace, self.workspace.state, self.drafter
        draft_args: dict[str, Any] = {}
        if drafter is not None and drafter.cache is not None:
            draft_args = {
                "draft_slots": workspace.token_tree.draft_slots if variant.drafts else None,
                "draft_pending_lens": state.draft_pending_lens,
                "draft_computed_lens": state.draft_computed_lens,
                "draft_moves": self._draft_moves,
            }
        program.launch(
            "commit_plan",
            num_seqs=workspace.num_seqs,
            wants_logits=state.wants_logits,
            pending_lens=state.pending_lens,
            verdict=self.verdict,
            max_emit=state.max_emit,
            num_emitted=self._num_emitted,
            history=state.history,
            history_lens=state.history_lens,
            computed_lens=state.computed_lens,
            moves=self._moves,
            output_counts=workspace.penalties.output_counts if variant.has_penalties else None,
            **draft_args,
        )
        if variant.drafts:
            self._describe_compaction(program, self._cache, self._moves)
            if drafter is not None and drafter.cache is not None:
                self._describe_compaction(program, drafter.cache, self._draft_moves)

    def _describe_compaction(self, program: Program, cache: KVCache, moves: MovePlan) -> None:
        workspace = self.workspace
        program.launch(
            "kv_compact",
            kv_cache=cache.tensor,
            block_tables=workspace.state.block_tables,
            moves=moves,
            num_seqs=workspace.num_seqs,
        )
