"""The loop: resuming changes nothing, the schedule is what it says, requests are heard."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdengine.train.distill import LONG_BELOW, DraftObjective, JointObjective, evaluate_pair
from sdengine.train.loop import (
    Control,
    LoopConfig,
    LoopState,
    last_step,
    learning_rate_scale,
    load_checkpoint,
    save_checkpoint,
    train,
)
from sdengine.train.module import LlamaModule
from tests.train.conftest import TINY_CONFIG, TINY_DRAFT, TINY_TARGET

CONFIG = LoopConfig(steps=10, warmup_steps=3, cooldown_steps=4, eval_every=5, log_every=1)


def joint_objective(streams) -> JointObjective:
    target, draft = LlamaModule(TINY_TARGET, seed=0), LlamaModule(TINY_DRAFT, seed=1)
    return JointObjective(target, draft, streams, TINY_CONFIG)


def draft_objective(streams, directory=None) -> DraftObjective:
    target, draft = LlamaModule(TINY_TARGET, seed=0), LlamaModule(TINY_DRAFT, seed=1)
    target.requires_grad_(False)
    samples = np.random.default_rng(0).integers(3, 320, size=(9, 33)).astype(np.uint16)
    return DraftObjective(target, draft, streams, TINY_CONFIG, samples, directory)


class Interrupting:
    """An objective that sends its own process a signal during one step."""

    def __init__(self, inner, at_step: int, number: int) -> None:
        self.inner, self.at_step, self.number = inner, at_step, number
        self.modules, self.optimizers = inner.modules, inner.optimizers

    def accumulate(self, step, remaining):
        if step == self.at_step:
            os.kill(os.getpid(), self.number)
        return self.inner.accumulate(step, remaining)

    def evaluate(self):
        return self.inner.evaluate()


def weights(objective) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, module in objective.modules.items()
        for key, tensor in module.state_dict().items()
    }


def test_workers_change_no_bit(streams, tmp_path):
    one, two = (tmp_path / name for name in ("one", "two"))
    objectives = []
    for directory, workers in ((one, 1), (two, 2)):
        directory.mkdir()
        target, draft = LlamaModule(TINY_TARGET, seed=0), LlamaModule(TINY_DRAFT, seed=1)
        config = replace(TINY_CONFIG, workers=workers, tokens_per_step=256)  # sums of four
        objectives.append(JointObjective(target, draft, streams, config))
        train("run", objectives[-1], CONFIG, directory)
    first, second = map(weights, objectives)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("build", [joint_objective, draft_objective])
@pytest.mark.parametrize("stop_at", [0, 4, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(streams, tmp_path, build, stop_at):
    whole, broken, resumed = (build(streams) for _ in range(3))
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    train("run", whole, CONFIG, tmp_path / "whole")
    stopped = train(
        "run", Interrupting(broken, stop_at, signal.SIGTERM), CONFIG, tmp_path / "broken"
    )
    assert stopped.step == stop_at + 1
    assert train("run", resumed, CONFIG, tmp_path / "broken").step == CONFIG.steps
    expected, got = weights(whole), weights(resumed)
    assert expected.keys() == got.keys()
    for name in expected:
        assert torch.equal(expected[name], got[name]), name


def test_kept_states_change_no_bit(streams, tmp_path):
    in_memory, kept = draft_objective(streams), draft_objective(streams, tmp_path)
    for name, objective in (("memory", in_memory), ("kept", kept)):
        (tmp_path / name).mkdir()
        train("run", objective, CONFIG, tmp_path / name)
    kept_files = {f"{name}_states.npy" for name in ("corpus", "samples", "held_out")}
    assert {path.name for path in tmp_path.glob("*.npy")} == kept_files
    expected, got = weights(in_memory), weights(kept)
    for name in expected:
        assert torch.equal(expected[name], got[name]), name


def test_kept_states_say_what_the_target_says(streams):
    objective = draft_objective(streams)
    figures = evaluate_pair(
        objective.target, objective.draft, replace(objective.held_out, states=None)
    )
    for name, value in objective.evaluate().items():
        assert value == pytest.approx(figures[name.removeprefix("held_out_")], rel=0.01), name


def test_training_moves_every_matrix_of_both_models(streams, tmp_path):
    objective = joint_objective(streams)
    before = {name: tensor.clone() for name, tensor in weights(objective).items()}
    train("run", objective, CONFIG, tmp_path)
    for name, tensor in weights(objective).items():
        assert not torch.equal(before[name], tensor), name


def test_draft_stage_leaves_the_target_alone(streams, tmp_path):
    objective = draft_objective(streams)
    before = {name: tensor.clone() for name, tensor in objective.target.state_dict().items()}
    train("run", objective, CONFIG, tmp_path)
    for name, tensor in objective.target.state_dict().items():
        assert torch.equal(before[name], tensor), name


def test_the_target_alone_is_trained_with_dropout(streams):
    """Every step leaves out other numbers; what is measured or frozen leaves out none."""
    target, draft = LlamaModule(TINY_TARGET, seed=0), LlamaModule(TINY_DRAFT, seed=1)
    with torch.no_grad():
        for block in target.model.layers:
            block.mlp.down_proj.weight.normal_(std=0.1)

    def losses(dropout: float, build) -> list[float]:
        config = replace(TINY_CONFIG, dropout=dropout, seed=3)
        objective = build(target, draft, streams, config)
        batch = objective.sampler.batch(0, config.tokens_per_step, config.short_length)
        steps = [objective._accumulate(batch, step)["loss"] for step in (0, 0, 1)]
        return [*steps, *objective.evaluate().values()]

    def on_samples(*args) -> DraftObjective:
        return DraftObjective(*args, np.full((4, 33), 7, np.uint16))

    first, again, other, *figures = losses(0.2, JointObjective)
    assert first == again != other
    plain, _, also_plain, *plain_figures = losses(0.0, JointObjective)
    assert plain == also_plain != first and figures == plain_figures
    assert losses(0.2, on_samples) == losses(0.0, on_samples)


def test_schedule_rises_holds_and_falls():
    state = LoopState(cooldown_start=6)
    scales = [learning_rate_scale(step, state, CONFIG) for step in range(10)]
    assert scales == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_finished_run_does_nothing_more(streams, tmp_path):
    train("run", joint_objective(streams), CONFIG, tmp_path)
    again = joint_objective(streams)
    state = train("run", again, CONFIG, tmp_path)
    assert state.step == CONFIG.steps and state.cooldown_start == 6
    assert (tmp_path / "run.jsonl").read_text().count('"loss"') == CONFIG.steps


@pytest.mark.parametrize("by, start, length", [("", 0, 4), ("6\n", 0, 6), ("signal", 3, 4)])
def test_cooldown_on_request(streams, tmp_path, by, start, length):
    config = replace(CONFIG, steps=100)
    objective = joint_objective(streams)
    if by == "signal":
        objective = Interrupting(objective, 2, signal.SIGUSR1)
    else:
        (tmp_path / "COOLDOWN").write_text(by)
    state = train("run", objective, config, tmp_path)
    assert state.cooldown_start == start and not (tmp_path / "COOLDOWN").exists()
    assert state.step == last_step(state, config) == start + length
    records = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    lengths = [record["length"] for record in records if "loss" in record]
    num_long = sum(1 - done / length < LONG_BELOW for done in range(length))
    assert lengths == [32.0] * (start + length - num_long) + [64.0] * num_long


def test_a_cooldown_may_be_stretched_without_a_jump(tmp_path):
    config = replace(CONFIG, steps=100)
    control, state = Control(tmp_path), LoopState(step=20)
    (tmp_path / "COOLDOWN").write_text("4")
    control.update_cooldown(state, config)
    state.step = 22
    before = learning_rate_scale(22, state, config)
    (tmp_path / "COOLDOWN").write_text("10")
    control.update_cooldown(state, config)
    assert before == learning_rate_scale(22, state, config) == 0.5
    assert learning_rate_scale(31, state, config) == pytest.approx(0.05)
    assert last_step(state, config) == 32


def test_a_longer_cooldown_survives_an_interruption(streams, tmp_path):
    config = replace(CONFIG, steps=100)
    (tmp_path / "COOLDOWN").write_text("7")
    broken = Interrupting(joint_objective(streams), 2, signal.SIGTERM)
    assert train("run", broken, config, tmp_path).step == 3
    assert train("run", joint_objective(streams), config, tmp_path).step == 7


def test_checkpoint_on_request_and_never_half_written(streams, tmp_path, monkeypatch):
    objective = joint_objective(streams)
    path = tmp_path / "run.pt"
    save_checkpoint(path, objective, LoopState(step=3))

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, objective, LoopState(step=4))
    assert load_checkpoint(path, joint_objective(streams)).step == 3


def test_log_holds_training_and_held_out_figures(streams, tmp_path, capfd):
    train("run", joint_objective(streams), CONFIG, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    held_out = [record for record in records if "held_out_alpha" in record]
    assert [record["step"] for record in held_out] == [5, 10]
    assert all(0 < record["held_out_alpha"] <= 1 for record in held_out)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.strip() == "", "quiet in a pipe"


def test_signal_handlers_come_back(streams, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train("run", joint_objective(streams), replace(CONFIG, steps=1), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
