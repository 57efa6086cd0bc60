"""Costs are measured on a dummy sequence, which keeps to what the engine has room for."""

from __future__ import annotations

import pytest
import torch

from sdengine.core.config import SpeculationConfig
from sdengine.kernels.calibration import identity_table
from sdengine.runner import costs
from sdengine.runner.costs import READ_TOKENS, ROW_COUNTS, measure_costs, verify_trials
from tests.engine.conftest import MakeEngine, related_draft


@pytest.mark.parametrize(
    "max_model_len, max_depth, max_nodes",
    [(2, 1, 1), (2, 256, 127), (3, 4, 2), (16, 4, 127), (64, 256, 8), (70, 256, 127)],
)
def test_no_position_lies_beyond_the_model_length(
    make_engine: MakeEngine, max_model_len: int, max_depth: int, max_nodes: int
) -> None:
    """The reference refuses a position without angles, where a kernel reads past their table."""
    make_engine(
        draft=related_draft(),
        speculation=SpeculationConfig(max_nodes=max_nodes, max_depth=max_depth),
        max_model_len=max_model_len,
        max_num_seqs=1,
        backend="reference",
    )


@pytest.mark.parametrize("max_model_len", [4, 256])
def test_a_dummy_tree_has_as_many_rows_as_are_timed(
    make_engine: MakeEngine, max_model_len: int
) -> None:
    spec = SpeculationConfig(max_nodes=127)
    engine = make_engine(draft=related_draft(), speculation=spec, max_model_len=max_model_len)
    workspace = engine.iteration.workspace
    for num_rows, trial in zip(ROW_COUNTS, verify_trials(engine.iteration, ROW_COUNTS)):
        trial.run()
        assert int(workspace.target_rows.num_rows) == num_rows
        assert int(workspace.target_rows.positions[:num_rows].max()) < max_model_len


@pytest.mark.parametrize("method", ["dyspec", "sampled", "chain", "kary"])
def test_the_draft_s_layers_are_timed_at_work(make_engine: MakeEngine, method: str) -> None:
    """They run only where a tree grows: without one they would seem to cost nothing."""
    verifier = "rejection" if method == "sampled" else "coupled"
    spec = SpeculationConfig(method=method, verifier=verifier, max_nodes=16, max_depth=4)
    engine = make_engine(draft=related_draft(), speculation=spec)
    workspace = engine.iteration.workspace
    assert min(workspace.layer_ends_ns.tolist()) > 0
    if method in ("dyspec", "chain"):
        assert workspace.draft_tree.depths[0, :5].tolist() == [0, 1, 2, 3, 4]
        assert workspace.draft_tree.num_nodes.tolist()[0] == 4
    assert torch.equal(workspace.calibration[0], identity_table()), "believed in by nobody else"


@pytest.mark.parametrize("room, num_read", [(None, READ_TOKENS), (8, 8), (1, 1)])
def test_the_draft_is_timed_reading_what_a_step_has_room_for(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, room: int | None, num_read: int
) -> None:
    """A token among many costs a fraction of a layer, so no other figure stands for it."""
    sizes = {} if room is None else {"max_num_batched_tokens": room}
    spec = SpeculationConfig()
    engine = make_engine(draft=related_draft(), speculation=spec, max_num_seqs=1, **sizes)
    read = []

    def seconds_of(turns: list[tuple[costs.Trial, costs.Trial]], is_slow: bool) -> list[float]:
        for _, trial in turns[-3:]:
            trial.run()
            read.append(int(engine.iteration.drafter._cu_pending[-1]))
        return [1.0] * (len(turns) - 3) + [0.1, 0.1 + 0.02 * (num_read - 1), 0.4]

    monkeypatch.setattr(costs, "_fastest", seconds_of)
    measured = measure_costs(engine.iteration)
    assert read == [1, num_read, 1]
    assert measured.draft_first_s == 0.1 and measured.draft_layer_s == pytest.approx(0.1)
    assert measured.draft_read_s == pytest.approx(0.02 if num_read > 1 else 0.0)
