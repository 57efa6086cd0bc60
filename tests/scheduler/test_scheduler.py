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


def test_tree_room_of_others_is_taken_before_anyone_is_preempted() -> None:
    scheduler = Scheduler(BlockPool(5, 4, enable_prefix_caching=False), 2, 64, tree_room=8)
    old, young = make_sequence("old", 5), make_sequence("young", 4)
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler.schedule())
    assert (len(old.block_table), len(young.block_table)) == (4, 1)
    step = scheduler.schedule()
    assert not step.preempted_slots and step.shrunk_slots == [old.slot]
    assert [(e.sequence, e.can_draft) for e in step.scheduled] == [(old, False), (young, False)]
    assert (len(old.block_table), len(young.block_table)) == (2, 2)


def test_a_waiting_request_comes_before_the_trees_of_others() -> None:
    scheduler = Scheduler(BlockPool(4, 4, enable_prefix_caching=False), 2, 64, tree_room=8)
    old, new = make_sequence("old", 5), make_sequence("new", 4)
    scheduler.add(old)
    run(scheduler.schedule())
    assert len(old.block_table) == 4 and scheduler.num_free_blocks == 0
    scheduler.add(new)
    step = scheduler.schedule()
    assert step.admitted == [new] and step.shrunk_slots == [old.slot]
    assert [(e.sequence, e.can_draft) for e in step.scheduled] == [(old, False), (new, False)]
    assert (len(old.block_table), len(new.block_table)) == (2, 1) and not step.preempted_slots


def test_no_tree_is_lost_to_a_request_that_does_not_fit_all_the_same() -> None:
    scheduler = Scheduler(BlockPool(4, 4, enable_prefix_caching=False), 2, 64, tree_room=8)
    old = make_sequence("old", 5)
    scheduler.add(old)
    run(scheduler.schedule())
    scheduler.add(make_sequence("large", 12))
    for _ in range(2):
        step = scheduler.schedule()
        assert step.admitted == step.shrunk_slots == []
        assert [(e.sequence, e.can_draft) for e in step.scheduled] == [(old, True)]
        assert len(old.block_table) == 4


def test_tree_room_is_not_taken_while_a_step_under_way_may_write_to_it() -> None:
    scheduler = Scheduler(BlockPool(5, 4), 2, 64, tree_room=8)
    old, young = make_sequence("old", 5), make_sequence("young", 4)
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler.schedule())
    scheduler.hold()
    assert scheduler.schedule().preempted_slots and len(old.block_table) == 4


def test_the_block_that_another_decodes_into_is_no_tree_room() -> None:
    """The youngest begins a new block with its next token; only the middle one has room to give."""
    pool = BlockPool(8, 4, enable_prefix_caching=False)
    scheduler = Scheduler(pool, 3, 64, tree_room=4)
    old, middle, young = make_sequence("o", 12), make_sequence("m", 3), make_sequence("y", 4)
    sequences = [old, middle, young]
    for sequence in sequences:
        scheduler.add(sequence)
    run(scheduler.schedule())
    assert [len(s.block_table) for s in sequences] == [4, 2, 2]
    del old.block_table[3:]  # and nobody else has it
    step = scheduler.schedule()
    assert not step.preempted_slots and step.shrunk_slots == [middle.slot]
    assert [len(s.block_table) for s in sequences] == [4, 1, 2]


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


def test_nobody_joins_in_the_step_that_preempts() -> None:
    """The victim would come back for a chunk of its prompt, and be preempted again."""
    scheduler = Scheduler(BlockPool(4, 4, enable_prefix_caching=False), 3, 6, tree_room=0)
    scheduler.add(make_sequence("old", 8))
    scheduler.add(make_sequence("young", 7))
    step = scheduler.schedule()
    while not step.preempted_slots:
        run(step)
        step = scheduler.schedule()
    assert [e.sequence.request_id for e in step.scheduled] == ["old"] and not step.admitted


def test_shared_prompt_is_reused_by_a_later_request() -> None:
    pool = BlockPool(16, 4)
    scheduler = Scheduler(pool, 2, 64, tree_room=0)
    first = make_sequence("same", 10)
    scheduler.add(first)
    run(scheduler.schedule())
    second = make_sequence("same", 10)
    scheduler.add(second)
    scheduler.schedule()
    assert second.num_computed == 8
    assert second.block_table[:2] == first.block_table[:2]


