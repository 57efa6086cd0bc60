"""Move plan: the cache entries to gather after a walk, as a struct of tensors.

`commit_plan` writes one for each cache, `kv_compact` carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdengine.kernels.spec import expect, expect_tensor


@dataclass(frozen=True, slots=True, eq=False)
class MovePlan:
    """Entry k of a sequence's plan moves from logical index source[b, k] to dst_start[b] + k.

    Args:
        source: [B, M] int32, logical indices to gather from; the first num_moves[b] are strictly
            ascending, those past them meaningless.
        dst_start: [B] int32, logical index of the first destination, <= source[b, 0].
        num_moves: [B] int32, 0 to M.
    """

    source: torch.Tensor
    dst_start: torch.Tensor
    num_moves: torch.Tensor

    @classmethod
    def allocate(
        cls, batch_size: int, max_moves: int, device: str | torch.device = "cpu"
    ) -> MovePlan:
        """Plans without moves, with room for `max_moves` of each sequence."""
        shapes = ((batch_size, max_moves), (batch_size,), (batch_size,))
        return cls(*(torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes))

    @property
    def max_moves(self) -> int:
        """M."""
        return self.source.shape[1]


def expect_move_plan(
    op: str, name: str, plan: object, batch_size: int, max_moves: int | None = None
) -> MovePlan:
    """Checks every tensor of a MovePlan argument at the door and returns it."""
    expect(
        op, isinstance(plan, MovePlan), f"{name}: expected a MovePlan, got {type(plan).__name__}"
    )
    assert isinstance(plan, MovePlan)
    expect_tensor(op, f"{name}.source", plan.source, torch.int32, (batch_size, max_moves))
    expect_tensor(op, f"{name}.dst_start", plan.dst_start, torch.int32, (batch_size,))
    expect_tensor(op, f"{name}.num_moves", plan.num_moves, torch.int32, (batch_size,))
    return plan
