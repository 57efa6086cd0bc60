"""Calibration cells of draft estimates: the Python side of `sdengine/calibration.h`.

32 bins of raw estimates over [0, 1]: half octaves of the distance to the nearer end, mirrored at
1/2. 8 classes of a child's rank among its siblings: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12 and later. A
table [8, 32] of acceptance rates at the bin centers corrects estimates; `identity_table()` changes
nothing.
"""

from __future__ import annotations

import torch

NUM_BINS = 32
NUM_CLASSES = 8
CELLS = (NUM_CLASSES, NUM_BINS)


def bin_edges() -> torch.Tensor:
    """[33] float32: bin i is [edges[i], edges[i + 1])."""
    octaves = [(1.0 + 0.5 * (i % 2)) * 2.0 ** (i // 2 - 9) for i in range(1, 16)]
    lower = [0.0, *octaves]
    return torch.tensor(
        [*lower, 0.5, *(1.0 - edge for edge in reversed(lower))], dtype=torch.float32
    )


def bin_centers() -> torch.Tensor:
    """[32] float32: the middle of each bin, and the identity table."""
    edges = bin_edges()
    return (edges[:-1] + edges[1:]) / 2


def identity_table() -> torch.Tensor:
    """[8, 32] float32: the bin centers for every class."""
    return bin_centers().repeat(NUM_CLASSES, 1)


def calibration_class(rank: int) -> int:
    """Class of a child's rank among its siblings, 0 for the first."""
    if rank < 4:
        return max(rank, 0)
    return 2 + rank // 2 if rank < 8 else 6 + (rank >= 12)


def calibration_bin(estimates: torch.Tensor) -> torch.Tensor:
    """Bin index (int64) of each estimate; NaN and negatives: bin 0, values from 1 on: bin 31."""
    clean = torch.nan_to_num(estimates.float(), nan=0.0)
    return (torch.bucketize(clean, bin_edges(), right=True) - 1).clamp(0, NUM_BINS - 1)


def calibrated(estimates: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Estimates corrected by one class's rates [32]: linear between centers, through (0, 0) below,
    parallel to the diagonal above."""
    centers, table = bin_centers(), table.float()
    x = torch.cat([torch.zeros(1), centers, torch.ones(1)])
    y = torch.cat([torch.zeros(1), table, (table[-1] + 1 - centers[-1]).view(1)])
    e = torch.nan_to_num(estimates.float(), nan=0.0).clamp(0, 1)
    left = (torch.bucketize(e, x, right=True) - 1).clamp(0, NUM_BINS)
    slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
    return (y[left] + slope * (e - x[left])).clamp(0, 1)
