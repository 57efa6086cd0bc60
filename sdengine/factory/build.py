"""Builds an engine's parts from its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sdengine.cache.block_pool import BlockPool
from sdengine.cache.kv_cache import KVCache
from sdengine.controllers.base import BudgetController
from sdengine.core.config import EngineConfig, SpeculationConfig
from sdengine.core.env import choose_num_threads, read_environment
from sdengine.core.request import RequestLimits
from sdengine.core.sampling_params import SamplingParams
from sdengine.errors import ConfigError
from sdengine.factory import kinds
from sdengine.factory.shared_weights import SharedWeights
from sdengine.factory.sizes import (
    check_heads,
    check_windows,
    choose_dtype,
    choose_max_model_len,
    choose_num_blocks,
    choose_sizes,
)
from sdengine.kernels.calibration import identity_table
from sdengine.kernels.programs.program import make_pool, num_threads
from sdengine.model.checkpoint import Checkpoint, open_checkpoint
from sdengine.model.generation_config import default_sampling_params, load_eos_token_ids
from sdengine.model.registry import has_tokenizer, resolve_model
from sdengine.model.tokenizer import Tokenizer, load_tokenizer
from sdengine.runner.cost_file import known_costs
from sdengine.runner.drafter import Drafter
from sdengine.runner.iteration import Iteration
from sdengine.runner.penalties import MAX_BIASES, MAX_MASKED
from sdengine.runner.placement import Placement, choose_placement
from sdengine.runner.runner import Runner
from sdengine.runner.workspace import Sizes, Workspace
from sdengine.scheduler.scheduler import Scheduler

FIRST_PROCESS = os.getpid()
"""That imported this."""


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


@dataclass(frozen=True, slots=True)
class Models:
    """Opened checkpoints, no weight read yet, and what they have in common.

    Args:
        max_model_len: tokens that the target and the configuration allow.
    """

    target_path: Path
    target: Checkpoint
    draft: Checkpoint | None
    tokenizer: Tokenizer | None
    speculation: SpeculationConfig | None
    max_model_len: int

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [self.target] if self.draft is None else [self.target, self.draft]


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
    _leave_threads_of_a_parent()
    environment = read_environment()
    placement = choose_placement(config, environment.backend)
    models = _open_models(config, environment.bundled_dir)
    speculation = models.speculation
    _check_own_drafter(make_drafter, speculation)
    threads = choose_num_threads(config.num_threads, environment)
    iteration = _build_iteration(config, models, placement, threads, make_drafter)
    controller = kinds.make_controller(
        speculation,
        iteration.drafter,
        lambda: known_costs(iteration, environment.cache_dir),
    )
    defaults = default_sampling_params(models.target_path)
    iteration.describe_usual()  # of requests with parameters of their own
    iteration.describe_usual(defaults.changes_logits, defaults.has_filters)
    calibrates = speculation is not None and speculation.calibrate
    runner = Runner(iteration, iteration.pool, calibrates=calibrates)
    sizes, drafter = iteration.workspace.sizes, iteration.drafter
    scheduler = Scheduler(
        BlockPool(sizes.num_blocks, sizes.block_size, config.enable_prefix_caching),
        config.max_num_seqs,
        config.max_num_batched_tokens,
        drafter.tree_room if drafter is not None else 0,
    )
    limits = RequestLimits(
        vocab_size=sizes.vocab_size,
        max_model_len=models.max_model_len,
        eos_token_ids=frozenset(load_eos_token_ids(models.target_path, models.target.config)),
        has_speculation=speculation is not None,
        max_biases=MAX_BIASES,
        max_masked=MAX_MASKED,
        can_be_longer=models.max_model_len < models.target.config.longest_context,
    )
    return EngineParts(
        runner, scheduler, controller, models.tokenizer, defaults, limits, models.target_path
    )


def _leave_threads_of_a_parent() -> None:
    """Lets torch work alone in a process that was forked from one with torch in it: the threads
    that it would wait for were not forked along, and its first parallel loop would never end."""
    if os.getpid() != FIRST_PROCESS:
        torch.set_num_threads(1)


def _open_models(config: EngineConfig, bundled_dir: Path | None) -> Models:
    paths = resolve_model(config.model, config.draft, bundled_dir=bundled_dir)
    speculation = config.speculation_for(paths.draft is not None)
    target = open_checkpoint(paths.target)
    uses_draft = speculation is not None and speculation.needs_draft_model
    draft = open_checkpoint(paths.draft) if uses_draft and paths.draft is not None else None
    tokenizer = _load_tokenizers(paths.target, paths.draft if draft is not None else None)
    draft_config = draft.config if draft is not None else None
    max_model_len = choose_max_model_len(config, target.config)
    check_windows(speculation, target.config, draft_config)
    models = Models(paths.target, target, draft, tokenizer, speculation, max_model_len)
    for checkpoint in models.checkpoints:
        check_heads(checkpoint)
    return models


def _build_iteration(
    config: EngineConfig,
    models: Models,
    placement: Placement,
    threads: int,
    make_drafter: MakeDrafter | None,
) -> Iteration:
    """Weights, caches and buffers, and the kinds that the configuration names."""
    memory, speculation = placement.memory, models.speculation
    dtype = choose_dtype(config, models.target.dtype_name, placement)
    pool = make_pool(threads) if placement.backend == "cpu" else None
    policy = kinds.make_policy(speculation)
    vocab_size, max_model_len = models.target.config.vocab_size, models.max_model_len
    sizes = choose_sizes(config, speculation, policy, vocab_size, max_model_len)
    shared = SharedWeights(placement, dtype, max_model_len, vocab_size, pool)
    unread = [x for x in models.checkpoints if not shared.is_loaded(x)]
    blocks = choose_num_blocks(config, sizes, models.checkpoints, unread, dtype, memory)
    sizes = replace(sizes, num_blocks=blocks)
    weights = shared.load(models.target)
    workspace = Workspace.allocate(sizes, identity_table(), memory)
    if make_drafter is not None:
        drafter: Drafter | None = make_drafter(workspace)
        _check_capacities(drafter, workspace.sizes, max_model_len)
    else:
        draft_weights = shared.load(models.draft) if models.draft is not None else None
        drafter = kinds.make_drafter(
            speculation, policy, workspace, draft_weights, num_threads(pool)
        )
    return Iteration(
        placement.backend,
        pool,
        workspace,
        weights,
        KVCache(models.target.config, sizes.num_blocks, sizes.block_size, dtype, memory),
        drafter,
        kinds.make_verifier(speculation, workspace, drafter),
        placement.branches,
    )


def _load_tokenizers(target: Path, draft: Path | None) -> Tokenizer | None:
    if not has_tokenizer(target):
        return None
    tokenizer = load_tokenizer(target)
    if draft is not None and (draft / "tokenizer.json").is_file():
        tokenizer.require_same(load_tokenizer(draft))
    return tokenizer


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


def _check_capacities(drafter: Drafter, sizes: Sizes, max_model_len: int) -> None:
    """One from outside may ask for more than the buffers that it was given can hold."""
    room = sizes.max_blocks * sizes.block_size - max_model_len
    for name, most in (("max_depth", sizes.max_depth), ("tree_room", room)):
        value = getattr(drafter, name)
        if value > most:
            raise ConfigError.from_parts(
                f"a drafter's {name} of at most {most}",
                str(value),
                "raise max_nodes or max_depth of the SpeculationConfig",
            )
