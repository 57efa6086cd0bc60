"""A kernel without the engine: tree attention called from foreign torch code, beside torch's own.

Three draft tokens hang below a prefix of 20 tokens; each sees the prefix, its ancestors and itself:

    prefix -- 1 -- 2        the keys of 1, 2, 3 lie behind the prefix in the paged cache
        `---- 3
"""

from __future__ import annotations

import torch

from sdengine.kernels.programs.program import make_pool, run_op
from sdengine.kernels.row_batch import RowBatch
from sdengine.kernels.tree_attention import attention_scratch

HEADS, KV_HEADS, DIM, BLOCK, PREFIX = 4, 2, 64, 16, 20
ANCESTORS = [{1}, {1, 2}, {3}]  # of nodes 1, 2, 3, themselves included

torch.manual_seed(0)
num_rows, scale = len(ANCESTORS), DIM**-0.5
queries = torch.randn(num_rows, HEADS, DIM)
keys, values = torch.randn(2, KV_HEADS, PREFIX + num_rows, DIM).unbind(0)

# The cache: [blocks, 2, KV heads, block size, head dim], its blocks in any order.
block_table = torch.tensor([[2, 0]], dtype=torch.int32)
cache = torch.zeros(3, 2, KV_HEADS, BLOCK, DIM)
for index in range(PREFIX + num_rows):
    block, offset = int(block_table[0, index // BLOCK]), index % BLOCK
    cache[block, 0, :, offset] = keys[:, index]
    cache[block, 1, :, offset] = values[:, index]

# The rows: one sequence, three nodes of its tree.
batch = RowBatch.allocate(batch_size=1, max_rows=num_rows, mask_words=1)
batch.positions[:] = torch.tensor([PREFIX - 1 + len(path) for path in ANCESTORS])
batch.visible_lens[:] = PREFIX
batch.ancestor_mask[:, 0] = torch.tensor([sum(1 << n - 1 for n in path) for path in ANCESTORS])
batch.cu_rows[:] = torch.tensor([0, num_rows])
batch.tree_starts[:] = PREFIX
batch.num_rows[:] = num_rows

kv_part = torch.zeros(num_rows, 2 * KV_HEADS * DIM)  # read by the op that fills the cache
out = torch.empty(num_rows, HEADS * DIM)
run_op(
    "tree_attention",
    pool=make_pool(2),
    qkv=torch.cat([queries.flatten(1), kv_part], dim=1),
    kv_cache=cache,
    block_tables=block_table,
    batch=batch,
    out=out,
    scratch=attention_scratch(num_rows, HEADS, DIM, PREFIX + num_rows, num_threads=2),
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=DIM,
    scale=scale,
)

mask = torch.zeros(num_rows, PREFIX + num_rows, dtype=torch.bool)
mask[:, :PREFIX] = True
for row, path in enumerate(ANCESTORS):
    mask[row, [PREFIX + node - 1 for node in path]] = True
group = HEADS // KV_HEADS
expected = torch.nn.functional.scaled_dot_product_attention(
    queries.transpose(0, 1),
    keys.repeat_interleave(group, 0),
    values.repeat_interleave(group, 0),
    attn_mask=mask,
    scale=scale,
).transpose(0, 1)

error = (out.view(num_rows, HEADS, DIM) - expected).abs().max().item()
print(f"largest difference from torch: {error:.1e}")
print("the same attention" if error < 1e-5 else "DIFFERENT")
