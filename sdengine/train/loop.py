"""One training loop: schedule, clipping, log, evaluation, checkpoints, control while running.

Promises: a run that was interrupted and resumed makes bit for bit the steps of an uninterrupted
one (same machine, same thread count); a checkpoint on disk is always complete (written beside
and renamed); the log is JSON lines.  Knows nothing of models and data: those come as an
`Objective`.

A running training listens to its directory and to signals:

    touch RUN/COOLDOWN     start the cooldown at the next step (also SIGUSR1); a number written
                           into the file is its length in steps, and a number given during a
                           cooldown is what is left of it: the slope changes, the rate does not jump
    touch RUN/CHECKPOINT   write a checkpoint at the next step
    SIGTERM or SIGINT      write a checkpoint and leave; the same command resumes
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from sdengine.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Length of a run and its rhythms.

    Attributes:
        steps: optimiser steps if nobody asks for an earlier cooldown.
        warmup_steps: linear rise from 0.
        cooldown_steps: linear fall to 0 at the end.
        clip_norm: gradient norm per module.
        eval_every: steps between evaluations.
        checkpoint_seconds: wall-clock seconds between checkpoints.
        log_every: steps between log lines.
    """

    steps: int
    warmup_steps: int
    cooldown_steps: int
    clip_norm: float = 1.0
    eval_every: int = 100
    checkpoint_seconds: float = 120.0
    log_every: int = 10


@dataclass(slots=True)
class LoopState:
    """What a checkpoint must know beside the weights."""

    step: int = 0
    cooldown_start: int | None = None
    cooldown_steps: int | None = None
    cooldown_scale: float = 1.0
    seconds: float = 0.0


class Objective(Protocol):
    """What is trained and how a step's gradient comes about."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def accumulate(self, step: int, remaining: float) -> dict[str, float]:
        """Set the gradients of step `step`; returns figures for the log, `loss` among them.

        `remaining` is the factor of the cooldown: 1 before it, falling to 0 at its end.
        """

    def evaluate(self) -> dict[str, float]:
        """Held-out figures."""


def cooldown_length(state: LoopState, config: LoopConfig) -> int:
    """Steps of the cooldown, as asked for while running or as configured; at least 1."""
    return max(1, config.cooldown_steps if state.cooldown_steps is None else state.cooldown_steps)


def cooldown_remaining(step: int, state: LoopState, config: LoopConfig) -> float:
    """Linear fall of the cooldown at `step`: 1 before it, above 0 at its last step."""
    if state.cooldown_start is None or step < state.cooldown_start:
        return 1.0
    done = (step - state.cooldown_start) / cooldown_length(state, config)
    return state.cooldown_scale * (1.0 - done)


def learning_rate_scale(step: int, state: LoopState, config: LoopConfig) -> float:
    """Warm-up, stable, decay: the factor on the peak learning rate at `step`, in (0, 1]."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * cooldown_remaining(step, state, config)


def last_step(state: LoopState, config: LoopConfig) -> int:
    """The number of steps this run will have made when it ends."""
    if state.cooldown_start is None:
        return config.steps
    return state.cooldown_start + cooldown_length(state, config)


