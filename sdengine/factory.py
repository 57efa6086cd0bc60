"""Builds an engine's parts from its configuration: the one place that knows every kind by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sdengine.cache.block_pool import BlockPool
from sdengine.cache.kv_cache import KVCache
from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.base import BudgetController
from sdengine.controllers.fixed import FixedController
from sdengine.core.config import EngineConfig, SpeculationConfig
from sdengine.core.env import read_environment
from sdengine.core.growth import TreePolicy
from sdengine.core.request import RequestLimits
from sdengine.core.sampling_params import SamplingParams
from sdengine.drafters.draft_model import DraftModelDrafter, tree_room
from sdengine.drafters.ngram import NgramDrafter
from sdengine.errors import ConfigError
from sdengine.kernels.calibration import identity_table
from sdengine.kernels.device_memory import Memory, StagedMemory
from sdengine.kernels.program import make_pool, num_threads
from sdengine.model.checkpoint import Checkpoint, open_checkpoint
from sdengine.model.config import ModelConfig
from sdengine.model.generation_config import default_sampling_params, load_eos_token_ids
from sdengine.model.registry import resolve_model
from sdengine.model.tokenizer import Tokenizer, load_tokenizer
from sdengine.policies.dyspec import DySpecPolicy
from sdengine.policies.static import StaticPolicy
from sdengine.runner.costs import measure_costs
from sdengine.runner.device_fit import device_needs, free_bytes
from sdengine.runner.drafter import Drafter
from sdengine.runner.iteration import Iteration
from sdengine.runner.memory import fitting_blocks, require_buffers
from sdengine.runner.penalties import MAX_BIASES, MAX_MASKED
from sdengine.runner.placement import Placement, choose_placement
from sdengine.runner.runner import Runner
from sdengine.runner.verifier import Verifier
from sdengine.runner.weights import ModelWeights, load_weights
from sdengine.runner.workspace import Sizes, Workspace
from sdengine.scheduler.scheduler import Scheduler
from sdengine.verifiers.coupled import CoupledVerifier
from sdengine.verifiers.rejection import RejectionVerifier

DEVICE_STOP_TOKENS = 8
"""Stop tokens per sequence below which the device drafts nothing; more are only cut by the host."""
PROPOSAL_SUPPORT = 64
"""Likeliest tokens that sampled drafts are drawn from (renormalised): the rejection verifier then
reads 64 probabilities per node instead of a whole vocabulary, and stays exact for any support."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an `Engine` is made of."""

    runner: Runner
    scheduler: Scheduler
    controller: BudgetController
    tokenizer: Tokenizer | None
    default_params: SamplingParams
    limits: RequestLimits
    target_path: Path


MakeDrafter = Callable[[Workspace], Drafter]


