"""Whether a trial can win back what its draft must read before the first tree.

After plain steps a draft has to read what it missed, whole prompts at first. Beside that, what
trees can gain of the rest of a text may be little: eight sequences of 1.1B on two cores without
16-bit arithmetic can gain 3%, and their 68M draft takes some three plain steps to read prompts of
70 tokens. Texts of 32 tokens never win that back.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from math import inf

from sdengine.core.cost_model import CostModel
from sdengine.core.plan import Outlook

HOPE = 0.8  # of a draft token after another, that it is accepted: a draft that follows well
DEEPEST = 8  # nodes: measured row counts alone may leave out all that suit a batch
WORTH = 2.0  # times what its draft reads that a trial must be able to win: it may be lost


def is_worth_trying(costs: CostModel, num_decoding: int, outlook: Outlook) -> bool:
    """Whether speculation that goes well pays for its beginning before these sequences end.

    Args:
        costs: at present.
        num_decoding: sequences.
        outlook: what the draft has to read for them and how much they may still decode.
    """
    plain_s = costs.verify_time(num_decoding)
    price = outlook.draft_backlog * costs.draft_read_s / plain_s
    least = WORTH * price / outlook.tokens_left if outlook.tokens_left else inf
    return most_gain(costs, num_decoding) > least


@lru_cache(maxsize=32)  # asked before every row of four sequences that never try: 25 us each time
def most_gain(costs: CostModel, num_decoding: int) -> float:
    """The largest of `gains`."""
    return max(gains(costs, num_decoding))


def gains(costs: CostModel, num_decoding: int) -> Iterator[float]:
    """Shares of plain decoding's time that chains save if HOPE comes true: of up to DEEPEST nodes a
    sequence, and at the measured row counts."""
    chains = ((rows - num_decoding) / num_decoding for rows in costs.rows if rows > num_decoding)
    plain_s = costs.verify_time(num_decoding)
    for nodes in chain(range(1, DEEPEST + 1), chains):
        whole = int(nodes)
        reach = HOPE**whole
        tokens = 1.0 + HOPE * (1.0 - reach) / (1.0 - HOPE) + (nodes - whole) * reach * HOPE
        verify_s = costs.verify_time(round(num_decoding * (1.0 + nodes)))
        seconds = verify_s + costs.draft_time(whole + (nodes > whole))
        yield 1.0 - seconds / (tokens * plain_s)
