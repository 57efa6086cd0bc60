"""Blocks of the KV cache: allocation, sharing of equal prefixes, eviction.

A block is free, owned by one or more sequences, or *cached*: owned by nobody but still holding the
keys and values of a known prefix, so that a later request with the same beginning can take it.
Cached blocks count as free and are evicted oldest first.

The draft model's cache has the same blocks, and may be behind: a draft whose trees do not pay reads
no prompts. So a block is marked once the draft's half of it is filled, too.

A block's key is a digest (BLAKE2b) of its tokens and of the key of the block in front of it, so it
stands for the whole prefix. Python's own hash will not do: it has no salt and is easily inverted,
and a prompt made to collide would be continued from another's keys and values.
"""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from hashlib import blake2b

from sdengine.errors import CacheFull, ConfigError

KEY_BYTES = 32
"""Equal keys mean equal prefixes: two with one key would be a collision of BLAKE2b-256."""


class BlockPool:
    """Reference-counted blocks with prefix reuse.

    Args:
        num_blocks: blocks of the cache.
        block_size: tokens per block.
        enable_prefix_caching: whether freed blocks stay findable by their content.

    Raises:
        ConfigError: num_blocks is not positive.
    """

    def __init__(
        self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True
    ) -> None:
        if num_blocks < 1:
            raise ConfigError.from_parts(
                "num_kv_blocks >= 1", str(num_blocks), "give the KV cache more memory"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._root = secrets.token_bytes(KEY_BYTES)  # nobody can compute keys outside of the pool
        self.reset()

    def reset(self) -> None:
        """Makes every block free and forgets what it holds."""
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._references = [0] * self.num_blocks
        self._is_drafted = [False] * self.num_blocks
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached ones included."""
        return len(self._free) + len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks, or none.

        Raises:
            CacheFull: fewer are free.
        """
        if count > self.num_free:
            raise CacheFull(
                f"expected {count} free KV blocks, got {self.num_free} of {self.num_blocks}"
            )
        return [self._take() for _ in range(count)]

    def free(self, blocks: SequenceOf[int]) -> None:
        """Gives up one reference to each block, last block first so that prefixes are evicted
        last."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, f"block {block} freed twice"
            if self._references[block] == 0:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def match_prefix(self, token_ids: SequenceOf[int]) -> list[int]:
        """Takes a reference to every leading block whose content is already cached.

        At least one token is left to compute, because its logits are needed.
        """
        if not self._enable_prefix_caching:
            return []
        blocks = []
        key = self._root
        for i in range((len(token_ids) - 1) // self.block_size):
            key = self._next_key(key, token_ids, i)
            block = self._block_of.get(key)
            if block is None:
                break
            self._cached.pop(block, None)
            self._references[block] += 1
            blocks.append(block)
        return blocks

    def publish(
        self, token_ids: SequenceOf[int], blocks: SequenceOf[int], first: int, last: int
    ) -> None:
        """Makes full blocks [first, last) of a sequence findable by later requests.

        The sequence has a reference to each of `blocks`; those before `first` were published, or
        taken by `match_prefix`, for the same tokens.
        """
        if not self._enable_prefix_caching or first >= last:
            return
        key = self._key_before(token_ids, blocks, first)
        for i in range(first, last):
            key = self._next_key(key, token_ids, i)
            if key not in self._block_of:
                self._block_of[key] = blocks[i]
                self._key_of[blocks[i]] = key

    def mark_drafted(self, blocks: SequenceOf[int]) -> None:
        """Notes that the draft's keys and values of these blocks are there."""
        for block in blocks:
            self._is_drafted[block] = True

    def num_drafted(self, blocks: SequenceOf[int]) -> int:
        """How many of the leading blocks the draft has computed."""
        return next((i for i, b in enumerate(blocks) if not self._is_drafted[b]), len(blocks))

    def _next_key(self, key: bytes, token_ids: SequenceOf[int], i: int) -> bytes:
        """Key of block `i` behind a block of that key."""
        start = i * self.block_size
        tokens = array("i", token_ids[start : start + self.block_size])
        return blake2b(key + tokens.tobytes(), digest_size=KEY_BYTES).digest()

    def _key_before(self, token_ids: SequenceOf[int], blocks: SequenceOf[int], first: int) -> bytes:
        """Key of the block in front of block `first`, computed from the nearest block that is known
        by its key: one whose content another block had before is not."""
        begin = next((i for i in range(first, 0, -1) if blocks[i - 1] in self._key_of), 0)
        key = self._key_of[blocks[begin - 1]] if begin else self._root
        for i in range(begin, first):
            key = self._next_key(key, token_ids, i)
        return key

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        assert self._references[block] == 0, f"block {block} is in use"
        self._references[block] = 1
        self._is_drafted[block] = False
        return block