@pytest.mark.parametrize(
    "num_computed,num_draft_computed,expected",
    [(18, 18, (12, 12)), (11, 18, (8, 8)), (18, 7, (12, 4)), (18, 3, (12, 0))],
)
def test_a_finished_sequence_leaves_what_each_cache_has_of_its_known_tokens(
    num_computed: int, num_draft_computed: int, expected: tuple[int, int]
) -> None:
    scheduler = Scheduler(BlockPool(16, 4), 2, 64, tree_room=0)
    first = make_sequence("same", 14)  # of 18 computed tokens the last four were cut off
    scheduler.add(first)
    scheduler.schedule()
    first.num_computed, first.num_draft_computed = num_computed, num_draft_computed
    scheduler.finish(first, "stop")
    second = make_sequence("same", 14)
    scheduler.add(second)
    scheduler.schedule()
    assert (second.num_computed, second.num_draft_computed) == expected


def test_further_completions_wait_for_the_first_ones_prompt() -> None:
    scheduler = Scheduler(BlockPool(32, 4), 4, 8, tree_room=0)
    first, twin = make_sequence("r", 12), make_sequence("r", 12, index=1)
    scheduler.add(first)
    scheduler.add(twin)
    run(scheduler.schedule())
    assert twin.status is SequenceStatus.WAITING
    run(scheduler.schedule())
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
        for sequence in list(alive):
            if sequence.num_tokens >= sequence.max_total_tokens or rng.random() < 0.02:
                scheduler.finish(sequence, "length")
                alive.remove(sequence)
    for sequence in alive:
        scheduler.finish(sequence, "abort")
    assert pool.num_free == pool.num_blocks
    assert not scheduler.has_unfinished()


# The same schedule again


def test_a_schedule_is_the_same_as_long_as_the_same_sequences_decode() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 3, 64, tree_room=2)
    first, second = make_sequence("a", 5), make_sequence("b", 6)
    scheduler.add(first, second)
    run(scheduler.schedule())
    schedule = scheduler.schedule()
    grown: list[list[Sequence]] = []
    for _ in range(4):
        run(schedule)
        num_blocks = {s.request_id: len(s.block_table) for s in (first, second)}
        assert scheduler.schedule() is schedule
        grown.append(list(schedule.grown))
        for sequence in (first, second):
            has_grown = len(sequence.block_table) > num_blocks[sequence.request_id]
            assert has_grown == (sequence in schedule.grown)
            assert len(sequence.block_table) * 4 >= sequence.num_tokens + 2
    assert sorted(map(len, grown)) == [0, 0, 1, 1], "each got its next block once"


def test_a_schedule_does_not_come_again_when_somebody_comes_or_ends() -> None:
    scheduler, schedule = decoding(a=5, b=6)
    run(schedule)
    schedule = scheduler.schedule()
    run(schedule)
    late = make_sequence("c", 3)
    scheduler.add(late)
    joined = scheduler.schedule()
    assert joined is not schedule and joined.admitted == [late]
    run(joined)
    after = scheduler.schedule()
    assert after is not joined and not after.admitted and len(after.scheduled) == 3
    run(after)
    scheduler.finish(late, "stop")
    assert [e.sequence.request_id for e in scheduler.schedule().scheduled] == ["a", "b"]


@pytest.mark.parametrize("seed", range(20))
def test_coming_again_decides_what_a_new_schedule_would(seed: int) -> None:
    """Two schedulers live the same life, one of which never repeats a schedule."""
    rng = random.Random(seed)
    schedulers = [Scheduler(BlockPool(14, 4), 3, 16, tree_room=6) for _ in range(2)]
    lives: list[list[Sequence]] = [[], []]
    num_repeated = 0
    last: Schedule | None = None
    for step in range(300):
        if rng.random() < 0.1:
            shape = rng.randrange(1, 20), rng.randrange(1, 30)
            for scheduler, alive in zip(schedulers, lives):
                alive.append(make_sequence(f"r{step}", *shape))
                scheduler.add(alive[-1])
        schedulers[1]._steady = None
        repeated, new = (scheduler.schedule() for scheduler in schedulers)
        num_repeated += repeated is last
        last = repeated
        assert decisions(repeated) == decisions(new)
        for schedule in (repeated, new):
            run(schedule)
        for sequence, twin in list(zip(*lives)):
            assert sequence.block_table == twin.block_table
            if sequence.num_tokens >= sequence.max_total_tokens or rng.random() < 0.01:
                for scheduler, alive, one in zip(schedulers, lives, (sequence, twin)):
                    scheduler.finish(one, "length")
                    alive.remove(one)
    assert num_repeated > 30


