"""The token budget found by measuring the device, instead of guessed. Pure but for the probe.

A forward pass costs a fixed part, plus one that grows with the padded tokens once the device is
full. So tokens per second rise with the size of a micro-batch and then level off: the budget is the
knee, the smallest that comes within a few per cent of the best. More would only add padding and
latency, and on a GPU take memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["LENGTHS", "Measured", "budgets_to_try", "knee", "measure"]

LENGTHS = (24, 128)
"""Tokens of the rows measured: a sentence and a paragraph. What a row costs beside its tokens, as
in attention, differs between them; the budget has to suit both."""
TOLERANCE = 0.04
"""A smaller budget is preferred if it loses no more than this share of the best speed."""
FIRST = 256
LAST = 65_536
_FLAT = 2
_GAIN = 0.02
"""So many doublings in a row that gain less than this end the search: the curve is flat."""
_RUNS = 3
"""Of each shape in each round over the budgets, one more in the first. There are two rounds, since
what else the machine does mustn't meet all runs of one budget and none of another's; and more, if
after them the curve still rises."""
_ENOUGH_S = 0.3
"""A shape that took longer than this, all its runs together, is not run any more in its round:
short ones are what noise distorts."""

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
        limit_s: seconds after which no other budget is begun, nor measured again.
        is_out_of_memory: whether an error of the probe means that the budget is too large.
        clock: seconds, monotonic.

    Raises:
        BaseException: what the probe raises otherwise.
    """
    stopwatch = _Stopwatch(probe, max_rows, max_tokens, is_out_of_memory)
    over_s = clock() + limit_s
    found = [stopwatch.measure(budgets[0])]
    further = iter(budgets[1:])
    while True:
        ended = _rise(stopwatch, further, found, lambda: clock() > over_s)
        for index, each in enumerate(found):
            if clock() > over_s:
                return found
            found[index] = stopwatch.try_to_measure(each.budget) or each
        if ended or _is_flat(found):
            return found


def _rise(
    stopwatch: _Stopwatch,
    further: Iterator[int],
    found: list[Measured],
    is_over: Callable[[], bool],
) -> bool:
    """Measure further budgets as long as the curve rises; whether there are no more to measure."""
    while not _is_flat(found):
        budget = next(further, None)
        if budget is None or is_over() or (measured := stopwatch.try_to_measure(budget)) is None:
            return True
        found.append(measured)
    return False


def _is_flat(found: Sequence[Measured]) -> bool:
    """Whether the last two gain too little over all before them."""
    speeds = [each.tokens_per_s for each in found]
    return len(speeds) > _FLAT and max(speeds[-_FLAT:]) < max(speeds[:-_FLAT]) * (1 + _GAIN)


def knee(found: Sequence[Measured]) -> int:
    """The smallest budget whose speed is within `TOLERANCE` of the best.

    Raises:
        ValueError: nothing was measured.
    """
    best = max(each.tokens_per_s for each in found)
    return min(each.budget for each in found if each.tokens_per_s >= best * (1 - TOLERANCE))


class _Stopwatch:
    """The least time of each shape, over all its runs: what else the machine does only adds."""

    def __init__(
        self,
        probe: Probe,
        max_rows: int,
        max_tokens: int,
        is_out_of_memory: Callable[[BaseException], bool],
    ) -> None:
        self._probe = probe
        self._is_out_of_memory = is_out_of_memory
        self._max_rows = max_rows
        self._lengths = sorted({min(length, max_tokens) for length in LENGTHS})
        self._least_s: dict[tuple[int, int], float] = {}

    def measure(self, budget: int) -> Measured:
        """Run the budget's shapes, again if they have been before."""
        seconds_per_token = 0.0
        for length in self._lengths:
            rows = min(self._max_rows, max(1, budget // length))
            seconds_per_token += self._least(rows, length) / (rows * length)
        return Measured(budget, len(self._lengths) / seconds_per_token)

    def try_to_measure(self, budget: int) -> Measured | None:
        """The same; None if memory hasn't room for it."""
        try:
            return self.measure(budget)
        except BaseException as exc:
            if self._is_out_of_memory(exc):
                return None
            raise

    def _least(self, rows: int, length: int) -> float:
        least_s = self._least_s.get((rows, length))
        if least_s is None:  # a new shape: memory is allocated and kernels are chosen
            least_s = self._probe(rows, length)
        runs_s = [self._probe(rows, length)]
        while len(runs_s) < _RUNS and sum(runs_s) < _ENOUGH_S:
            runs_s.append(self._probe(rows, length))
        self._least_s[rows, length] = least_s = min(least_s, *runs_s)
        return least_s
