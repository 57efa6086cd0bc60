"""BlockPool: nothing leaks, nothing is handed out twice, equal prefixes are shared and only
they."""

from __future__ import annotations

import random

import pytest

from sdengine.cache.block_pool import BlockPool
from sdengine.errors import CacheFull, ConfigError


def test_allocates_all_blocks_once_and_then_refuses() -> None:
    pool = BlockPool(4, 8)
    blocks = pool.allocate(4)
    assert sorted(blocks) == [0, 1, 2, 3]
    with pytest.raises(CacheFull, match="expected 1 free KV blocks, got 0 of 4"):
        pool.allocate(1)
    pool.free(blocks)
    assert pool.num_free == 4


def test_a_pool_needs_blocks() -> None:
    with pytest.raises(ConfigError, match="num_kv_blocks"):
        BlockPool(0, 8)


def test_published_prefix_is_found_by_content_and_position() -> None:
    pool = BlockPool(8, 4)
    tokens = list(range(12))
    blocks = pool.allocate(3)
    pool.publish(tokens, blocks, 0, 3)
    pool.free(blocks)
    assert pool.num_free == 8
    assert pool.match_prefix([*tokens, 99]) == blocks
    assert pool.match_prefix(tokens) == blocks[:2], "one token must be left to compute"
    assert pool.match_prefix([*tokens[4:8], *tokens[:4], 5]) == [], "same content, other position"
    assert pool.match_prefix([0, 1, 2, 9, 4, 5, 6, 7, 8]) == []


def test_shared_blocks_survive_until_the_last_owner_frees_them() -> None:
    pool = BlockPool(3, 4)
    tokens = list(range(8))
    first = pool.allocate(2)
    pool.publish(tokens, first, 0, 2)
    second = pool.match_prefix([*tokens, 1])
    assert second == first
    pool.free(first)
    assert pool.num_free == 1, "the second owner still holds both blocks"
    pool.free(second)
    assert pool.num_free == 3


def test_evicted_prefix_is_forgotten() -> None:
    pool = BlockPool(2, 4)
    tokens = list(range(9))
    blocks = pool.allocate(2)
    pool.publish(tokens, blocks, 0, 2)
    pool.free(blocks)
    pool.free(pool.allocate(2))
    assert pool.match_prefix(tokens) == []


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(3, 4)
    tokens = list(range(13))
    blocks = pool.allocate(3)
    pool.publish(tokens, blocks, 0, 3)
    pool.free(blocks)
    for left in (2, 1, 0):
        pool.allocate(1)
        matched = pool.match_prefix(tokens)
        assert matched == blocks[:left]
        pool.free(matched)


def test_publishing_continues_an_earlier_chain() -> None:
    pool = BlockPool(8, 2)
    tokens = list(range(8))
    blocks = pool.allocate(4)
    pool.publish(tokens, blocks, 0, 1)
    pool.publish(tokens, blocks, 1, 4)
    pool.free(blocks)
    assert pool.match_prefix([*tokens, 0]) == blocks


@pytest.mark.parametrize("is_continued", [False, True])
def test_a_block_is_not_found_behind_another_prefix_of_equal_hash(is_continued: bool) -> None:
    """Python's hash of integers is unsalted and no barrier: that of -1 is that of -2."""
    one, other, shared = [-1, 5], [-2, 5], [7, 7]
    assert hash(tuple(one)) == hash(tuple(other))
    pool = BlockPool(8, 2)
    blocks = pool.allocate(2)
    if is_continued:
        pool.publish(one + shared, blocks, 0, 1)
    pool.publish(one + shared, blocks, int(is_continued), 2)
    others = pool.allocate(1)
    pool.publish(other, others, 0, 1)
    assert pool.match_prefix([*other, *shared, 9]) == others, "another prompt's keys and values"
    assert pool.match_prefix([*one, *shared, 9]) == blocks


def test_publishing_continues_behind_blocks_that_another_published_first() -> None:
    pool = BlockPool(8, 2)
    tokens = list(range(8))
    firsts, seconds = pool.allocate(2), pool.allocate(4)
    pool.publish(tokens, firsts, 0, 2)
    for i in range(4):
        pool.publish(tokens, seconds, i, i + 1)
    assert pool.match_prefix([*tokens, 0]) == firsts + seconds[2:]


def test_pools_name_their_blocks_differently() -> None:
    """Who knows the keys of one process has learnt nothing about another's."""
    keys = []
    for _ in range(2):
        pool = BlockPool(1, 2)
        pool.publish([3, 4], pool.allocate(1), 0, 1)
        keys.append(pool._key_of[0])
    assert keys[0] != keys[1]


@pytest.mark.parametrize("seed", range(20))
def test_random_life_leaks_nothing(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(12, 2, enable_prefix_caching=seed % 4 != 0)
    held: list[list[int]] = []
    for _ in range(400):
        if held and rng.random() < 0.5:
            pool.free(held.pop(rng.randrange(len(held))))
            continue
        tokens = [rng.randrange(2) for _ in range(rng.randrange(2, 14))]
        blocks = pool.match_prefix(tokens)
        missing = -(-len(tokens) // 2) - len(blocks)
        if missing > pool.num_free:
            pool.free(blocks)
            continue
        blocks += pool.allocate(missing)
        assert len(set(blocks)) == len(blocks)
        pool.publish(tokens, blocks, 0, len(tokens) // 2)
        held.append(blocks)
        in_use = {block for owned in held for block in owned}
        assert pool.num_free == pool.num_blocks - len(in_use)
    for blocks in held:
        pool.free(blocks)
    assert pool.num_free == pool.num_blocks


def test_a_block_is_drafted_until_it_holds_something_else() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(2)
    assert pool.num_drafted(blocks) == 0
    pool.mark_drafted(blocks[:1])
    assert pool.num_drafted(blocks) == 1
    pool.publish(range(8), blocks, 0, 2)
    pool.free(blocks)
    matched = pool.match_prefix(range(9))
    assert matched == blocks and pool.num_drafted(matched) == 1
    pool.free(matched)
    assert [pool.num_drafted([block]) for block in pool.allocate(2)] == [0, 0]
