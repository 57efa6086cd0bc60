"""Scheduler: chunked prefill, continuous batching, tree room, preemption, no leaks."""

from __future__ import annotations

import random

import pytest

from sdengine.cache.block_pool import BlockPool
from sdengine.core.sampling_params import SamplingParams
from sdengine.core.sequence import Sequence, SequenceStatus
from sdengine.scheduler.scheduler import Schedule, Scheduler


def make_sequence(name: str, num_prompt: int, max_tokens: int = 8, index: int = 0) -> Sequence:
    tokens = [hash((name, i)) % 50 for i in range(num_prompt)]
    params = SamplingParams(max_tokens=max_tokens)
    return Sequence(
        name, index, params, 0, tokens, num_prompt, frozenset(), num_prompt + max_tokens
    )


def run(schedule: Schedule) -> None:
    """Stands in for the engine: computes what was scheduled and appends one token when decoding."""
    for entry in schedule.scheduled:
        sequence = entry.sequence
        sequence.num_computed += entry.num_tokens
        sequence.num_draft_computed = sequence.num_computed
        if sequence.num_pending == 0:
            sequence.token_ids.append(1)


def test_prompts_are_prefilled_in_chunks_beside_decoding_ones() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 4, 10, tree_room=8)
    short, long = make_sequence("short", 3), make_sequence("long", 25)
    scheduler.add(short)
    scheduler.add(long)
    first = scheduler.schedule()
    assert [(e.sequence, e.num_tokens) for e in first.scheduled] == [(short, 3), (long, 7)]
    run(first)
    second = scheduler.schedule()
    assert [(e.sequence, e.num_tokens) for e in second.scheduled] == [(short, 1), (long, 9)]
    run(second)
    third = scheduler.schedule()
    assert [(e.sequence, e.num_tokens) for e in third.scheduled] == [(short, 1), (long, 9)]
    run(third)
    assert long.num_generated == 1


def test_slots_limit_admission_and_are_reused() -> None:
    pool = BlockPool(64, 4)
    scheduler = Scheduler(pool, 2, 64, tree_room=0)
    sequences = [make_sequence(f"s{i}", 3) for i in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert scheduler.schedule().admitted == sequences[:2]
    freed = sequences[0].slot
    scheduler.finish(sequences[0], "stop")
    assert scheduler.schedule().admitted == [sequences[2]]
    assert sequences[2].slot == freed


def test_tree_room_is_given_up_before_anyone_is_preempted() -> None:
    scheduler = Scheduler(BlockPool(2, 4), 2, 64, tree_room=8)
    scheduler.add(make_sequence("a", 5))
    entry = scheduler.schedule().scheduled[0]
    assert not entry.can_draft
    roomy = Scheduler(BlockPool(4, 4), 2, 64, tree_room=8)
    roomy.add(make_sequence("a", 5))
    assert roomy.schedule().scheduled[0].can_draft


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    pool = BlockPool(4, 4, enable_prefix_caching=False)
    scheduler = Scheduler(pool, 3, 64, tree_room=0)
    old, young = make_sequence("old", 8), make_sequence("young", 7)
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler.schedule())
    late = make_sequence("late", 2)
    scheduler.add(late)
    slot = young.slot
    schedule = scheduler.schedule()
    assert schedule.preempted_slots == [slot]
    assert [e.sequence for e in schedule.scheduled] == [old]
    assert young.status is SequenceStatus.WAITING and young.num_computed == 0
    assert list(scheduler.waiting) == [young, late]
    scheduler.finish(old, "stop")
    assert scheduler.schedule().admitted == [young, late]


def test_shared_prompt_is_reused_by_a_later_request() -> None:
    pool = BlockPool(16, 4)
    scheduler = Scheduler(pool, 2, 64, tree_room=0)
    first = make_sequence("same", 10)
    scheduler.add(first)
    run(scheduler.schedule())
    scheduler.publish_computed(first, first.num_computed)
    second = make_sequence("same", 10)
    scheduler.add(second)
    scheduler.schedule()
    assert second.num_computed == 8
    assert second.block_table[:2] == first.block_table[:2]


def test_further_completions_wait_for_the_first_ones_prompt() -> None:
    scheduler = Scheduler(BlockPool(32, 4), 4, 8, tree_room=0)
    first, twin = make_sequence("r", 12), make_sequence("r", 12, index=1)
    scheduler.add(first)
    scheduler.add(twin)
    run(scheduler.schedule())
    assert twin.status is SequenceStatus.WAITING
    run(scheduler.schedule())
    scheduler.publish_computed(first, first.num_computed)
    scheduler.schedule()
    assert twin.num_computed >= 8


@pytest.mark.parametrize("seed", range(10))
def test_random_life_frees_every_block_and_slot(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(12, 4)
    scheduler = Scheduler(pool, 3, 16, tree_room=6)
    alive: list[Sequence] = []
    for step in range(300):
        if rng.random() < 0.3:
            sequence = make_sequence(
                f"q{rng.randrange(4)}", rng.randrange(1, 30), rng.randrange(1, 12)
            )
            sequence.request_id = f"r{step}"
            scheduler.add(sequence)
            alive.append(sequence)
        schedule = scheduler.schedule()
        slots = [e.sequence.slot for e in schedule.scheduled]
        assert len(set(slots)) == len(slots) and all(0 <= s < 3 for s in slots)
        assert sum(e.num_tokens for e in schedule.scheduled) <= 16
        run(schedule)
        for entry in schedule.scheduled:
            scheduler.publish_computed(entry.sequence, entry.sequence.num_computed)
        for sequence in list(alive):
            if sequence.num_tokens >= sequence.max_total_tokens or rng.random() < 0.02:
                scheduler.finish(sequence, "length")
                alive.remove(sequence)
    for sequence in alive:
        scheduler.finish(sequence, "abort")
    assert pool.num_free == pool.num_blocks
    assert not scheduler.has_unfinished()
