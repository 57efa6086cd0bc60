"""Every drafter, policy, verifier and controller by name: the one file that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, eq=False)
class Ingredients:
    """What a drafter may be made of.

    Args:
        weights: of the draft model; None where the method needs none.
        policy: the method's; None where it has none.
        num_threads: CPU threads.
    """

    speculation: SpeculationConfig
    workspace: Workspace
    weights: ModelWeights | None
    policy: TreePolicy | None
    num_threads: int


def _ngram_drafter(given: Ingredients) -> Drafter:
    speculation = given.speculation
    return NgramDrafter(
        given.workspace,
        speculation.min_ngram,
        speculation.max_ngram,
        calibrate=speculation.calibrate,
    )


def _draft_model_drafter(given: Ingredients) -> Drafter:
    speculation, workspace, weights = given.speculation, given.workspace, given.weights
    assert weights is not None and given.policy is not None, speculation
    sizes, memory = workspace.sizes, workspace.memory
    return DraftModelDrafter(
        weights,
        KVCache(weights.config, sizes.num_blocks, sizes.block_size, weights.dtype, memory),
        given.policy,
        workspace,
        is_sampled=speculation.draws_drafts,
        temperature=_draft_temperature(speculation, workspace),
        calibrate=speculation.calibrate,
        num_threads=given.num_threads,
    )


def _coupled_verifier(workspace: Workspace, drafter: Drafter | None) -> Verifier:
    return CoupledVerifier(workspace)


def _rejection_verifier(workspace: Workspace, drafter: Drafter | None) -> Verifier:
    return RejectionVerifier(workspace, None if drafter is None else drafter.proposals)


# A line per kind. Every name stands in METHODS or VERIFIERS of `core/config.py`, too.
POLICIES: dict[str, Callable[[SpeculationConfig], TreePolicy]] = {
    "dyspec": DySpecPolicy.from_config,
    "chain": StaticPolicy.from_config,
    "kary": StaticPolicy.from_config,
    "sampled": StaticPolicy.from_config,
}
DRAFTERS: dict[str, Callable[[Ingredients], Drafter]] = {
    **dict.fromkeys(POLICIES, _draft_model_drafter),
    "ngram": _ngram_drafter,
}
VERIFIERS: dict[str, Callable[[Workspace, Drafter | None], Verifier]] = {
    "coupled": _coupled_verifier,
    "rejection": _rejection_verifier,
}


def make_policy(speculation: SpeculationConfig | None) -> TreePolicy | None:
    if speculation is None or speculation.method not in POLICIES:
        return None
    return POLICIES[speculation.method](speculation)


def make_drafter(
    speculation: SpeculationConfig | None,
    policy: TreePolicy | None,
    workspace: Workspace,
    weights: ModelWeights | None,
    threads: int,
) -> Drafter | None:
    if speculation is None:
        return None
    given = Ingredients(speculation, workspace, weights, policy, threads)
    return DRAFTERS[speculation.method](given)


def _draft_temperature(speculation: SpeculationConfig, workspace: Workspace) -> torch.Tensor:
    temperature = speculation.draft_temperature
    if temperature is None:
        return workspace.state.temperature
    shape = (workspace.sizes.max_num_seqs,)
    return workspace.memory.full(shape, min(temperature, FLOAT32_MAX), torch.float32)


def make_verifier(
    speculation: SpeculationConfig | None, workspace: Workspace, drafter: Drafter | None
) -> Verifier:
    name = "coupled" if speculation is None else speculation.verifier
    return VERIFIERS[name](workspace, drafter)


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
    if widths:
        return AdaptiveController(ask_costs(), StaticSize(widths, limit), limit, prices_nodes=False)
    size = GrowingSize(drafter.max_depth, nodes, has_layers=speculation.needs_draft_model)
    return AdaptiveController(ask_costs(), size, limit)
