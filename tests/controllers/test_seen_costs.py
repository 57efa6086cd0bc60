"""SeenCosts: T(M) as steps show it, whatever was measured before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sdengine.controllers.adaptive import AdaptiveController
from sdengine.controllers.seen_costs import (
    FIRST_MODELS,
    LOOK_AGE,
    LOOK_EVERY,
    REFRESH_EVERY,
    SeenCosts,
)
from sdengine.controllers.tree_size import GrowingSize
from sdengine.core.cost_model import CostModel
from sdengine.core.plan import StepReport

MEASURED = CostModel((1, 2, 4, 8, 16), (1.0, 1.1, 1.2, 1.4, 2.4), 0.1, 0.05, 0.01)


def test_it_begins_with_the_measurement_and_follows_the_machine() -> None:
    seen = SeenCosts(MEASURED)
    assert seen.model() == MEASURED
    for _ in range(200):
        seen.add(1, 2.0, is_plain=False)  # the only count that is used: the whole machine is slower
    model = seen.model()
    assert model.verify_s == pytest.approx([2 * t for t in MEASURED.verify_s], rel=0.05)
    assert model.draft_layer_s == pytest.approx(0.1, rel=0.05)


def test_row_counts_are_told_apart() -> None:
    """One count that is slow raises its own time, and the others' only until they are seen."""
    seen = SeenCosts(MEASURED)
    for step in range(400):
        rows = 8 if step % 4 else 1
        seen.add(rows, (1.5 if rows == 8 else 1.0) * MEASURED.verify_time(rows), is_plain=False)
    model = seen.model()
    assert model.verify_s[0] == pytest.approx(1.0, rel=0.06)
    assert model.verify_s[3] == pytest.approx(2.1, rel=0.03)
    assert list(model.verify_s) == sorted(model.verify_s)


def test_plain_steps_only_say_how_fast_the_machine_is() -> None:
    """One after the other they find their weights in the caches; among trees they do not."""
    seen = SeenCosts(MEASURED)
    for _ in range(200):
        seen.add(1, 0.5, is_plain=True)
        for rows in (1, 2, 8):
            seen.add(rows, MEASURED.verify_time(rows), is_plain=False)
    model = seen.model()
    assert model.verify_s[:2] == pytest.approx((1.0, 1.1), rel=0.05)
    assert 0.8 < seen.pace < 0.95
    assert model.verify_s[4] == pytest.approx(2.4, rel=0.01), "never seen, but trees were"


def test_what_was_not_seen_is_as_slow_as_what_was() -> None:
    """With the measurement's minima for larger trees, they look cheap beside those just seen."""
    seen = SeenCosts(MEASURED)
    for _ in range(30):
        seen.add(1, 1.0, is_plain=True)
    seen.add(4, 1.5 * 1.2, is_plain=False)
    assert seen.model().verify_s[2:] == pytest.approx([1.5 * t for t in (1.2, 1.4, 2.4)], rel=0.1)


def test_hiccups_pass_and_old_sights_fade() -> None:
    seen = SeenCosts(MEASURED)
    for step in range(300):
        seen.add(2, 100.0 if step % 50 == 25 else 1.1, is_plain=False)
    assert seen.model().verify_s[1] == pytest.approx(1.1, rel=0.1)
    for _ in range(20_000):  # twice as slow since, and two rows are never used again
        seen.add(8, 2.8, is_plain=False)
    assert seen.model().verify_s[1] > 1.4


def test_steps_of_more_rows_than_were_measured_tell_of_the_last_count() -> None:
    seen = SeenCosts(MEASURED)
    for _ in range(100):
        seen.add(40, 1.5 * MEASURED.verify_time(40), is_plain=False)
    assert seen.pace == pytest.approx(1.5, rel=0.01)
    assert seen.model().verify_s[-1] == pytest.approx(1.5 * 2.4, rel=0.02)


def test_layers_cost_what_they_were_seen_to() -> None:
    """First and later ones apart; a hiccup counts as twice the usual, the very first as it is."""
    seen = SeenCosts(MEASURED)
    for num_layers in (3, 1, 5, 2, 1) * 8:
        seen.add_draft(num_layers, 0.3, 0.3 + 0.2 * (num_layers - 1))
    model = seen.model()
    assert model.draft_first_s == pytest.approx(0.3, rel=0.01)
    assert model.draft_layer_s == pytest.approx(0.2, rel=0.01)
    seen.add_draft(2, 30.0, 60.0)
    hiccup = seen.model()
    assert model.draft_first_s < hiccup.draft_first_s < 1.05 * 0.3
    assert model.draft_layer_s < hiccup.draft_layer_s < 1.05 * 0.2


def test_layers_that_were_not_seen_are_as_slow_as_the_machine() -> None:
    seen = SeenCosts(MEASURED)
    for _ in range(200):
        seen.add(1, 2.0, is_plain=True)
    for _ in range(9):
        seen.add_draft(1, 0.15, 0.15)
    model = seen.model()
    assert model.draft_first_s == pytest.approx(0.15, rel=0.02)
    assert model.draft_layer_s == pytest.approx(2.0 * 0.05, rel=0.01)
    assert model.draft_read_s == pytest.approx(2.0 * 0.01, rel=0.01)


def test_a_model_is_due_now_and_then() -> None:
    seen = SeenCosts(MEASURED)
    due = [seen.add(2, 1.1, is_plain=False) for _ in range(3 * REFRESH_EVERY)]
    steps = [step for step, is_due in enumerate(due, 1) if is_due]
    assert steps == [*FIRST_MODELS, *(n * REFRESH_EVERY for n in (1, 2, 3))]
    assert FIRST_MODELS[0] == 1 and FIRST_MODELS[-1] < REFRESH_EVERY
    plain = SeenCosts(MEASURED)
    assert sum(plain.add(1, 1.0, is_plain=True) for _ in range(REFRESH_EVERY)) == 1


