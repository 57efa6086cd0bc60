"""Measures what steps cost on this machine: the target by rows, the draft by layers.

Runs the engine's own launches on a dummy sequence before any request is there; `cost_file` keeps
what was found of large models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from time import perf_counter

import numpy as np
import torch

from sdengine.core.cost_model import CostModel
from sdengine.kernels.programs.memory import StagedMemory
from sdengine.kernels.programs.program import Program
from sdengine.kernels.token_tree import ROOT_AND_NODES, ROOT_ONLY
from sdengine.runner.batch_state import HostView
from sdengine.runner.demand import Demand
from sdengine.runner.iteration import Iteration
from sdengine.runner.variant import Variant

ROW_COUNTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64, 128)
CONTEXT = 64
"""Tokens before the dummy root: short, because attention is a small part of a step. Fewer where the
model length has no position for what comes after them."""
BUDGET_S = 0.4
"""Turns stop after so long; fast models get more of them."""
READ_TOKENS = 32
"""That the draft is timed reading at once; fewer where a model or a step has no room for them."""
MIN_TURNS, MAX_TURNS = 2, 16


@dataclass(frozen=True, slots=True)
class Trial:
    """A program to time, what puts its inputs back, and where it leaves its times ([1] int64)."""

    program: Program
    reset: Callable[[], None]
    start_ns: np.ndarray
    end_ns: np.ndarray

    def run(self) -> float:
        """Seconds of one replay."""
        self.reset()
        self.program.replay()
        return 1e-9 * int(self.end_ns[0] - self.start_ns[0])


def measure_costs(iteration: Iteration) -> CostModel:
    """Cost model of an engine, in some 0.5 s, of large models in seconds.

    Args:
        iteration: programs and buffers; no sequence may have run yet, since the keys and values of
            a dummy one overwrite those of prompts that later requests would share.
    """
    host = HostView(iteration.workspace.state, iteration.workspace.memory)
    counts = [m for m in ROW_COUNTS if m <= iteration.workspace.sizes.max_nodes + 1]
    is_slow = _is_slow(iteration)
    if is_slow:
        counts = counts[:: len(counts) - 1 or 1]  # an oracle: a line through two points will do
    drafter, positions = iteration.drafter, _num_positions(iteration)
    depth = min(drafter.max_depth, 4, positions) if drafter is not None else 0
    passes = [_verify_trial(iteration, host, m) for m in counts]
    room = min(positions, iteration.workspace.sizes.max_batched_tokens)
    num_read = min(2 if is_slow else READ_TOKENS, room)
    kinds = ((1, 1), (1, num_read), (depth, 1)) if depth else ()
    trees = [_draft_trial(iteration, host, layers, pending) for layers, pending in kinds]
    # As in decoding: a pass follows a pass like it, a tree follows a pass.
    turns = [(trial, trial) for trial in passes] + [(passes[0], trial) for trial in trees]
    table = iteration.workspace.memory.host(iteration.workspace.calibration)[0]
    first_table = table.copy()
    try:
        seconds = _fastest(turns, is_slow)
    finally:
        host.release(0)
        table[:] = first_table
    first, read, deep = seconds[len(counts) :] or (0.0, 0.0, 0.0)
    layer = max(deep - first, 0.0) / (depth - 1) if depth > 1 else first
    token = max(read - first, 0.0) / (num_read - 1) if num_read > 1 else 0.0
    return CostModel.from_samples(counts, seconds[: len(counts)], first, layer, token)


def verify_trials(iteration: Iteration, row_counts: Sequence[int]) -> list[Trial]:
    """Target passes over trees of so many rows, ready to be timed (benchmarks)."""
    host = HostView(iteration.workspace.state, iteration.workspace.memory)
    return [_verify_trial(iteration, host, m) for m in row_counts]


def _verify_trial(iteration: Iteration, host: HostView, num_rows: int) -> Trial:
    """From the trees to the commit, over a tree of `num_rows` rows."""
    iteration = _uncounted(iteration)
    # About as deep as trees of so many nodes are, because a row costs by the keys of its path that
    # it shares with no other; all below the root where there are no positions for that.
    depth, branching = num_rows.bit_length() - 1, 2
    if depth >= _num_positions(iteration):
        depth, branching = 1, num_rows - 1

    def reset() -> None:
        _reset(iteration, host, ROOT_AND_NODES if num_rows > 1 else ROOT_ONLY, depth)
        _set_tree(iteration, num_rows - 1, branching)

    describe = partial(iteration.describe_verify, variant=Variant(num_rows > 1))
    demand = Demand(num_keys=CONTEXT + 1, num_trees=int(num_rows > 1), num_nodes=num_rows - 1)
    return _trial(iteration, describe, reset, demand)


def _uncounted(iteration: Iteration) -> Iteration:
    """The same, with counters of its own for the children that are tested: of those of dummy trees
    none is accepted, which would teach an engine to draft nothing."""
    trial, verdict, memory = copy(iteration), iteration.verdict, iteration.workspace.memory
    trial.verdict = replace(
        verdict,
        tried=memory.zeros(*verdict.tried.shape, dtype=torch.int32),
        accepted=memory.zeros(*verdict.accepted.shape, dtype=torch.int32),
    )
    return trial


def _draft_trial(iteration: Iteration, host: HostView, layers: int, num_pending: int) -> Trial:
    """Growing a tree of so many layers: of a node each, as the adaptive trees of a machine on which
    layers are dear, or as wide as a static one is. A wide layer costs more, but then it also
    promises more.

    First children are believed in whatever the draft says of a dummy text: by its own estimates
    trees of a few nodes had no use for a later layer, which then seemed to cost nothing (a 68M
    draft: 0.13 ms instead of 1.1).

    Args:
        iteration: programs and buffers.
        host: slot 0's dummy sequence.
        layers: of the tree.
        num_pending: tokens that the draft has to read before, its root included.
    """
    drafter = iteration.drafter
    assert drafter is not None
    workspace, view = iteration.workspace, iteration.workspace.memory.host

    def reset() -> None:
        _reset(iteration, host, ROOT_AND_NODES, layers - 1)
        _miss(host, num_pending)
        host.depth_limits[0] = layers
        view(workspace.min_layer_gain)[0] = 0.0
        view(workspace.calibration)[0] = 1.0

    demand = Demand(
        num_keys=CONTEXT + 1,
        num_trees=1,
        num_nodes=workspace.sizes.max_nodes,
        num_missing=num_pending,
        depth=layers,
    )
    describe = partial(drafter.propose, variant=Variant(True))
    return _trial(iteration, describe, reset, demand)


def _trial(
    iteration: Iteration,
    describe: Callable[[Program], None],
    reset: Callable[[], None],
    demand: Demand,
) -> Trial:
    """A program timed from its second launch on: after the first one all workers are awake."""
    memory = iteration.workspace.memory
    program = iteration.empty_program(iteration.limits(demand))
    start, end = (memory.results(1, dtype=torch.int64) for _ in range(2))
    iteration.describe_pending(program)
    program.launch("timestamp", out_ns=start)
    describe(program)
    program.launch("timestamp", out_ns=end)
    return Trial(program, reset, memory.host(start), memory.host(end))


def _fastest(turns: list[tuple[Trial, Trial]], is_slow: bool) -> list[float]:
    """Shortest time in seconds of each turn's second trial, after its first.

    Other processes only ever add time, so the minimum is what the step itself takes. Trials take
    turns, so that a busy moment of the machine does not fall on one of them alone (in one turn of
    four replays it did: 12 rows of a 1.1B shape took 124 ms beside 78 for 8 rows, where 89 is
    right, and the adaptive budget kept off them). What comes before decides what the caches hold:
    right after a pass of 64 rows, one of a single row took twice its time; a layer of the bundled
    draft takes 16 us after itself and 26 to 40 after a pass of its target (Zen 4, 1 MB of L2).
    """
    fastest = [inf] * len(turns)
    least = 1 if is_slow else MIN_TURNS
    started = perf_counter()
    for number in range(MAX_TURNS):
        for i, (before, trial) in enumerate(turns):
            if not is_slow:
                before.run()
            fastest[i] = min(fastest[i], trial.run())
        if number + 1 >= least and perf_counter() - started > BUDGET_S:
            break
    return fastest


def _is_slow(iteration: Iteration) -> bool:
    """Whether steps are for checking and not for speed: in plain torch, or interpreted."""
    memory = iteration.workspace.memory
    is_interpreted = isinstance(memory, StagedMemory) and memory.device.type == "cpu"
    return iteration.backend == "reference" or is_interpreted


def _num_positions(iteration: Iteration) -> int:
    """Positions that target and draft know."""
    return len(iteration.weights.cos_sin)


def _reset(iteration: Iteration, host: HostView, wants_logits: int, depth: int) -> None:
    """A sequence in slot 0: CONTEXT cached tokens, or what leaves room for nodes of `depth`."""
    workspace = iteration.workspace
    workspace.memory.host(workspace.thresholds)[:] = 0.0
    workspace.memory.host(workspace.total_budget)[0] = workspace.sizes.max_nodes
    context = min(CONTEXT, _num_positions(iteration) - 1 - depth)
    host.history_lens[0] = context + 1
    host.computed_lens[0] = context
    host.draft_computed_lens[0] = context
    host.pending_lens[0] = host.draft_pending_lens[0] = 1
    host.wants_logits[0] = wants_logits
    host.draft_wants_logits[0] = ROOT_AND_NODES
    host.max_emit[0] = 1
    host.node_budgets[0] = host.depth_limits[0] = 1 << 20
    # Every logical block is physical block 0: there may be fewer blocks than a full context needs.
    host.set_blocks(0, [0] * host.block_tables.shape[1])


def _miss(host: HostView, num_pending: int) -> None:
    """Lets slot 0's draft have so many tokens to read, the last of its sequence."""
    host.draft_computed_lens[0] = host.history_lens[0] - num_pending
    host.draft_pending_lens[0] = num_pending


def _set_tree(iteration: Iteration, num_nodes: int, branching: int) -> None:
    """Puts a tree of dummy tokens into slot 0's draft tree: a heap whose root is node 0, of two
    children a node, or of all below the root."""
    tree = iteration.workspace.draft_tree
    tree.clear()
    index = torch.arange(1, num_nodes + 1, dtype=torch.int32)
    depth = (index + 1).float().log2().int() if branching == 2 else torch.ones_like(index)
    device = tree.tokens.device
    tree.tokens[0, 1 : num_nodes + 1] = (index % 2).to(device)
    tree.parents[0, 1 : num_nodes + 1] = ((index - 1) // branching).to(device)
    tree.depths[0, 1 : num_nodes + 1] = depth.to(device)
    tree.ranks[0, 1 : num_nodes + 1] = 0
    tree.values[0, 1 : num_nodes + 1] = 1.0
    tree.draft_slots[0, 1 : num_nodes + 1] = -1
    tree.num_nodes[0] = num_nodes