class Control:
    """Requests to a running training, by signal or by a file in its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.must_stop = False
        self.must_cool = False

    def take(self, name: str) -> str | None:
        """Content of the file `name`, which is removed; None if there is none."""
        path = self.directory / name
        if not path.exists():
            return None
        content = path.read_text(encoding="utf-8").strip()
        path.unlink()
        return content

    def update_cooldown(self, state: LoopState, config: LoopConfig) -> None:
        """Start the cooldown in `state` if it was asked for or is due, or change its slope."""
        asked = self.take("COOLDOWN")
        steps = int(asked) if asked and asked.isdigit() else None
        is_due = state.step >= config.steps - config.cooldown_steps
        if state.cooldown_start is None and (asked is not None or self.must_cool or is_due):
            state.cooldown_start, state.cooldown_steps = state.step, steps
        elif state.cooldown_start is not None and steps is not None:
            state.cooldown_scale = cooldown_remaining(state.step, state, config)
            state.cooldown_start, state.cooldown_steps = state.step, steps

    @contextmanager
    def listening(self) -> Iterator[Control]:
        """Handle SIGTERM, SIGINT and SIGUSR1 inside the block; earlier handlers come back."""

        def stop(*_: object) -> None:
            self.must_stop = True

        def cool(*_: object) -> None:
            self.must_cool = True

        wanted = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGUSR1: cool}
        previous = {number: signal.signal(number, handler) for number, handler in wanted.items()}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def save_checkpoint(path: Path, objective: Objective, state: LoopState) -> None:
    """Write weights, optimiser states and the loop's state; atomic."""
    payload = {
        "modules": {name: module.state_dict() for name, module in objective.modules.items()},
        "optimizers": {name: opt.state_dict() for name, opt in objective.optimizers.items()},
        "loop": asdict(state),
    }
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote: "modules", "optimizers" and "loop".

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:  # torch has no class of its own
        raise CheckpointError.from_parts(
            f"a checkpoint in {path}", f"a damaged file ({type(error).__name__})", "remove it"
        ) from error
    return payload


def load_checkpoint(path: Path, objective: Objective) -> LoopState:
    """Restore `objective` in place from a file of `save_checkpoint`; returns the loop's state.

    Raises:
        CheckpointError: the file is damaged.
    """
    payload = read_checkpoint(path)
    for name, module in objective.modules.items():
        module.load_state_dict(payload["modules"][name])
    for name, optimizer in objective.optimizers.items():
        optimizer.load_state_dict(payload["optimizers"][name])
    return LoopState(**payload["loop"])


def append_log(path: Path, record: dict[str, object]) -> None:
    """Add one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _optimiser_step(objective: Objective, state: LoopState, config: LoopConfig) -> dict[str, float]:
    """One step; returns the figures of the objective and the gradient norms."""
    remaining = cooldown_remaining(state.step, state, config)
    figures = objective.accumulate(state.step, remaining)
    for name, module in objective.modules.items():
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        figures[f"{name}_grad_norm"] = float(norm)
    for optimizer in objective.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * learning_rate_scale(state.step, state, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return figures


def _progress() -> Progress:
    """A bar on a terminal, nothing in a pipe."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[loss]}"),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
    )


def train(name: str, objective: Objective, config: LoopConfig, directory: Path) -> LoopState:
    """Run, or resume, the stage `name` until its last step or until told to stop.

    Args:
        name: of the stage; its files are `<name>.pt` and `<name>.jsonl` in `directory`.
        objective: trained in place.
        config: length and rhythm.
        directory: exists; also the place of the control files.

    Returns:
        The state reached; `state.step < last_step(state, config)` means it was told to stop.
    """
    checkpoint, log = directory / f"{name}.pt", directory / f"{name}.jsonl"
    state = load_checkpoint(checkpoint, objective) if checkpoint.exists() else LoopState()
    saved_at = clock = time.monotonic()
    control = Control(directory)
    with control.listening(), _progress() as progress:
        task = progress.add_task(name, total=last_step(state, config), loss="")
        while state.step < last_step(state, config) and not control.must_stop:
            control.update_cooldown(state, config)
            figures = _optimiser_step(objective, state, config)
            state.step += 1
            state.seconds += time.monotonic() - clock
            clock = time.monotonic()
            is_last = state.step >= last_step(state, config)
            if state.step % config.log_every == 0 or is_last:
                record = {"step": state.step, "seconds": round(state.seconds, 2), **figures}
                append_log(log, record)
            if state.step % config.eval_every == 0 or is_last:
                append_log(log, {"step": state.step, **objective.evaluate()})
            progress.update(
                task,
                completed=state.step,
                total=last_step(state, config),
                loss=f"loss {figures['loss']:.3f}",
            )
            is_old = time.monotonic() - saved_at > config.checkpoint_seconds
            if is_old or is_last or control.take("CHECKPOINT") is not None:
                save_checkpoint(checkpoint, objective, state)
                saved_at = time.monotonic()
        if control.must_stop or not checkpoint.exists():  # a stage of no steps has its start
            save_checkpoint(checkpoint, objective, state)
    return state