def build_engine_parts(
    config: EngineConfig, make_drafter: MakeDrafter | None = None
) -> EngineParts:
    """Opens checkpoints, loads weights, allocates caches and buffers.

    Args:
        config: the settings.
        make_drafter: makes a drafter of the caller's own, in place of that of method "ngram".

    Raises:
        ConfigError, CheckpointError, BackendUnavailable, CacheFull: as `Engine`.
    """
    environment = read_environment()
    placement = choose_placement(config, environment.backend)
    memory = placement.memory
    paths = resolve_model(config.model, config.draft, bundled_dir=environment.bundled_dir)
    speculation = config.speculation_for(paths.draft is not None)
    target = open_checkpoint(paths.target)
    _check_own_drafter(make_drafter, speculation)
    uses_draft = speculation is not None and speculation.needs_draft_model
    draft = open_checkpoint(paths.draft) if uses_draft and paths.draft is not None else None
    tokenizer = _load_tokenizers(paths.target, paths.draft if draft is not None else None)
    max_model_len = _max_model_len(config, target.config, draft.config if draft else None)
    _check_windows(speculation, target.config, draft.config if draft else None)
    dtype = _choose_dtype(config, target.config, placement)
    threads = config.num_threads or environment.num_threads or _num_cores()
    pool = make_pool(threads) if placement.backend == "cpu" else None
    layout = placement.layout(dtype, pool)

    policy = _make_policy(speculation)
    sizes = _sizes(config, speculation, policy, target, draft, max_model_len)
    checkpoints = [target] if draft is None else [target, draft]
    blocks = _num_blocks(config, sizes, checkpoints, dtype, memory)
    sizes = replace(sizes, num_blocks=blocks)
    weights = load_weights(target, dtype, max_model_len, layout)
    workspace = Workspace.allocate(sizes, identity_table(), memory)
    if make_drafter is not None:
        drafter: Drafter | None = make_drafter(workspace)
    else:
        draft_weights = None
        if draft is not None:
            draft_weights = load_weights(draft, dtype, max_model_len, layout, sizes.vocab_size)
        drafter = _make_drafter(speculation, policy, workspace, draft_weights, num_threads(pool))
    cache = KVCache(target.config, sizes.num_blocks, sizes.block_size, dtype, memory)
    verifier = _make_verifier(speculation, workspace, drafter)
    iteration = Iteration(
        placement.backend,
        pool,
        workspace,
        weights,
        cache,
        drafter,
        verifier,
        placement.branches,
    )
    # Before the runner, which takes the verifier's counts from where the measurement leaves them.
    controller = _make_controller(speculation, iteration, environment.cache_dir)
    runner = Runner(iteration, pool)
    scheduler = Scheduler(
        BlockPool(sizes.num_blocks, sizes.block_size, config.enable_prefix_caching),
        config.max_num_seqs,
        config.max_num_batched_tokens,
        drafter.tree_room if drafter is not None else 0,
    )
    iteration.describe_usual()
    eos = frozenset(load_eos_token_ids(paths.target, target.config))
    limits = RequestLimits(
        vocab_size=target.config.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=eos,
        has_speculation=speculation is not None,
        max_biases=MAX_BIASES,
        max_masked=MAX_MASKED,
    )
    defaults = default_sampling_params(paths.target)
    return EngineParts(runner, scheduler, controller, tokenizer, defaults, limits, paths.target)


