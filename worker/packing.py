"""Micro-batches out of a list of lengths: the least padding within a token budget. Pure.

A micro-batch is a rectangle on the device, its longest row times its rows, and is paid for in full.
So rows are sorted by length, and the sorted list is cut where the sum of the rectangles is least,
each cut charged with what one more forward pass costs. Peers pack in order of arrival or cut
greedily; the exact cut is a short dynamic programme, which takes half a millisecond for 256 rows
and one or two for 1,024. Where the padding has to be bounded, mostly on a GPU, it runs up to five
times: two milliseconds and six, or fifteen where 1,024 lengths hardly repeat.

Once four micro-batches' worth is packed together, at most a twentieth of what is computed is
padding (`MOST_PADDING`), where texts are as long as sentences and reviews are. Less has more of it:
what a dispatch has where little waits, or where several processes share it (`worker.batcher`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

__all__ = [
    "CPU_OVERHEAD_TOKENS",
    "ENOUGH_BUDGETS",
    "MOST_PADDING",
    "OVERHEAD_SHARE",
    "cheapest",
    "overhead_of",
    "pack",
]

OVERHEAD_SHARE = 16
"""One more forward pass counts as this part of the budget: a budget is chosen so that the fixed
cost of a pass hardly shows in it."""

CPU_OVERHEAD_TOKENS = 48
"""And on a CPU as no more than this. A pass costs 40 to 120 tokens there, however large the budget:
counting 48 is within 2 % of the best cut of 1,024 texts over that range."""

ENOUGH_BUDGETS = 4
"""So many micro-batches' worth of rows can be cut without much padding."""
MOST_PADDING = 0.05
"""And are: a pass is counted as less, in steps of a quarter, until no more than this share of the
area is padding. That makes more passes only where the cheapest cut has more padding, from four to
some eight micro-batches' worth. With passes that cost 80 tokens it was 0.5 % more time for mixed
texts, and 3 % for short ones at a budget of 1,024."""
_LESS = 0.75
_STEPS = 8
"""Down to a tenth: else lengths that spread evenly would be cut into a pass for each few rows."""


def overhead_of(token_budget: int, device: str) -> int:
    """What one more forward pass counts as, in tokens, on a device as torch names it."""
    share = token_budget // OVERHEAD_SHARE
    return min(share, CPU_OVERHEAD_TOKENS) if device == "cpu" else share


def pack(
    lengths: Sequence[int],
    token_budget: int,
    max_rows: int,
    overhead_tokens: int,
    *,
    part: bool = False,
) -> list[list[int]]:
    """Split rows into micro-batches, longest rows first: the cheapest within `MOST_PADDING`.

    Args:
        lengths: tokens of each row, at least 1.
        token_budget: bound of longest x rows; a single row above it stands alone.
        max_rows: bound of the rows of one micro-batch.
        overhead_tokens: what one more micro-batch costs, in tokens; see `overhead_of`.
        part: whether there are more rows, packed by themselves, with which these are
            `ENOUGH_BUDGETS`.

    Returns:
        Indexes into `lengths`, each exactly once.
    """

    @cache
    def cut(steps: int) -> list[list[int]]:
        return cheapest(lengths, token_budget, max_rows, int(overhead_tokens * _LESS**steps))

    plan = cut(0)
    few = not part and sum(lengths) < ENOUGH_BUDGETS * token_budget
    if few or _is_tight(lengths, plan):
        return plan
    # The less a pass counts as, the less padding; so the first step that suffices is bisected.
    return cut(bisect_left(range(_STEPS), True, 1, key=lambda n: _is_tight(lengths, cut(n))))


def cheapest(
    lengths: Sequence[int], token_budget: int, max_rows: int, overhead_tokens: int
) -> list[list[int]]:
    """Split rows as `pack` does, at the least cost, whatever the padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    if not order:
        return []
    cuts = _cuts([lengths[i] for i in order], token_budget, max_rows, overhead_tokens)
    return [order[start:end] for start, end in pairwise(cuts)]


def _is_tight(lengths: Sequence[int], plan: list[list[int]]) -> bool:
    area = sum(lengths[rows[0]] * len(rows) for rows in plan)
    return area - sum(lengths) <= MOST_PADDING * area


def _cuts(ordered: list[int], budget: int, max_rows: int, overhead: int) -> list[int]:
    """Where to cut lengths in falling order, 0 and their number included."""
    earliest = _earliest_starts(ordered, budget, max_rows)
    # A row as long as the one before a cut may cross it at no cost, until the bounds forbid it: so
    # some best packing starts each micro-batch at a new length or as early as the bounds allow.
    changes = [i for i in range(1, len(ordered)) if ordered[i] != ordered[i - 1]]
    cost = {0: 0}  # cost[end]: of the rows before `end`, packed best
    start_of = {}  # start_of[end]: where the last micro-batch of that packing begins
    best_start = 0
    for end in _ends(len(ordered), changes, earliest):
        # What lost against a later start does so for every further end: each further row costs the
        # longest one's length, which is no less with the earlier start.
        best_start = max(best_start, earliest[end])
        best = cost[best_start] + ordered[best_start] * (end - best_start)
        for start in changes[bisect_right(changes, best_start) : bisect_left(changes, end)]:
            candidate = cost[start] + ordered[start] * (end - start)
            if candidate < best:
                best, best_start = candidate, start
        cost[end] = best + overhead
        start_of[end] = best_start
    cuts = [len(ordered)]
    while cuts[-1]:
        cuts.append(start_of[cuts[-1]])
    return cuts[::-1]


def _earliest_starts(ordered: list[int], budget: int, max_rows: int) -> list[int]:
    """For each end, the earliest start of a micro-batch within the bounds that ends before it."""
    earliest = [0] * (len(ordered) + 1)
    start = 0
    for end in range(1, len(ordered) + 1):
        rows = end - start
        while rows > 1 and (rows > max_rows or ordered[start] * rows > budget):
            start += 1
            rows -= 1
        earliest[end] = start
    return earliest


def _ends(count: int, changes: list[int], earliest: list[int]) -> list[int]:
    """The ends the programme has to solve: every possible start, and the last row's."""
    ends = {0}
    for end in (*changes, count):
        while end not in ends:
            ends.add(end)
            end = earliest[end]  # noqa: PLW2901 - walks down the chain of full micro-batches
    return sorted(ends)[1:]