def test_fewer_rows_are_looked_at_now_and_then() -> None:
    seen, looks = SeenCosts(MEASURED), []
    for step in range(3 * LOOK_AGE):
        rows = seen.fewer_rows()
        if rows is not None:
            looks.append(step)
            assert rows == 4, "half as many as usual, at least"
        seen.add(rows or 8, 1.0, is_plain=False)
    assert len(looks) == 3 and looks[0] == 2 * LOOK_EVERY, "not before a trial is over"
    assert all(LOOK_AGE < b - a <= LOOK_AGE + LOOK_EVERY for a, b in itertools.pairwise(looks))


def test_fewer_rows_that_are_passed_anyway_need_no_look() -> None:
    seen = SeenCosts(MEASURED)
    for step in range(2 * LOOK_AGE):
        seen.add(5 if step % 20 == 0 else 8, 1.0, is_plain=False)  # five are nearly four
        assert seen.fewer_rows() is None


def test_trees_too_large_for_what_arithmetic_takes_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four sequences: measured, 12 rows take hardly longer than 4; true, twice as long. By what was
    seen of 12 rows, 8 look as dear."""
    rows = (1, 2, 3, 4, 5, 6, 8, 12, 16, 64)
    told = CostModel(rows, (1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.07, 1.1, 1.4, 5.6), 0.04, 0.034)
    true = CostModel(
        rows, (1.0, 1.02, 1.04, 1.07, 1.125, 1.21, 1.46, 2.18, 2.8, 11.3), 0.045, 0.0375
    )

    def speed(costs: CostModel) -> float:
        return float(np.mean([batch_in_world(costs, true, seed) for seed in range(8)]))

    assert speed(told) > 0.98 * speed(true)
    monkeypatch.setattr(SeenCosts, "fewer_rows", lambda _: None)
    assert speed(told) < 0.97 * speed(true)


def batch_in_world(told: CostModel, world: CostModel, seed: int) -> float:
    """Speed of four sequences over plain decoding."""
    reach = 0.72 * 0.7 ** np.arange(8)
    seconds, tokens = decode_in_world(told, world, reach, batch=4, steps=600, seed=seed).sum(0)
    return float(tokens / seconds / (4 / world.verify_time(4)))


def best_of_world(
    costs: CostModel, world: CostModel, steps: int, seed: int = 0
) -> tuple[float, float]:
    """Tokens per second of the controller that was given `costs`, in a world that costs `world`,
    over that of the best constant number of nodes; once it has settled."""
    reach = 0.85 * np.cumprod(np.full(16, 0.8)) / 0.8
    rates = [
        (1 + reach[:n].sum()) / (world.verify_time(1 + n) + world.draft_time(n)) for n in range(17)
    ]
    decoded = decode_in_world(costs, world, reach, batch=1, steps=2 * steps, seed=seed)
    seconds, tokens = decoded[steps:].sum(0)
    return tokens / seconds / max(rates), float(np.argmax(rates))


def decode_in_world(
    told: CostModel, world: CostModel, reach: np.ndarray, *, batch: int, steps: int, seed: int
) -> np.ndarray:
    """[steps, 2]: seconds and tokens of each step of a batch whose controller was told other costs
    than there are. Nodes come in a chain a sequence, reached with these falling probabilities."""
    most = len(reach)
    controller = AdaptiveController(told, GrowingSize(most, 16))
    rng, decoded = np.random.default_rng(seed), []
    worths = np.sort(np.tile(reach, batch))[::-1]  # of all nodes, as the batch takes them
    thresholds = np.zeros(len(worths))
    for _ in range(steps):
        plan = controller.plan(batch)
        if plan.costs is not None:
            thresholds = plan.costs.row_costs(batch * (1 + most))[batch:]
        nodes = 0
        if plan.depth:
            is_paid = worths >= thresholds * plan.tokens_per_s
            paid = is_paid.argmin() if not is_paid.all() else len(worths)
            nodes = int(min(paid, batch * plan.depth, plan.max_batch_nodes))
        of_each = [len(range(i, nodes, batch)) for i in range(batch)]
        accepted = [int((rng.random() < reach[:n]).sum()) for n in of_each]
        draft = world.draft_time(min(of_each[0], plan.depth))
        rows = batch + nodes
        verify = world.verify_time(rows)
        report = StepReport(accepted, nodes, rows, draft, verify, draft + verify, True)
        controller.observe(plan, report)
        decoded.append((draft + verify, batch + sum(accepted)))
    return np.array(decoded)


def test_a_wrong_measurement_does_not_last() -> None:
    """Measured: eight rows for 1.4 of one. True: each row costs 0.35, and two nodes are best."""
    world = CostModel((1, 2, 4, 8, 16), (1.0, 1.1, 2.0, 3.6, 7.0), 0.1, 0.05)
    shares, best = zip(*(best_of_world(MEASURED, world, 3000, seed) for seed in range(24)))
    assert max(best) <= 2
    assert min(shares) > 0.9
    assert np.mean(shares) > 0.965, "0.960 where larger trees are believed what was measured"


def test_the_rate_is_near_the_best_where_the_measurement_is_right() -> None:
    share, _ = best_of_world(MEASURED, MEASURED, 2000)
    assert share > 0.93