def decisions(schedule: Schedule) -> list[object]:
    """What a schedule says, without whose objects they are."""
    parts = [
        (e.sequence.request_id, e.sequence.slot, e.num_tokens, e.decodes, e.can_draft)
        for e in schedule.scheduled
    ]
    admitted = [sequence.request_id for sequence in schedule.admitted]
    return [parts, admitted, schedule.preempted_slots, schedule.shrunk_slots, schedule.has_waiting]


# Ahead of the step under way


def decoding(
    num_blocks: int = 64, tree_room: int = 0, **lengths: int
) -> tuple[Scheduler, Schedule]:
    """Sequences of so many prompt tokens in a step that completes their prompts."""
    scheduler = Scheduler(BlockPool(num_blocks, 4), 3, 64, tree_room)
    for name, num_prompt in lengths.items():
        scheduler.add(make_sequence(name, num_prompt))
    return scheduler, scheduler.schedule()


def test_the_step_ahead_decodes_and_has_blocks_for_the_longest_outcome() -> None:
    scheduler, running = decoding(tree_room=6, a=3, b=5)
    assert [len(e.sequence.block_table) for e in running.scheduled] == [3, 3]
    ahead = scheduler.schedule_ahead(running, 3)
    assert ahead is not None and not ahead.admitted and not ahead.preempted_slots
    parts = [(e.sequence, e.num_tokens, e.decodes, e.can_draft) for e in ahead.scheduled]
    assert parts == [(sequence, 1, True, True) for sequence in scheduler.running]
    assert [len(s.block_table) for s in scheduler.running] == [3, 4]  # 3 + 3 + 6, 5 + 3 + 6 slots
    ends = scheduler.schedule_ahead(running, 100)  # but no longer than a sequence may become
    assert ends is not None and [len(s.block_table) for s in scheduler.running] == [5, 5]


def test_no_step_ahead_while_a_prompt_goes_on() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 3, 8, tree_room=0)
    scheduler.add(make_sequence("long", 20))
    running = scheduler.schedule()
    assert scheduler.schedule_ahead(running, 1) is None
    run(running)
    run(scheduler.schedule())
    last = scheduler.schedule()
    assert scheduler.schedule_ahead(last, 1) is not None


def test_no_step_ahead_while_somebody_may_join() -> None:
    scheduler, running = decoding(a=3)
    scheduler.add(make_sequence("late", 3))
    assert scheduler.schedule_ahead(running, 1) is None
    scheduler, running = decoding(a=3, b=3, c=3)
    scheduler.add(make_sequence("late", 3))
    ahead = scheduler.schedule_ahead(running, 1)
    assert ahead is not None and ahead.has_waiting, "there is no slot to join"
    scheduler.hold()
    scheduler.finish(scheduler.running[0], "stop")
    assert scheduler.schedule_ahead(running, 1) is None, "a slot is about to be free"


def test_no_step_ahead_without_blocks_for_it() -> None:
    scheduler, running = decoding(num_blocks=2, a=7)
    assert scheduler.schedule_ahead(running, 1) is not None
    assert scheduler.schedule_ahead(running, 2) is None
    assert scheduler.pool.num_free == 0 and len(scheduler.running) == 1, "nobody is preempted"


def test_the_step_ahead_leaves_out_who_ended_or_ends_for_certain() -> None:
    scheduler, running = decoding(a=3, b=3, c=3)
    first, second, third = scheduler.running
    second.max_total_tokens = 4
    scheduler.finish(third, "abort")
    ahead = scheduler.schedule_ahead(running, 1)
    assert ahead is not None and [e.sequence for e in ahead.scheduled] == [first]
    assert not ahead.has_waiting
    first.max_total_tokens = 4
    assert scheduler.schedule_ahead(running, 1) is None