def _choose_dtype(config: EngineConfig, model: ModelConfig, placement: Placement) -> torch.dtype:
    """ "auto": bfloat16, unless the checkpoint itself is float32 or the kernels are interpreted."""
    name = config.dtype
    if name == "auto":
        is_f32 = model.dtype == "float32" or placement.is_interpreted
        name = "float32" if is_f32 else "bfloat16"
    if name == "float16":
        raise ConfigError.from_parts(
            'dtype "float32" or "bfloat16", which the kernels have',
            '"float16"',
            'pass dtype="bfloat16"',
        )
    if name == "bfloat16" and placement.is_interpreted:
        raise ConfigError.from_parts(
            'dtype "float32" in Triton\'s interpreter, whose arithmetic on bfloat16 is wrong',
            '"bfloat16"',
            'pass dtype="float32"',
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load_tokenizers(target: Any, draft: Any) -> Tokenizer | None:
    if not (target / "tokenizer.json").is_file() and not list(target.glob("tokenizer*")):
        return None
    tokenizer = load_tokenizer(target)
    if draft is not None and (draft / "tokenizer.json").is_file():
        tokenizer.require_same(load_tokenizer(draft))
    return tokenizer


def _max_model_len(config: EngineConfig, target: ModelConfig, draft: ModelConfig | None) -> int:
    models = [target] if draft is None else [target, draft]
    longest = min(model.longest_context for model in models)
    if config.max_model_len is None:
        return min(model.default_context for model in models)
    if config.max_model_len > longest:
        raise ConfigError.from_parts(
            f"max_model_len of at most {longest}, which the checkpoints were made for",
            str(config.max_model_len),
        )
    return config.max_model_len


def _check_windows(
    speculation: SpeculationConfig | None, target: ModelConfig, draft: ModelConfig | None
) -> None:
    """A tree must fit into every sliding window: its ancestors are found by mask, not position."""
    windows = [w for m in (target, draft) if m is not None for w in m.layer_windows if w]
    if speculation is not None and windows and speculation.max_depth >= min(windows):
        raise ConfigError.from_parts(
            f"max_depth below the sliding window of {min(windows)} tokens",
            str(speculation.max_depth),
        )


def _check_own_drafter(
    make_drafter: MakeDrafter | None, speculation: SpeculationConfig | None
) -> None:
    """A drafter from outside gets the buffers of the one it replaces."""
    method = None if speculation is None else speculation.method
    if make_drafter is not None and method != "ngram":
        raise ConfigError.from_parts(
            'speculation method "ngram" together with make_drafter, which takes its place',
            repr(method),
            'pass speculation=SpeculationConfig(method="ngram", ...)',
        )


def _make_policy(speculation: SpeculationConfig | None) -> TreePolicy | None:
    if speculation is None or speculation.method == "ngram":
        return None
    if speculation.method == "dyspec":
        return DySpecPolicy.from_config(speculation)
    return StaticPolicy.from_config(speculation)


def _sizes(
    config: EngineConfig,
    speculation: SpeculationConfig | None,
    policy: TreePolicy | None,
    target: Checkpoint,
    draft: Checkpoint | None,
    max_model_len: int,
) -> Sizes:
    """Capacities, but for the number of KV blocks, which depends on what all others take."""
    nodes = speculation.max_nodes if speculation else 0
    depth = speculation.max_depth if speculation else 0
    candidates, width = (speculation.max_children if speculation else 0), 0
    if policy is not None and speculation is not None:
        if speculation.level_widths:
            depth = len(speculation.level_widths)
        candidates = policy.num_candidates
        if speculation.verifier == "rejection":
            candidates = min(PROPOSAL_SUPPORT, target.config.vocab_size)
        width = min(max(policy.grow(layer).max_width for layer in range(depth)), nodes)
    room = tree_room(nodes, depth, width) if speculation else 0
    max_blocks = -(-(max_model_len + room) // config.block_size)
    return Sizes(
        max_num_seqs=config.max_num_seqs,
        max_batched_tokens=config.max_num_batched_tokens,
        max_history=max_model_len + depth + 1,
        block_size=config.block_size,
        num_blocks=0,
        max_blocks=max_blocks,
        vocab_size=target.config.vocab_size,
        max_nodes=nodes,
        max_depth=depth,
        num_candidates=candidates,
        max_width=width,
        num_stop_tokens=DEVICE_STOP_TOKENS,
    )


def _num_blocks(
    config: EngineConfig,
    sizes: Sizes,
    checkpoints: list[Checkpoint],
    dtype: torch.dtype,
    memory: Memory,
) -> int:
    """KV blocks that fit, or that were asked for."""
    wanted, asked = config.max_num_seqs * sizes.max_blocks, config.num_kv_blocks
    if isinstance(memory, StagedMemory):
        needs = device_needs(sizes, checkpoints, dtype)
        return needs.fitting_blocks(free_bytes(memory.device), wanted, asked)
    models = [checkpoint.config for checkpoint in checkpoints]
    num_blocks = fitting_blocks(models, config.block_size, dtype, wanted, asked)
    require_buffers(sizes, models)
    return num_blocks


def _make_drafter(
    speculation: SpeculationConfig | None,
    policy: TreePolicy | None,
    workspace: Workspace,
    weights: ModelWeights | None,
    threads: int,
) -> Drafter | None:
    if speculation is None:
        return None
    if policy is None:
        return NgramDrafter(workspace, speculation.min_ngram, speculation.max_ngram)
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
    return workspace.memory.full(shape, temperature, torch.float32)


def _make_verifier(
    speculation: SpeculationConfig | None, workspace: Workspace, drafter: Drafter | None
) -> Verifier:
    if speculation is not None and speculation.verifier == "rejection":
        return RejectionVerifier(workspace, drafter.proposals if drafter is not None else None)
    return CoupledVerifier(workspace)


def _make_controller(
    speculation: SpeculationConfig | None, iteration: Iteration, cache_dir: Path
) -> BudgetController:
    drafter = iteration.drafter
    if speculation is None or drafter is None:
        return FixedController(0, 0)
    nodes, limit = speculation.max_nodes, speculation.max_batch_nodes
    if not speculation.adaptive:
        return FixedController(drafter.max_depth, nodes, limit)
    costs = measure_costs(iteration, cache_dir)
    is_dynamic = speculation.method in ("dyspec", "ngram")
    return AdaptiveController(costs, drafter.max_depth, nodes, limit, prices_nodes=is_dynamic)
