"""Blocks of the KV cache: allocation, sharing of equal prefixes, eviction.

A block is free, owned by one or more sequences, or *cached*: owned by nobody but still holding the
keys and values of a known prefix, so that a later request with the same beginning can take it.
Cached blocks count as free and are evicted oldest first.

The draft model's cache has the same blocks, and may be behind: a draft whose trees do not pay reads
no prompts. So a block is marked once the draft's half of it is filled, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf

from sdengine.errors import CacheFull, ConfigError

BlockKey = tuple[int, tuple[int, ...]]
ROOT_KEY = 0


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
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._is_drafted = [False] * num_blocks
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}

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
        key = ROOT_KEY
        for start in range(
            0, (len(token_ids) - 1) // self.block_size * self.block_size, self.block_size
        ):
            content = (key, tuple(token_ids[start : start + self.block_size]))
            block = self._block_of.get(content)
            if block is None:
                break
            self._cached.pop(block, None)
            self._references[block] += 1
            blocks.append(block)
            key = hash(content)
        return blocks

    def publish(
        self, token_ids: SequenceOf[int], blocks: SequenceOf[int], first: int, last: int
    ) -> None:
        """Makes full blocks [first, last) of a sequence findable by later requests."""
        if not self._enable_prefix_caching or first >= last:
            return
        key = ROOT_KEY if first == 0 else self._chain_key(token_ids, first)
        for i in range(first, last):
            content = (key, tuple(token_ids[i * self.block_size : (i + 1) * self.block_size]))
            key = hash(content)
            if content not in self._block_of and blocks[i] not in self._key_of:
                self._block_of[content] = blocks[i]
                self._key_of[blocks[i]] = content

    def mark_drafted(self, blocks: SequenceOf[int]) -> None:
        """Notes that the draft's keys and values of these blocks are there."""
        for block in blocks:
            self._is_drafted[block] = True

    def num_drafted(self, blocks: SequenceOf[int]) -> int:
        """How many of the leading blocks the draft has computed."""
        return next((i for i, b in enumerate(blocks) if not self._is_drafted[b]), len(blocks))

    def _chain_key(self, token_ids: SequenceOf[int], count: int) -> int:
        key = ROOT_KEY
        for start in range(0, count * self.block_size, self.block_size):
            key = hash((key, tuple(token_ids[start : start + self.block_size])))
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
