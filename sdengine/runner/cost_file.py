"""What steps of large models cost on this machine, measured once and kept.

A file of the user's cache directory, keyed by everything that costs depend on: large models take
seconds per measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, fields
from pathlib import Path

import torch

from sdengine import kernels
from sdengine.core.cost_model import CostModel, can_be_measured
from sdengine.kernels.cpu_library import load_cpu
from sdengine.kernels.programs.program import num_threads
from sdengine.runner.costs import measure_costs
from sdengine.runner.iteration import Iteration

KERNEL_FILES = (".py", ".so", ".pyd")
LARGE_MODEL_BYTES = 256 << 20
"""Larger models are kept in the file; smaller ones are measured in a fraction of a second and
measured anew at every start, which is the truth about the machine as it is today."""


def known_costs(iteration: Iteration, cache_dir: Path) -> CostModel:
    """Cost model of an engine; from the file when it was measured before.

    Args:
        iteration: as for `measure_costs`.
        cache_dir: directory of the file, usually `Environment.cache_dir`.
    """
    if iteration.weights.nbytes <= LARGE_MODEL_BYTES:
        return measure_costs(iteration)
    path = cache_dir / "costs.json"
    key = _key(iteration)
    known = _read(path)
    found = _entry(known, key)
    if found is not None:
        return found
    costs = measure_costs(iteration)
    _write(path, {**known, key: asdict(costs)})
    return costs


def _key(iteration: Iteration) -> str:
    drafter = iteration.drafter
    parts = [
        iteration.weights.config,
        iteration.weights.dtype,
        type(drafter).__name__,
        None if drafter is None else drafter.cost_key,
        iteration.workspace.sizes,
        num_threads(iteration.pool),
        iteration.backend,
        iteration.skips_layers,
        _instruction_set(iteration.backend),
        platform.node(),
        _processor(iteration.workspace.memory.device),
        torch.__version__,
        _kernel_files(),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _instruction_set(backend: str) -> str:
    """What the kernels of a CPU were asked to use, or choose."""
    return str(load_cpu().selected_isa()) if backend == "cpu" else ""


def _kernel_files() -> list[tuple[str, int, int]]:
    """Sources and libraries of the kernels as they are installed: faster ones have other costs."""
    found = [
        path for path in Path(kernels.__file__).parent.rglob("*") if path.suffix in KERNEL_FILES
    ]
    return [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in sorted(found)]


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return "".join(line for line in file if line.startswith(("model name", "flags")))[:4096]
    except OSError:
        return platform.processor()


def _read(path: Path) -> dict[str, dict[str, object]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _entry(known: dict[str, dict[str, object]], key: str) -> CostModel | None:
    """A kept cost model; None for none, and for one that is written otherwise than today's."""
    try:
        parts = {k: tuple(v) if isinstance(v, list) else v for k, v in known[key].items()}
        if parts.keys() != {field.name for field in fields(CostModel)}:
            return None
        costs = CostModel(**parts)  # type: ignore[arg-type]
        return costs if _is_possible(costs) else None
    except (KeyError, AttributeError, TypeError):
        return None


def _is_possible(costs: CostModel) -> bool:
    """Whether a measurement could have given these."""
    draft = (costs.draft_first_s, costs.draft_layer_s, costs.draft_read_s)
    is_rising = list(costs.verify_s) == sorted(costs.verify_s)
    return is_rising and can_be_measured(costs.rows, costs.verify_s, draft)


def _write(path: Path, known: dict[str, dict[str, object]]) -> None:
    """Best effort: without a cache file the next start measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(f".{os.getpid()}.tmp")
        staged.write_text(json.dumps(known), encoding="utf-8")
        os.replace(staged, path)
    except OSError:
        pass