@pytest.mark.parametrize("num_waiting", [0, 1])
def test_iterations_in_a_row_have_blocks_for_the_longest_outcome(num_waiting: int) -> None:
    """As many as the longest sequence lasts, and whoever carries them out knows if others wait."""
    scheduler = Scheduler(BlockPool(64, 4), 2, 64, tree_room=5)
    long, short = make_sequence("long", 3, max_tokens=9), make_sequence("short", 3, max_tokens=3)
    for sequence in (long, short, *(make_sequence("w", 3) for _ in range(num_waiting))):
        scheduler.add(sequence)
    first = scheduler.schedule()
    assert scheduler.num_in_a_row(first, 9, 1) == 1, "prompts"
    run(first)
    second = scheduler.schedule()
    assert second.has_waiting == (num_waiting > 0)
    assert scheduler.num_in_a_row(second, 9, 2) == 8
    assert [len(s.block_table) for s in (long, short)] == [-(-(4 + 8 + 5) // 4), 3]
    assert scheduler.num_in_a_row(second, 1, 2) == 1


def test_no_iterations_in_a_row_while_somebody_joins_or_a_prompt_goes_on() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 2, 8, tree_room=0)
    decoding, prompt = make_sequence("a", 3), make_sequence("b", 16)
    scheduler.add(decoding)
    run(scheduler.schedule())
    assert scheduler.num_in_a_row(scheduler.schedule(), 4, 1) == 4
    run(scheduler.schedule())
    scheduler.add(prompt)
    assert scheduler.num_in_a_row(Schedule(), 4, 1) == 1, "nobody"
    for num_tokens in (7, 7, 2):
        step = scheduler.schedule()
        assert [entry.num_tokens for entry in step.scheduled] == [1, num_tokens]
        assert scheduler.num_in_a_row(step, 4, 1) == 1
        run(step)
    assert scheduler.num_in_a_row(scheduler.schedule(), 4, 1) == 4


def test_a_prompt_read_token_by_token_goes_on_all_the_same() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 1, 1, tree_room=0)
    scheduler.add(make_sequence("a", 3))
    seen = []
    for _ in range(4):
        step = scheduler.schedule()
        assert [entry.num_tokens for entry in step.scheduled] == [1]
        seen.append(scheduler.num_in_a_row(step, 4, 1))
        run(step)
    assert seen == [1, 1, 4, 4]


def test_no_iterations_in_a_row_without_blocks_or_while_somebody_may_join() -> None:
    scheduler = Scheduler(BlockPool(3, 4), 2, 64, tree_room=2)
    first = make_sequence("a", 3, max_tokens=20)
    scheduler.add(first)
    run(scheduler.schedule())
    scheduler.add(make_sequence("b", 9))  # there is a slot, but no blocks
    step = scheduler.schedule()
    assert step.admitted == [] and scheduler.num_in_a_row(step, 2, 1) == 1
    scheduler.waiting.clear()
    assert [scheduler.num_in_a_row(step, n, 1) for n in (6, 7, 15)] == [6, 3, 3]


def test_fewer_in_a_row_take_no_more_than_everybody_gets() -> None:
    """Who came first once took blocks for all of them, and the last one's tree found none."""
    scheduler = Scheduler(BlockPool(6, 4), 2, 64, tree_room=2)
    first, second = make_sequence("a", 3, max_tokens=20), make_sequence("b", 3, max_tokens=20)
    scheduler.add(first, second)
    run(scheduler.schedule())
    assert scheduler.num_in_a_row(scheduler.schedule(), 16, 1) == 4
    assert (len(first.block_table), len(second.block_table)) == (3, 3)


def test_what_a_sequence_leaves_is_held_while_a_step_is_under_way() -> None:
    scheduler, _ = decoding(a=3, b=9)
    first, second = scheduler.running
    free, slot = scheduler.pool.num_free, first.slot
    scheduler.hold()
    scheduler.finish(first, "stop")
    assert scheduler.pool.num_free == free and scheduler.num_free_blocks == free + 1
    for name in "cde":
        scheduler.add(make_sequence(name, 3))
    admitted = scheduler.schedule().admitted
    assert [s.request_id for s in admitted] == ["c"] and admitted[0].slot != slot
    scheduler.let_go()
    assert scheduler.schedule().admitted[0].slot == slot
    for sequence in list(scheduler.running):
        scheduler.finish(sequence, "stop")
    scheduler.finish(scheduler.waiting[0], "stop")
    assert scheduler.num_free_blocks == scheduler.pool.num_free == 64 and second.is_finished


def test_a_held_block_that_another_sequence_shares_is_not_free() -> None:
    pool = BlockPool(16, 4)
    scheduler = Scheduler(pool, 3, 64, tree_room=0)
    prompt = [7] * 9
    twins = [
        Sequence(name, 0, SamplingParams(max_tokens=4), 0, list(prompt), 9, frozenset(), 13)
        for name in "ab"
    ]
    scheduler.add(twins[0])
    run(scheduler.schedule())
    twins[0].num_computed = twins[0].num_draft_computed = 9
    scheduler.add(twins[1])
    run(scheduler.schedule())
    assert twins[1].block_table[:2] == twins[0].block_table[:2]
    scheduler.hold()
    scheduler.finish(twins[0], "stop")
    assert scheduler.num_free_blocks == 16 - len(twins[1].block_table)
    scheduler.let_go()
    assert scheduler.num_free_blocks == pool.num_free == 16 - len(twins[1].block_table)
