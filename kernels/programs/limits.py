"""What the replays of a program keep within, so that a device's launches need be no larger."""

from __future__ import annotations

from math import inf
from typing import NamedTuple


class Limits(NamedTuple):
    """What the one who replays a program promises of each replay. Launches may be made for so much,
    however much the buffers hold; None: for all of it.

    Args:
        rows: most rows of a pass of the target.
        draft_rows: most rows of a pass of the draft.
        seqs: most sequences with rows.
        keys: longest prefix that a row sees: most tokens of a sequence, without a tree's.
        layers: most layers of a draft's tree.
    """

    rows: int | None = None
    draft_rows: int | None = None
    seqs: int | None = None
    keys: int | None = None
    layers: int | None = None

    @property
    def order(self) -> tuple[float, ...]:
        """What tells the smaller of two: by layers first, which cost most, then by rows."""
        limits = (self.layers, self.rows, self.draft_rows, self.keys, self.seqs)
        return tuple(inf if limit is None else limit for limit in limits)

    def covers(self, other: Limits) -> bool:
        """Whether what keeps within `other` keeps within these."""
        return all(
            mine is None or (theirs is not None and theirs <= mine)
            for mine, theirs in zip(self, other)
        )


NO_LIMITS = Limits()
