"""begin_step: equals the reference on random slots; who decodes, drafts, follows and has ended."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from sdengine.kernels.begin_step import OUTPUTS
from sdengine.kernels.programs.program import run_op

STOP, OTHER = 7, 1


def make_args(slots: list[dict[str, int]], **statics: Any) -> dict[str, Any]:
    """Arguments for slots that decode in a 30-token history, 5 of them generated."""
    usual = {
        "scheduled_lens": 1,
        "can_draft": 1,
        "max_total_lens": 60,
        "groups": 0,
        "first_stops": 25,
        "history_lens": 30,
        "num_emitted": 1,
        "computed_lens": 29,
        "draft_computed_lens": 28,
        **dict.fromkeys(OUTPUTS, -7),
    }
    args: dict[str, Any] = {
        name: torch.tensor([{**usual, **slot}[name] for slot in slots], dtype=torch.int32)
        for name in usual
    }
    args["num_seqs"] = torch.tensor([len(slots)], dtype=torch.int32)
    args["min_running"] = torch.tensor([0], dtype=torch.int32)
    args["is_balanced"] = torch.tensor([0], dtype=torch.int32)
    args["root_values"] = torch.full((len(slots),), -7.0)
    args["depth_limit"] = torch.tensor([4], dtype=torch.int32)
    args["node_limit"] = torch.tensor([12], dtype=torch.int32)
    args["stop_tokens"] = torch.tensor([[STOP, -1]] * len(slots), dtype=torch.int32)
    args["history"] = torch.full((len(slots), 64), OTHER, dtype=torch.int32)
    return {**args, "max_draft_rows": 100, "has_trees": True, **statics}


def begun(args: dict[str, Any]) -> list[dict[str, int]]:
    """What both implementations write, slot by slot."""
    expected = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in args.items()}
    run_op("begin_step", "reference", **expected)
    run_op("begin_step", "cpu", **args)
    for name in OUTPUTS:
        assert torch.equal(args[name], expected[name]), name
    count = int(args["num_seqs"])
    return [{name: int(args[name][b]) for name in OUTPUTS} for b in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_random_slots_equal_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    slots = []
    for _ in range(9):
        length, total = rng.randint(1, 60), rng.randint(20, 64)
        computed = rng.randint(0, length - 1)
        slots.append(
            {
                "scheduled_lens": rng.choice([0, 1, 1, 5, length - computed]),
                "can_draft": rng.randint(0, 1),
                "max_total_lens": total,
                "groups": rng.choice([-3, 0, 1 << 30]),
                "first_stops": rng.randint(0, total),
                "history_lens": length,
                "num_emitted": rng.randint(0, 6),
                "computed_lens": computed,
                "draft_computed_lens": max(0, computed - rng.choice([0, 0, 1, 9])),
            }
        )
    args = make_args(slots, max_draft_rows=rng.choice([0, 7, 40]), has_trees=seed % 4 > 0)
    args["history"] = torch.randint(0, 12, (9, 64), dtype=torch.int32)
    args["num_seqs"][0] = rng.choice([0, 4, 9])
    args["min_running"][0] = rng.choice([0, 0, 1, 3, 9])
    args["is_balanced"][0] = rng.randint(0, 1)
    if seed % 3 == 0:
        args["draft_computed_lens"] = None
    begun(args)
    assert bool((args["pending_lens"][int(args["num_seqs"]) :] == -7).all()), "past num_seqs"


def test_a_decoding_sequence_gets_a_tree_and_its_draft_follows() -> None:
    (slot,) = begun(make_args([{}]))
    assert slot == {
        "pending_lens": 1,
        "wants_logits": 1,
        "max_emit": 30,
        "draft_pending_lens": 2,
        "draft_wants_logits": 1,
        "node_budgets": 12,
        "depth_limits": 4,
        "root_values": 1,
    }


def test_without_trees_the_root_stands_alone() -> None:
    (slot,) = begun(make_args([{}], has_trees=False, draft_computed_lens=None))
    assert (slot["wants_logits"], slot["draft_pending_lens"], slot["node_budgets"]) == (2, 0, 0)


def test_a_drafter_without_a_cache_has_nothing_to_follow() -> None:
    (slot,) = begun(make_args([{}], draft_computed_lens=None))
    assert (slot["draft_pending_lens"], slot["node_budgets"], slot["depth_limits"]) == (0, 12, 4)


def test_a_chunk_of_a_prompt_draws_nothing() -> None:
    chunk = {"computed_lens": 3, "draft_computed_lens": 3, "scheduled_lens": 9}
    (slot,) = begun(make_args([chunk]))
    assert slot["pending_lens"] == slot["draft_pending_lens"] == 9
    assert slot["wants_logits"] == slot["draft_wants_logits"] == slot["node_budgets"] == 0


def test_trees_end_where_the_sequence_does() -> None:
    lens = (33, 32, 31)
    slots = begun(make_args([{"max_total_lens": length} for length in lens]))
    assert [slot["depth_limits"] for slot in slots] == [2, 1, 0]
    assert [slot["node_budgets"] for slot in slots] == [12, 12, 0]
    assert [slot["max_emit"] for slot in slots] == [3, 2, 1]


def test_a_sequence_without_blocks_for_a_tree_decodes_plainly() -> None:
    (slot,) = begun(make_args([{"can_draft": 0}]))
    assert (slot["pending_lens"], slot["wants_logits"], slot["node_budgets"]) == (1, 1, 0)


def test_drafts_share_the_rows_in_order_and_only_those_in_step_grow_trees() -> None:
    slots = [{"draft_computed_lens": 26}, {"draft_computed_lens": 25}, {}]
    begun_slots = begun(make_args(slots, max_draft_rows=6))
    assert [slot["draft_pending_lens"] for slot in begun_slots] == [4, 2, 0]
    assert [slot["draft_wants_logits"] for slot in begun_slots] == [1, 0, 0]
    assert [slot["pending_lens"] for slot in begun_slots] == [1, 1, 1]


@pytest.mark.parametrize(
    "position,num_emitted,first_stop,ends",
    [
        (29, 1, 25, True),
        (27, 3, 25, True),  # inside a path: tokens behind it were committed too
        (26, 3, 25, False),  # of an earlier step, after which the host scheduled it again
        (29, 1, 30, False),  # of the prompt, or one of the tokens it has to have
        (29, 30, 29, True),
    ],
)
def test_a_stop_token_of_the_step_before_ends_a_sequence(
    position: int, num_emitted: int, first_stop: int, ends: bool
) -> None:
    args = make_args([{"num_emitted": num_emitted, "first_stops": first_stop}, {}])
    args["history"][0, position] = STOP
    ended, other = begun(args)
    assert (ended["pending_lens"], ended["draft_pending_lens"]) == ((0, 0) if ends else (1, 2))
    assert ended["wants_logits"] == ended["draft_wants_logits"] == (0 if ends else 1)
    assert other["pending_lens"] == 1


def test_a_sequence_that_is_long_enough_or_not_scheduled_takes_no_part() -> None:
    for slot in ({"max_total_lens": 30}, {"max_total_lens": 28}, {"scheduled_lens": 0}):
        (begun_slot,) = begun(make_args([slot]))
        left = begun_slot.pop("max_emit")
        assert left == max(0, slot.get("max_total_lens", 60) - 30)
        assert begun_slot.pop("root_values") == 1
        assert not any(begun_slot.values())


@pytest.mark.parametrize("min_running,goes_on", [(0, True), (2, True), (3, False), (4, False)])
def test_none_takes_part_where_too_few_go_on(min_running: int, goes_on: bool) -> None:
    """One of four has ended, another is not scheduled."""
    args = make_args([{}, {"max_total_lens": 30}, {"history_lens": 40}, {"scheduled_lens": 0}])
    args["min_running"][0] = min_running
    slots = begun(args)
    names = [name for name in OUTPUTS if name not in ("max_emit", "root_values")]
    assert [bool(slot["pending_lens"]) for slot in slots] == [goes_on, False, goes_on, False]
    assert goes_on or not any(slot[name] for slot in slots for name in names)
    assert [slot["max_emit"] for slot in slots] == [30, 0, 20, 30]


def root_values(slots: list[dict[str, int]], **statics: Any) -> list[float]:
    args = make_args(slots, **statics)
    args["is_balanced"][0] = 1
    begun(args)
    return args["root_values"].tolist()


def test_of_a_group_those_with_more_left_come_first() -> None:
    """30, 15 and 6 tokens left, and 9 in a group of its own."""
    slots = [{"max_total_lens": length} for length in (60, 45, 36, 39)]
    slots[3]["groups"] = 1
    mean = (30**2 + 15**2 + 6**2) / 3
    assert root_values(slots) == pytest.approx([900 / mean, 225 / mean, 36 / mean, 1.0])
    args = make_args(slots)
    begun(args)
    assert args["root_values"].tolist() == [1.0] * 4, "others wait"
    assert root_values(slots, has_trees=False) == [1.0] * 4


@pytest.mark.parametrize("absence", [{"scheduled_lens": 0}, {"max_total_lens": 30}])
def test_nobody_gives_way_to_who_takes_no_part(absence: dict[str, int]) -> None:
    slots = [{"max_total_lens": 45}, {"max_total_lens": 90, **absence}]
    assert root_values(slots) == [1.0, 1.0]


def test_a_prompt_that_is_read_counts_as_far_behind() -> None:
    prompt = {"computed_lens": 3, "scheduled_lens": 9}
    assert root_values([{"max_total_lens": 45}, prompt]) == pytest.approx([0.4, 1.6])


def test_many_long_sequences_are_weighed_without_loss() -> None:
    """Squares that add up to 160 * 2^40: more than a word holds."""
    slots = [{"max_total_lens": 30 + (1 << bits)} for bits in (20, 19)] * 128
    assert root_values(slots) == pytest.approx([1.6, 0.4] * 128)


def test_arguments_are_checked() -> None:
    args = make_args([{}], max_draft_rows=-1)
    with pytest.raises(ValueError, match="begin_step: max_draft_rows: expected at least 0, got -1"):
        run_op("begin_step", "cpu", **args)
    args = make_args([{}])
    args["can_draft"] = args["can_draft"].long()
    with pytest.raises(ValueError, match=r"begin_step: can_draft: expected torch\.int32"):
        run_op("begin_step", "cpu", **args)
