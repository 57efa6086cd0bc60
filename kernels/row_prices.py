"""What a node must be worth to become the next row of a target's pass, in numpy or natively.

Kernels work in groups of rows, so times go up in stairs: the first row of a stair costs the whole
of it, the others nothing. Nodes come in order of worth, so a row is looked at together with those
that follow: it may cost what it and the next k rows add, for the best k, if each node is worth
DECLINE of the one before. On a stair prices are therefore low, at its foot high; where times are
convex the price is just what the row adds.

Prices change with what is seen of a machine, four times in the first eight steps with trees. numpy
takes 0.1 to 0.3 ms for them between two steps, in cold code; `csrc/cpu/row_prices.cpp` a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

__all__ = ["WriteRowPrices", "native_row_prices", "write_row_prices"]

WriteRowPrices = Callable[[Sequence[int], Sequence[float], float, np.ndarray], None]

LOOK_AHEAD = 16  # rows that a stair may be long
DECLINE = 0.8  # worth of a node over that of the one taken before it
_WORTH = np.cumsum(DECLINE ** np.arange(LOOK_AHEAD))[:, None]  # of the next 1, 2, ... rows


def write_row_prices(
    rows: Sequence[int], seconds: Sequence[float], tokens_per_s: float, prices: np.ndarray
) -> None:
    """Writes the tokens that row M + 1 must promise.

    Args:
        rows: measured row counts of the target's pass, ascending from 1.
        seconds: what a pass takes at those; never decreasing.
        tokens_per_s: what a second is worth.
        prices: [N] float32, written: index M. Beyond the measurements every row adds the same.
    """
    priced = min(len(prices), rows[-1] + 1)
    times = _pass_seconds(rows, seconds, priced + LOOK_AHEAD)
    later = as_strided(times[1:], (LOOK_AHEAD, priced), times.strides * 2, writeable=False)
    prices[:1] = 0.0
    prices[1:priced] = tokens_per_s * np.min((later - times[:priced]) / _WORTH, axis=0)[:-1]
    prices[priced:] = prices[priced - 1] if priced else 0.0


def native_row_prices() -> WriteRowPrices:
    """`write_row_prices` of the CPU extension; its prices are contiguous.

    Raises:
        BackendUnavailable, ConfigError: there is none, or not for this machine.
    """
    # Not above: costs are read by commands that do without torch, which the extension's loader
    # imports.
    from sdengine.kernels.cpu_library import load_cpu

    native = load_cpu().write_row_prices

    def write(
        rows: Sequence[int], seconds: Sequence[float], tokens_per_s: float, prices: np.ndarray
    ) -> None:
        native(rows, seconds, tokens_per_s, prices.ctypes.data, len(prices))

    return write


def _pass_seconds(rows: Sequence[int], seconds: Sequence[float], num_rows: int) -> np.ndarray:
    """Of 1, 2, ... num_rows rows: linear between and beyond measurements."""
    wanted = np.arange(1, num_rows + 1)
    inside: np.ndarray = np.interp(wanted, rows, seconds)
    if len(rows) == 1:
        return inside
    slope = (seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2])
    inside += slope * np.maximum(wanted - rows[-1], 0)
    return inside
