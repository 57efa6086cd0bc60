"""Every drafter, policy, verifier and controller by name: the one file that knows them all."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sdengine.cache.kv_cache import KVCache
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.base import BudgetController
from sdengine.controllers.fixed import FixedController
from sdengine.controllers.tree_size import GrowingSize, StaticSize
from sdengine.core.config import SpeculationConfig
from sdengine.core.cost_model import CostModel
from sdengine.core.growth import TreePolicy
from sdengine.drafters.draft_model import DraftModelDrafter
from sdengine.drafters.ngram import NgramDrafter
from sdengine.policies.dyspec import DySpecPolicy
from sdengine.policies.static import StaticPolicy
from sdengine.runner.batch_state import FLOAT32_MAX
from sdengine.runner.drafter import Drafter
from sdengine.runner.verifier import Verifier
from sdengine.runner.weights import ModelWeights
from sdengine.runner.workspace import Workspace
from sdengine.verifiers.coupled import CoupledVerifier
from sdengine.verifiers.rejection import RejectionVerifier


def make_policy(speculation: SpeculationConfig | None) -> TreePolicy | None:
    if speculation is None or speculation.method == "ngram":
        return None
    if speculation.method == "dyspec":
        return DySpecPolicy.from_config(speculation)
    return StaticPolicy.from_config(speculation)


def make_drafter(
    speculation: SpeculationConfig | None,
    policy: TreePolicy | None,
    workspace: Workspace,
    weights: ModelWeights | None,
    threads: int,
) -> Drafter | None:
    if speculation is None:
        return None
    if policy is None:
        return NgramDrafter(
            workspace,
            speculation.min_ngram,
            speculation.max_ngram,
            calibrate=speculation.calibrate,
        )
    assert weights is not None
    sizes, memory = workspace.sizes, workspace.memory
    return DraftModelDrafter(
        weights,
        KVCache(weights.config, sizes.num_blocks, sizes.block_size, weights.dtype, memory),
        policy,
        workspace,
        is_sampled=speculation.verifier == "rejection",
        temperature=_draft_temperature(speculation, workspace),
        calibrate=speculation.calibrate,
        num_threads=threads,
    )


def _draft_temperature(speculation: SpeculationConfig, workspace: Workspace) -> torch.Tensor:
    temperature = speculation.draft_temperature
    if temperature is None:
        return workspace.state.temperature
    shape = (workspace.sizes.max_num_seqs,)
    return workspace.memory.full(shape, min(temperature, FLOAT32_MAX), torch.float32)


def make_verifier(
    speculation: SpeculationConfig | None, workspace: Workspace, drafter: Drafter | None
) -> Verifier:
    if speculation is not None and speculation.verifier == "rejection":
        return RejectionVerifier(workspace, drafter.proposals if drafter is not None else None)
    return CoupledVerifier(workspace)


def make_controller(
    speculation: SpeculationConfig | None,
    drafter: Drafter | None,
    ask_costs: Callable[[], CostModel],
) -> BudgetController:
    if speculation is None or drafter is None:
        return FixedController(0, 0)
    nodes, limit = speculation.max_nodes, speculation.max_batch_nodes
    if not speculation.adaptive:
        return FixedController(drafter.max_depth, nodes, limit)
    widths = speculation.level_widths
    size = StaticSize(widths, limit) if widths else GrowingSize(drafter.max_depth, nodes)
    return AdaptiveController(ask_costs(), size, limit, prices_nodes=not widths)
