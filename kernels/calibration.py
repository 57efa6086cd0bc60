"""Calibration bins of raw draft estimates: the Python side of `sdengine/calibration.h`.

32 bins over [0, 1]: half octaves of the distance to the nearer end, mirrored at 1/2. A table of 32
acceptance rates, one per bin center, corrects estimates; `bin_centers()` is the table that changes
nothing.
"""

from __future__ import annotations

import torch

NUM_BINS = 32


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


def calibration_bin(estimates: torch.Tensor) -> torch.Tensor:
    """Bin index (int64) of each estimate; NaN and negatives: bin 0, values from 1 on: bin 31."""
    clean = torch.nan_to_num(estimates.float(), nan=0.0)
    return (torch.bucketize(clean, bin_edges(), right=True) - 1).clamp(0, NUM_BINS - 1)


def calibrated(estimates: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Estimates corrected by a table [32]: linear between centers, (0, 0) below, diagonal above."""
    centers, table = bin_centers(), table.float()
    x = torch.cat([torch.zeros(1), centers, torch.ones(1)])
    y = torch.cat([torch.zeros(1), table, (table[-1] + 1 - centers[-1]).view(1)])
    e = torch.nan_to_num(estimates.float(), nan=0.0).clamp(0, 1)
    left = (torch.bucketize(e, x, right=True) - 1).clamp(0, NUM_BINS)
    slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
    return (y[left] + slope * (e - x[left])).clamp(0, 1)
