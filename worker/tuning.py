"""The token budget found by measuring the device, instead of guessed. Pure but for the probe.

A forward pass costs a fixed part, plus one that grows with the padded tokens once the device is
full. So tokens per second rise with the size of a micro-batch and then level off: the budget is the
knee, the smallest that comes within a few per cent of the best. More would only add padding and
latency, and on a GPU take memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["LENGTHS", "Measured", "budgets_to_try", "knee", "measure"]

LENGTHS = (24, 128)
"""Tokens of the rows measured: a sentence and a paragraph. What a row costs beside its tokens, as
in attention, differs between them; the budget has to suit both."""
TOLERANCE = 0.04
"""A smaller budget is preferred if it loses no more than this share of the best speed."""
FIRST = 256
LAST = 65_536
_GAIN = 0.02
"""Two doublings in a row that gain less than this end the search: the curve is flat."""
_REPEATS = 5
_ENOUGH_S = 0.5
"""A pass that took longer than this, all its runs together, is not repeated any more: short ones
are what noise distorts."""

Probe = Callable[[int, int], float]
"""Seconds one micro-batch takes, of so many rows (first) of so many tokens (second)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One budget's speed."""

    budget: int
    """Padded tokens."""
    tokens_per_s: float
    """Harmonic mean over the lengths: as if each gave the same number of tokens."""


def budgets_to_try(max_rows: int, max_tokens: int) -> list[int]:
    """Powers of two a micro-batch of the measured lengths can really fill."""
    most = max_rows * min(max(LENGTHS), max_tokens)
    budgets = []
    budget = FIRST
    while budget <= min(most, LAST):
        budgets.append(budget)
        budget *= 2
    return budgets or [FIRST]


def measure(
    probe: Probe,
    budgets: Sequence[int],
    *,
    max_rows: int,
    max_tokens: int,
    limit_s: float,
    is_out_of_memory: Callable[[BaseException], bool],
    clock: Callable[[], float] = time.monotonic,
) -> list[Measured]:
    """Measure rising budgets until the speed levels off, memory ends or time is up.

    Args:
        probe: runs a micro-batch and tells its seconds.
        budgets: in rising order; the first is measured whatever it takes.
        max_rows: most rows of a micro-batch.
        max_tokens: longest row the model takes.
        limit_s: seconds after which no other budget is begun.
        is_out_of_memory: whether an error of the probe means that the budget is too large.
        clock: seconds, monotonic.

    Raises:
        BaseException: what the probe raises otherwise.
    """
    begun_s = clock()
    found: list[Measured] = []
    flat = 0
    for budget in budgets:
        if found and clock() - begun_s > limit_s:
            break
        try:
            speed = _speed(probe, budget, max_rows, max_tokens)
        except BaseException as exc:
            if found and is_out_of_memory(exc):
                break
            raise
        best = max((each.tokens_per_s for each in found), default=0.0)
        flat = flat + 1 if speed < best * (1 + _GAIN) else 0
        found.append(Measured(budget, speed))
        if flat > 1:
            break
    return found


def knee(found: Sequence[Measured]) -> int:
    """The smallest budget whose speed is within `TOLERANCE` of the best.

    Raises:
        ValueError: nothing was measured.
    """
    best = max(each.tokens_per_s for each in found)
    return min(each.budget for each in found if each.tokens_per_s >= best * (1 - TOLERANCE))


def _speed(probe: Probe, budget: int, max_rows: int, max_tokens: int) -> float:
    lengths = sorted({min(length, max_tokens) for length in LENGTHS})
    seconds_per_token = 0.0
    for length in lengths:
        rows = min(max_rows, max(1, budget // length))
        probe(rows, length)  # a new shape: memory is allocated and kernels are chosen
        runs_s = [probe(rows, length)]
        while len(runs_s) < _REPEATS and sum(runs_s) < _ENOUGH_S:
            runs_s.append(probe(rows, length))
        # The least of a few: whatever else the machine does only ever adds time.
        seconds_per_token += min(runs_s) / (rows * length)
    return len(lengths) / seconds_per_token
